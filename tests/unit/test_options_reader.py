"""The options of a call: what they come to, what holds where they are left out, and every problem by its field."""

import dataclasses
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from service.call_options import CallOptions
from service.options import MAX_BEAM_SIZE, DecodingOptions, Sampling
from service.options_reader import OptionsReader, built_in_defaults, model_defaults
from service.pb.translation.v1 import translation_pb2 as pb
from service.tokenizer import UNK_ID, Tokenizer
from tests.synthetic.toy_language import make_tokenizer

LIMIT = 100


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    return make_tokenizer(Path(tmp_path_factory.mktemp("tokenizer")) / "tokenizer")


@pytest.fixture(scope="module")
def reader(tokenizer: Tokenizer) -> OptionsReader:
    return reader_with(tokenizer)


def reader_with(tokenizer: Tokenizer, max_beam_size: int = MAX_BEAM_SIZE, **defaults: Any) -> OptionsReader:
    """A reader for a model whose manifest gives these defaults."""
    made = model_defaults(SimpleNamespace(**defaults), limit=LIMIT, max_beam_size=max_beam_size)
    return OptionsReader(tokenizer, made, limit=LIMIT, max_beam_size=max_beam_size)


def read(reader: OptionsReader, *contents: str, **options: Any) -> CallOptions:
    read_options, violations = reader.read(pb.DecodingOptions(**options), contents or ("a",))
    assert violations == []
    return read_options


def problems(reader: OptionsReader, *contents: str, **options: Any) -> dict[str, str]:
    _, violations = reader.read(pb.DecodingOptions(**options), contents or ("a",))
    found = {violation.field.removeprefix("decoding_options."): violation.description for violation in violations}
    assert len(found) == len(violations), "one problem for each field"
    assert all(v.field.startswith("decoding_options.") for v in violations)
    return found


def test_nothing_given_is_greedy_search(reader: OptionsReader) -> None:
    assert reader.default.base == DecodingOptions()
    assert reader.default.for_segment(10).is_plain_greedy
    assert reader.default.for_segment(10).max_target_tokens == 46


def test_every_option_reaches_the_engine(reader: OptionsReader) -> None:
    given = {
        "beam_size": 5,
        "num_hypotheses": 3,
        "length_penalty": 0.6,
        "coverage_penalty": 0.2,
        "early_stopping": False,
        "patience": 2.0,
        "repetition_penalty": 1.5,
        "no_repeat_ngram_size": 4,
        "with_alignment": True,
        "guards_repetition": False,
    }
    base = read(reader, **given).base
    assert {name: getattr(base, name) for name in given} == given
    sampling = pb.Sampling(top_k=7, top_p=0.9, temperature=0.7, seed=2**63 - 1)
    assert read(reader, sampling=sampling).base.sampling == Sampling(
        top_k=7, top_p=0.9, temperature=0.7, seed=2**63 - 1
    )
    assert read(reader, sampling=pb.Sampling()).base.sampling == Sampling()
    assert read(reader, with_alternatives=True, num_hypotheses=9).base.with_alternatives
    engine_fields = {entry.name for entry in dataclasses.fields(DecodingOptions)}
    interface_fields = {entry.name for entry in pb.DecodingOptions.DESCRIPTOR.fields}
    assert engine_fields - interface_fields == {"suppressed_sequences", "target_prefix", "is_scoring"}
    assert interface_fields - engine_fields == {
        "suppressed_texts",
        "target_prefixes",
        "no_unknown",
        "max_target_ratio",
        "min_target_ratio",
    }


@pytest.mark.parametrize(
    ("options", "num_source_tokens", "expected"),
    [
        ({}, 10, (0, 46)),
        ({}, 90, (0, LIMIT)),
        ({"max_target_tokens": 7}, 10, (0, 7)),
        ({"max_target_ratio": 1.1}, 10, (0, 11)),  # as a double: 11, and not 12
        ({"max_target_ratio": 0.01}, 10, (0, 1)),
        ({"max_target_ratio": 2.0, "max_target_tokens": 15}, 10, (0, 15)),
        ({"max_target_ratio": 2.0, "max_target_tokens": 25}, 10, (0, 20)),
        ({"max_target_ratio": 1000.0}, 10, (0, LIMIT)),
        ({"min_target_tokens": 5}, 10, (5, 46)),
        ({"min_target_ratio": 0.55}, 10, (5, 46)),
        ({"min_target_ratio": 0.55, "min_target_tokens": 6}, 10, (6, 46)),
        ({"min_target_ratio": 0.9, "max_target_tokens": 5}, 10, (4, 5)),  # the maximum holds
    ],
)
def test_lengths(
    reader: OptionsReader, options: dict[str, Any], num_source_tokens: int, expected: tuple[int, int]
) -> None:
    made = read(reader, **options).for_segment(num_source_tokens)
    assert (made.min_target_tokens, made.max_target_tokens) == expected
    assert made.problems() == []


