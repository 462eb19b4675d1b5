"""The service's searches beside the plain reference over PyTorch, fp32: the same hypotheses, the same scores.

    python -m benchmarks.reference_beam CHECKPOINT BUNDLE --data ../shared/data [--sentences 500] [--only coverage ...]

CHECKPOINT is the trained model, BUNDLE its fp32 export. Real sentences of the docs and Tatoeba dev sets are decoded
with every option below at beams 1, 2, 4 and 8, all hypotheses of a beam asked for. The reference computes each prefix
anew, without a cache. Every token, score, normalized score and finish reason of every hypothesis is compared; scores
may differ by 1e-4. Where tokens differ and some decision of the reference was closer than that, the sentence is counted
as a near tie and shown apart. Prints JSON; fails where anything else differs, or beam 1 is not greedy search.
"""

from __future__ import annotations

import argparse
import collections
import itertools
import random
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.engine_side import decode_all, open_engine
from benchmarks.server_process import write_json
from benchmarks.test_sets import english_chinese_dev
from service import request
from service.bundle import load_bundle
from service.engine import Engine
from service.options import DecodingOptions
from service.tokenizer import EOS_ID, Tokenizer
from tests.parity.reference_search import Found, Hypothesis, Ids, beam_search, search_together, start_search
from tests.parity.reference_transformer import ReferenceTransformer
from training.checkpoint import load_model

BEAM_SIZES = (1, 2, 4, 8)
TOLERANCE = 1e-4
SENTENCES_AT_A_TIME = 10
"""Sentences whose searches run side by side, with all options: what the model says of their prefixes is kept."""


@dataclass(frozen=True, kw_only=True)
class Frequent:
    """What stands most often in the references, so that forbidding it changes something."""

    tokens: Ids
    """The two most frequent tokens."""
    pair: Ids
    """The most frequent pair of others, one after another."""


def frequent(targets: Sequence[Sequence[int]]) -> Frequent:
    """Counted over the references of the sample."""
    tokens = tuple(token for token, _ in collections.Counter(t for target in targets for t in target).most_common(2))
    pairs = collections.Counter(
        pair for target in targets for pair in itertools.pairwise(target) if not {*pair} & {*tokens}
    )
    return Frequent(tokens=tokens, pair=pairs.most_common(1)[0][0])


