"""The flags of the command line as options."""

import argparse
from dataclasses import fields

import pytest

from service.cli_decoding import add_decoding_flags, options_of
from service.client import DecodingOptions, Sampling


def options(*arguments: str, with_alignment: bool = False) -> DecodingOptions:
    parser = argparse.ArgumentParser()
    add_decoding_flags(parser)
    return options_of(parser.parse_args(arguments), with_alignment=with_alignment)


CASES = {
    "--beam-size 4": DecodingOptions(beam_size=4),
    "--n-best 3": DecodingOptions(num_hypotheses=3),
    "--length-penalty 0": DecodingOptions(length_penalty=0.0),
    "--coverage-penalty .2": DecodingOptions(coverage_penalty=0.2),
    "--early-stopping": DecodingOptions(early_stopping=True),
    "--no-early-stopping": DecodingOptions(early_stopping=False),
    "--patience 2": DecodingOptions(patience=2.0),
    "--alternatives": DecodingOptions(with_alternatives=True),
    "--guard-repetition": DecodingOptions(guards_repetition=True),
    "--no-guard-repetition": DecodingOptions(guards_repetition=False),
    "--sample": DecodingOptions(sampling=Sampling()),
    "--top-k 0": DecodingOptions(sampling=Sampling(top_k=0)),
    "--top-p .9": DecodingOptions(sampling=Sampling(top_p=0.9)),
    "--temperature .5 --seed 7": DecodingOptions(sampling=Sampling(temperature=0.5, seed=7)),
    "--max-target-tokens 9": DecodingOptions(max_target_tokens=9),
    "--min-target-tokens 0": DecodingOptions(min_target_tokens=0),
    "--max-target-ratio 2": DecodingOptions(max_target_ratio=2.0),
    "--min-target-ratio .5": DecodingOptions(min_target_ratio=0.5),
    "--repetition-penalty 1.2": DecodingOptions(repetition_penalty=1.2),
    "--no-repeat-ngram-size 3": DecodingOptions(no_repeat_ngram_size=3),
    "--suppress a --suppress b": DecodingOptions(suppressed_texts=["a", "b"]),
    "--suppress-token </s>": DecodingOptions(suppressed_tokens=["</s>"]),
    "--no-unknown": DecodingOptions(no_unknown=True),
    "--prefix x --prefix-bias .5": DecodingOptions(target_prefixes=("x",), prefix_bias=0.5),
}


@pytest.mark.parametrize("flags", CASES)
def test_a_flag_says_its_option_and_nothing_else(flags: str) -> None:
    assert options(*flags.split()) == CASES[flags]


def test_every_option_has_a_flag() -> None:
    said = {
        entry.name
        for made in CASES.values()
        for entry in fields(DecodingOptions)
        if getattr(made, entry.name) != getattr(DecodingOptions(), entry.name)
    }
    assert said == {entry.name for entry in fields(DecodingOptions)} - {"with_alignment"}
    assert options() == DecodingOptions()
    assert options(with_alignment=True) == DecodingOptions(with_alignment=True)