def test_a_prefix_has_room(reader: OptionsReader, tokenizer: Tokenizer) -> None:
    options = read(reader, "a", "b", target_prefixes=["该函数", ""], prefix_bias=0.25)
    prefix = tuple(tokenizer.encode_target("该函数"))
    assert options.prefixes == (prefix, ())
    made = options.for_segment(4, prefix)
    assert (made.target_prefix, made.prefix_bias, made.max_target_tokens) == (prefix, 0.25, 3 * 4 + 16 + len(prefix))
    assert options.for_segment(4).prefix_bias == 0
    short = read(reader, target_prefixes=["该函数返回一个整数。"], max_target_ratio=0.1)
    assert short.for_segment(4, short.prefixes[0]).max_target_tokens == len(short.prefixes[0])
    assert read(reader, "a", target_prefixes=[" "]).prefixes == ((),)


def test_suppressed(reader: OptionsReader, tokenizer: Tokenizer) -> None:
    base = read(reader, suppressed_tokens=["。", "</s>"], suppressed_texts=["返回"], no_unknown=True).base
    pieces = tokenizer.target_pieces(base.suppressed_tokens)
    assert pieces[:2] == ["。", "</s>"]
    assert base.suppressed_tokens[-1] == UNK_ID
    written = tuple(tokenizer.encode_target("返回"))
    assert written in [(i,) for i in base.suppressed_tokens] + list(base.suppressed_sequences)


def test_the_manifests_defaults_hold_until_a_call_says_otherwise(tokenizer: Tokenizer) -> None:
    reader = reader_with(
        tokenizer, beam_size=4, length_penalty=0.6, guards_repetition=False, max_target_ratio=2.0, min_target_tokens=9
    )
    assert (reader.default.base.beam_size, reader.default.base.length_penalty) == (4, 0.6)
    assert not reader.default.base.guards_repetition
    made = reader.default.for_segment(10)
    assert (made.min_target_tokens, made.max_target_tokens) == (9, 20)
    assert read(reader, beam_size=1).base.beam_size == 1
    assert read(reader, guards_repetition=True).base.guards_repetition
    assert read(reader, length_penalty=0.0).base.length_penalty == 0
    # What a call gives replaces both defaults of a kind, and a default gives way.
    assert read(reader, max_target_tokens=50).for_segment(10).max_target_tokens == 50
    assert read(reader, max_target_tokens=3).for_segment(10).min_target_tokens == 2
    assert read(reader, min_target_ratio=0.1).for_segment(10).min_target_tokens == 1
    assert read(reader, sampling=pb.Sampling()).base.beam_size == 1
    assert read(reader, with_alternatives=True, num_hypotheses=6).base.beam_size == 1
    assert read(reader, num_hypotheses=6).base.beam_size == 6
    assert read(reader, num_hypotheses=2).base.beam_size == 4


def test_defaults_are_lowered_to_what_fits() -> None:
    decoding = SimpleNamespace(beam_size=8, num_hypotheses=4, max_target_tokens=500)
    made = model_defaults(decoding, limit=64, max_beam_size=2)
    assert (made.beam_size, made.num_hypotheses, made.max_target_tokens) == (2, 2, 64)
    assert model_defaults(None, limit=64, max_beam_size=16) == built_in_defaults()


def test_bad_defaults_are_told_together() -> None:
    decoding = SimpleNamespace(length_penalty=-1.0, patience=0.0, min_target_tokens=-1)
    with pytest.raises(ValueError, match="length_penalty") as caught:
        model_defaults(decoding, limit=64, max_beam_size=16)
    assert [line.split("`")[1] for line in str(caught.value).splitlines()] == [
        "decoding_options.min_target_tokens",
        "decoding_options.length_penalty",
        "decoding_options.patience",
    ]