Vary = Callable[[Ids, Ids, Frequent], dict[str, Any]]
VARIANTS: dict[str, Vary] = {
    "none": lambda *_: {},
    "length penalty 0": lambda *_: {"length_penalty": 0.0},
    "length penalty 0.6": lambda *_: {"length_penalty": 0.6},
    "coverage penalty 0.2": lambda *_: {"coverage_penalty": 0.2},
    "repetition penalty 1.2": lambda *_: {"repetition_penalty": 1.2},
    "no repeated bigram": lambda *_: {"no_repeat_ngram_size": 2},
    "suppressed": lambda _, __, often: {
        "suppressed_tokens": often.tokens,
        "suppressed_sequences": (often.pair,),
    },
    "minimum of the source's length": lambda source, _, __: {"min_target_tokens": len(source)},
    "maximum of half the source": lambda source, _, __: {"max_target_tokens": 1 + len(source) // 2},
    "patience 2": lambda *_: {"patience": 2.0},
    "no early stopping, length penalty 0.6": lambda *_: {"early_stopping": False, "length_penalty": 0.6},
    "forced prefix": lambda _, reference, __: {"target_prefix": reference[:3]},
    "prefix bias 0.3": lambda _, reference, __: {"target_prefix": reference[:3], "prefix_bias": 0.3},
    "all of them": lambda source, reference, often: {
        "length_penalty": 0.6,
        "coverage_penalty": 0.2,
        "repetition_penalty": 1.2,
        "no_repeat_ngram_size": 3,
        "suppressed_tokens": often.tokens,
        "suppressed_sequences": (often.pair,),
        "min_target_tokens": len(source) // 2,
        "target_prefix": reference[:2],
        "prefix_bias": 0.5,
    },
}

PLAIN = ("none", "length penalty 0", "length penalty 0.6")
"""Variants without alignment: the engine has a shorter way for them, which is then compared as well."""


@dataclass(frozen=True, kw_only=True)
class Sample:
    """A sentence."""

    source_ids: Ids
    """Its tokens, end of sentence included."""
    reference_ids: Ids
    """What a person made of it, without the end of sentence."""


def read_samples(data: Path, tokenizer: Tokenizer, count: int) -> list[Sample]:
    """`count` sentences, drawn from both dev sets in one fixed order."""
    pairs = [
        pair
        for test_set in english_chinese_dev(data)
        for pair in zip(test_set.sources, test_set.references, strict=True)
    ]
    chosen = random.Random(0).sample(pairs, count)
    return [
        Sample(
            source_ids=tuple(tokenizer.encode_source(source)),
            reference_ids=tuple(token for token in tokenizer.encode_target(target) if token != EOS_ID),
        )
        for source, target in chosen
    ]


def options_of(sample: Sample, variant: str, beam_size: int, often: Frequent) -> DecodingOptions:
    """The variant's options for one sentence; all hypotheses of the beam are wanted."""
    chosen = DecodingOptions(
        **{
            "beam_size": beam_size,
            "num_hypotheses": beam_size,
            "max_target_tokens": 2 * len(sample.source_ids) + 20,
            "guards_repetition": False,
            "with_alignment": variant not in PLAIN,
            **VARIANTS[variant](sample.source_ids, sample.reference_ids, often),
        }
    )
    problems = chosen.problems()
    if problems:
        raise ValueError(f"{variant}: {' '.join(problems)}")
    return chosen


@dataclass(kw_only=True)
class Tally:
    """How the sentences of one variant and beam came out."""

    sentences: int = 0
    hypotheses: int = 0
    identical: int = 0
    """Sentences all of whose hypotheses have the same tokens and finish reasons, in the same order."""
    near_ties: int = 0
    """Sentences that differ, where the reference decided something by less than the tolerance."""
    different: int = 0
    """Sentences that differ and have no such excuse."""
    score_differences: int = 0
    """Identical sentences with a score further off than the tolerance."""
    beams_of_one: int = 0
    """Sentences that the reference decoded by a beam of one as well as by greedy search."""
    greedy_differences: int = 0
    """Those whose tokens differ."""
    largest_score_difference: float = 0.0
    """Of identical sentences, over scores and normalized scores."""
    largest_attention_difference: float = 0.0
    shown: list[dict[str, Any]] = field(default_factory=list)
    """What differs."""

    @property
    def is_good(self) -> bool:
        return not (self.different or self.score_differences or self.greedy_differences)

    def compare(self, sample: Sample, found: Found, theirs: Sequence[request.Hypothesis]) -> None:
        """Counts one sentence: the reference's results beside the engine's."""
        self.sentences += 1
        self.hypotheses += len(found.hypotheses)
        plain = [(one.target_ids, one.finish_reason) for one in found.hypotheses]
        if plain != [(tuple(one.target_ids), one.finish_reason.value) for one in theirs]:
            is_tie = found.closest_call < TOLERANCE
            self.near_ties += is_tie
            self.different += not is_tie
            self.shown.append(
                {
                    "source_ids": sample.source_ids,
                    "closest_call": found.closest_call,
                    "reference": [(*one, found.hypotheses[i].normalized_score) for i, one in enumerate(plain)],
                    "engine": [(one.target_ids, one.finish_reason.value, one.normalized_score) for one in theirs],
                }
            )
            return
        self.identical += 1
        difference = max(_difference(one, other) for one, other in zip(found.hypotheses, theirs, strict=True))
        self.score_differences += difference > TOLERANCE
        self.largest_score_difference = max(self.largest_score_difference, difference)
        for one, other in zip(found.hypotheses, theirs, strict=True):
            if other.attention is not None:
                off = float(np.max(np.abs(np.array(one.attention) - other.attention)))
                self.largest_attention_difference = max(self.largest_attention_difference, off)


def _difference(plain: Hypothesis, other: request.Hypothesis) -> float:
    return max(abs(plain.score - other.score), abs(plain.normalized_score - other.normalized_score))


Case = tuple[str, int]
"""Variant and beam size."""


def compare(
    model: ReferenceTransformer,
    engine: Engine,
    samples: Sequence[Sample],
    often: Frequent,
    tallies: dict[Case, Tally],
) -> tuple[float, float]:
    """Decodes `samples` in every case of `tallies`, in one running batch, and counts how they came out.

    Returns:
        Seconds of the reference and of the engine.
    """
    asked = [(sample, case, options_of(sample, *case, often)) for sample in samples for case in tallies]
    started = time.perf_counter()
    answers = decode_all(engine, [(sample.source_ids, options) for sample, _, options in asked])
    answered = time.perf_counter()
    searches = [(sample.source_ids, start_search(options)) for sample, _, options in asked]
    ones = [
        (case, number, (sample.source_ids, beam_search(options)))
        for number, (sample, case, options) in enumerate(asked)
        if options.beam_size == 1 and options.early_stopping and options.patience == 1
    ]
    found = search_together(model.predict, searches + [search for _, _, search in ones])
    for (case, number, _), beam in zip(ones, found[len(searches) :], strict=True):
        is_greedy = beam.hypotheses[0].target_ids == found[number].hypotheses[0].target_ids
        tallies[case].beams_of_one += 1
        tallies[case].greedy_differences += not is_greedy
    for (sample, case, _), plain, answer in zip(asked, found, answers, strict=False):
        tallies[case].compare(sample, plain, answer.hypotheses)
    return time.perf_counter() - answered, answered - started


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("bundle", type=Path)
    parser.add_argument("--data", type=Path, required=True, help="directory with docs-enzh and tatoeba-enzh")
    parser.add_argument("--sentences", type=int, default=500)
    parser.add_argument("--only", action="append", choices=list(VARIANTS), help="this variant; repeatable")
    parser.add_argument("--beams", type=int, nargs="+", default=BEAM_SIZES)
    parser.add_argument("--alignment-layer", type=int, default=-1, help="decoder layer of the bundle's attention")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--output", type=Path, help="also write the JSON here")
    arguments = parser.parse_args()

    torch.set_num_threads(arguments.threads)
    trained, tokenizer, _ = load_model(arguments.checkpoint)
    model = ReferenceTransformer(
        trained, target_tokens=tokenizer.target_vocab_size, alignment_layer=arguments.alignment_layer
    )
    samples = read_samples(arguments.data, tokenizer, arguments.sentences)
    often = frequent([sample.reference_ids for sample in samples])
    cases = [(variant, beam_size) for variant in arguments.only or VARIANTS for beam_size in arguments.beams]
    longest = max(len(sample.source_ids) for sample in samples)
    engine = open_engine(
        load_bundle(arguments.bundle),
        max_rows=64,
        max_source_tokens=longest,
        max_target_tokens=2 * longest + 20,
        num_threads=arguments.threads,
    )
    tallies = {case: Tally() for case in cases}
    reference_seconds = engine_seconds = 0.0
    for start in range(0, len(samples), SENTENCES_AT_A_TIME):
        chosen = samples[start : start + SENTENCES_AT_A_TIME]
        reference, service = compare(model, engine, chosen, often, tallies)
        reference_seconds, engine_seconds = reference_seconds + reference, engine_seconds + service
        print(f"\r{start + len(chosen)} of {len(samples)}, {reference_seconds:.0f} s", end="", file=sys.stderr)
    print(file=sys.stderr)
    rows = [{"options": variant, "beam": beam, **vars(tallies[variant, beam])} for variant, beam in cases]
    result = {
        "sentences": len(samples),
        "tolerance": TOLERANCE,
        "engine_seconds": round(engine_seconds, 1),
        "reference_seconds": round(reference_seconds, 1),
        "searches": sum(tally.sentences for tally in tallies.values()),
        "identical": sum(tally.identical for tally in tallies.values()),
        "near_ties": sum(tally.near_ties for tally in tallies.values()),
        "different": sum(tally.different for tally in tallies.values()),
        "largest_score_difference": max(tally.largest_score_difference for tally in tallies.values()),
        "cases": rows,
    }
    write_json(result, arguments.output)
    return 0 if all(tally.is_good for tally in tallies.values()) else 1


if __name__ == "__main__":
    raise SystemExit(main())
