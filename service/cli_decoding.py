"""The decoding options on the command line: a flag for each, and the client's options from what was given."""

import argparse
from dataclasses import replace

from service.client import DecodingOptions, Sampling

_SAMPLING = ("top_k", "top_p", "temperature", "seed")


def add_decoding_flags(parser: argparse.ArgumentParser) -> None:
    """Adds every decoding option; one that is not given is left to the model's defaults."""
    search = parser.add_argument_group("search (left out: the model's default)")
    search.add_argument("--beam-size", type=int, metavar="INT", help="hypotheses kept open, 1 to 16; 1: greedy search")
    search.add_argument(
        "--n-best", dest="num_hypotheses", type=int, metavar="INT", help="results of each segment, all printed"
    )
    add_ranking_flags(search)
    search.add_argument(
        "--early-stopping",
        action=argparse.BooleanOptionalAction,
        help="whether a beam search also ends once PATIENCE x BEAM_SIZE hypotheses have ended",
    )
    search.add_argument("--patience", type=float, metavar="NUMBER", help="see --early-stopping; up to 16")
    search.add_argument(
        "--alternatives",
        dest="with_alternatives",
        action="store_true",
        help="the N_BEST most probable tokens after the prefix each begin a result of their own",
    )
    search.add_argument(
        "--guard-repetition",
        dest="guards_repetition",
        action=argparse.BooleanOptionalAction,
        help="whether a result that loops is decoded again so that the loop cannot recur",
    )

    sampling = parser.add_argument_group("sampling (any of these turns it on)")
    sampling.add_argument("--sample", action="store_true", help="draw each token at random")
    sampling.add_argument("--top-k", type=int, metavar="INT", help="only from the so many most probable tokens")
    sampling.add_argument(
        "--top-p", type=float, metavar="NUMBER", help="only from the fewest tokens with this probability together"
    )
    sampling.add_argument("--temperature", type=float, metavar="NUMBER", help="below 1 sharper, above 1 flatter")
    sampling.add_argument("--seed", type=int, metavar="INT", help="the same seed gives the same sample (default 0)")

    limits = parser.add_argument_group("what the translation may be")
    limits.add_argument("--max-target-tokens", type=int, metavar="INT", help="at most so many tokens a segment")
    limits.add_argument("--min-target-tokens", type=int, metavar="INT", help="at least so many")
    limits.add_argument("--max-target-ratio", type=float, metavar="NUMBER", help="at most so many for a source token")
    limits.add_argument("--min-target-ratio", type=float, metavar="NUMBER", help="at least so many for a source token")
    limits.add_argument(
        "--repetition-penalty", type=float, metavar="NUMBER", help="of tokens that are there already, 1 to 10"
    )
    limits.add_argument(
        "--no-repeat-ngram-size", type=int, metavar="INT", help="no run of so many tokens occurs twice; 0: may"
    )
    limits.add_argument(
        "--suppress", dest="suppressed_texts", action="append", metavar="TEXT", help="never write it; may be repeated"
    )
    limits.add_argument(
        "--suppress-token",
        dest="suppressed_tokens",
        action="append",
        metavar="TOKEN",
        help="never take it, as -v shows it; may be repeated",
    )
    limits.add_argument("--no-unknown", action="store_const", const=True, help="never take the unknown token")
    limits.add_argument("--prefix", metavar="TEXT", help="what the translation begins with")
    limits.add_argument(
        "--prefix-bias", type=float, metavar="NUMBER", help="favour the prefix with this weight instead of forcing it"
    )


def add_ranking_flags(parser: "argparse._ActionsContainer") -> None:
    """Adds what results are ranked by."""
    parser.add_argument(
        "--length-penalty", type=float, metavar="NUMBER", help="exponent of the length a score is divided by, 0 to 10"
    )
    parser.add_argument(
        "--coverage-penalty", type=float, metavar="NUMBER", help="factor of the coverage term of the ranking, 0 to 10"
    )


def options_of(parsed: argparse.Namespace, *, with_alignment: bool) -> DecodingOptions:
    """The options that were given."""
    given = {name: getattr(parsed, name, None) for name in DecodingOptions.__dataclass_fields__}
    options = DecodingOptions(**{name: value for name, value in given.items() if value is not None})
    sampling = {name: getattr(parsed, name, None) for name in _SAMPLING}
    if getattr(parsed, "sample", False) or any(value is not None for value in sampling.values()):
        options = replace(options, sampling=Sampling(**sampling))
    if getattr(parsed, "prefix", None) is not None:
        options = replace(options, target_prefixes=(parsed.prefix,))
    return replace(options, with_alignment=with_alignment)