@pytest.mark.parametrize(
    ("options", "fields"),
    [
        ({"max_target_tokens": -1}, ["max_target_tokens"]),
        ({"max_target_tokens": LIMIT + 1}, ["max_target_tokens"]),
        ({"min_target_tokens": -1}, ["min_target_tokens"]),
        ({"min_target_tokens": LIMIT}, ["min_target_tokens"]),
        ({"min_target_tokens": 5, "max_target_tokens": 5}, ["min_target_tokens"]),
        ({"max_target_ratio": 0.0}, ["max_target_ratio"]),
        ({"max_target_ratio": float("nan")}, ["max_target_ratio"]),
        ({"max_target_ratio": float("inf")}, ["max_target_ratio"]),
        ({"min_target_ratio": -0.5}, ["min_target_ratio"]),
        ({"min_target_ratio": float("nan")}, ["min_target_ratio"]),
        ({"min_target_ratio": 2.0, "max_target_ratio": 1.0}, ["min_target_ratio"]),
        ({"beam_size": 0}, ["beam_size"]),
        ({"beam_size": 17}, ["beam_size"]),
        ({"num_hypotheses": 0}, ["num_hypotheses"]),
        ({"beam_size": 2, "num_hypotheses": 3}, ["num_hypotheses"]),
        ({"length_penalty": -0.1}, ["length_penalty"]),
        ({"length_penalty": float("nan")}, ["length_penalty"]),
        ({"coverage_penalty": 10.1}, ["coverage_penalty"]),
        ({"patience": 0.0}, ["patience"]),
        ({"repetition_penalty": 0.9}, ["repetition_penalty"]),
        ({"no_repeat_ngram_size": -1}, ["no_repeat_ngram_size"]),
        ({"suppressed_tokens": ["no token"]}, ["suppressed_tokens[0]"]),
        ({"suppressed_texts": ["a", " "]}, ["suppressed_texts[1]"]),
        ({"suppressed_texts": ["a" * 33]}, ["suppressed_texts[0]"]),
        ({"suppressed_texts": ["a"] * 129}, ["suppressed_texts"]),
        ({"sampling": pb.Sampling(top_k=-1)}, ["sampling.top_k"]),
        ({"sampling": pb.Sampling(top_p=0.0)}, ["sampling.top_p"]),
        ({"sampling": pb.Sampling(top_p=1.1)}, ["sampling.top_p"]),
        ({"sampling": pb.Sampling(temperature=0.0)}, ["sampling.temperature"]),
        ({"sampling": pb.Sampling(seed=-1)}, ["sampling.seed"]),
        ({"sampling": pb.Sampling(), "beam_size": 2}, ["beam_size"]),
        ({"sampling": pb.Sampling(), "with_alternatives": True}, ["with_alternatives"]),
        ({"with_alternatives": True, "beam_size": 2}, ["beam_size"]),
        ({"prefix_bias": 0.5}, ["target_prefixes"]),
        ({"prefix_bias": 1.0, "target_prefixes": ["a"]}, ["prefix_bias"]),
        ({"target_prefixes": ["a", "b"]}, ["target_prefixes"]),
        ({"target_prefixes": ["该函数返回"], "max_target_tokens": 1}, ["target_prefixes[0]"]),
    ],
    ids=str,
)
def test_each_bad_option_has_one_problem(reader: OptionsReader, options: dict[str, Any], fields: list[str]) -> None:
    found = problems(reader, **options)
    assert list(found) == fields
    assert all(description.startswith("It must ") for description in found.values())


def test_a_prefix_needs_a_text_and_fits_the_model(reader: OptionsReader) -> None:
    found = problems(reader, "a", " ", "b", target_prefixes=["", "x", "整数" * LIMIT])
    assert list(found) == ["target_prefixes[1]", "target_prefixes[2]"]
    assert f"at most {LIMIT} tokens" in found["target_prefixes[2]"]


def test_many_long_texts_have_too_many_ways_to_be_spelled(reader: OptionsReader) -> None:
    texts = [f"the function {i}" for i in range(100)]
    assert list(problems(reader, suppressed_texts=texts)) == ["suppressed_texts"]


def test_all_problems_are_told_together(reader: OptionsReader) -> None:
    found = problems(
        reader,
        max_target_tokens=-1,
        suppressed_texts=[""],
        target_prefixes=["a", "b"],
        beam_size=99,
        patience=-1,
        sampling=pb.Sampling(top_p=2, temperature=-1),
    )
    assert set(found) == {
        "max_target_tokens",
        "suppressed_texts[0]",
        "target_prefixes",
        "beam_size",
        "patience",
        "sampling.top_p",
        "sampling.temperature",
    }


def test_an_engine_of_few_rows_takes_small_beams(tokenizer: Tokenizer) -> None:
    reader = reader_with(tokenizer, max_beam_size=2, beam_size=4)
    assert reader.default.base.beam_size == 2
    assert "at most 2" in problems(reader, beam_size=3)["beam_size"]
    assert list(problems(reader, with_alternatives=True, num_hypotheses=3)) == ["num_hypotheses"]
