"""Whatever options a call gives: either they are refused, or the engine takes what they come to for every segment."""

from __future__ import annotations

import math
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from service.options_reader import OptionsReader, built_in_defaults
from service.pb.translation.v1 import translation_pb2 as pb
from service.tokenizer import EOS_ID, Tokenizer
from tests.synthetic.toy_language import make_tokenizer

LIMIT, MAX_ROWS = 60, 6
NUMBERS = st.floats(-1, 20) | st.sampled_from([0.0, 1.0, math.nan, math.inf, -math.inf])
COUNTS = st.integers(-1, 20)
TEXTS = st.lists(st.sampled_from(["", "该函数", "返回 x", "🙂", "▁", "整数" * 20]) | st.text(max_size=5), max_size=3)
SAMPLING = st.fixed_dictionaries(
    {}, optional={"top_k": COUNTS, "top_p": NUMBERS, "temperature": NUMBERS, "seed": st.integers(-1, 2**63 - 1)}
).map(lambda fields: pb.Sampling(**fields))
OPTIONAL: dict[str, Any] = {
    "max_target_tokens": st.integers(-1, LIMIT + 5),
    "min_target_tokens": st.integers(-1, LIMIT + 5),
    "max_target_ratio": NUMBERS,
    "min_target_ratio": NUMBERS,
    "beam_size": COUNTS,
    "num_hypotheses": COUNTS,
    "length_penalty": NUMBERS,
    "coverage_penalty": NUMBERS,
    "early_stopping": st.booleans(),
    "patience": NUMBERS,
    "repetition_penalty": NUMBERS,
    "no_repeat_ngram_size": COUNTS,
    "suppressed_tokens": st.lists(st.sampled_from(["。", "</s>", "<unk>", "nothing"]), max_size=3),
    "suppressed_texts": TEXTS,
    "no_unknown": st.booleans(),
    "sampling": SAMPLING,
    "target_prefixes": TEXTS,
    "prefix_bias": NUMBERS,
    "with_alternatives": st.booleans(),
    "with_alignment": st.booleans(),
    "guards_repetition": st.booleans(),
}
SOUND: dict[str, Any] = {  # most of these are taken
    "max_target_tokens": st.integers(1, LIMIT),
    "min_target_tokens": st.integers(0, LIMIT // 2),
    "max_target_ratio": st.floats(0.01, 5),
    "min_target_ratio": st.floats(0, 5),
    "beam_size": st.integers(1, MAX_ROWS),
    "num_hypotheses": st.integers(1, MAX_ROWS),
    "length_penalty": st.floats(0, 10),
    "suppressed_texts": st.lists(st.sampled_from(["该函数", "返回 x", "🙂"]), max_size=3),
    "sampling": st.just(pb.Sampling(top_k=3)),
    "target_prefixes": st.lists(st.sampled_from(["", "该函数", "返回 x"]), min_size=2, max_size=2),
    "with_alternatives": st.booleans(),
}
DEFAULTS: dict[str, Any] = {
    "max_target_tokens": st.integers(1, LIMIT),
    "min_target_tokens": st.integers(0, LIMIT - 1),
    "beam_size": st.integers(1, MAX_ROWS),
    "max_target_ratio": st.floats(0.01, 5),
    "min_target_ratio": st.floats(0, 5),
}


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    return make_tokenizer(tmp_path_factory.mktemp("tokenizer") / "tokenizer")


def test_every_option_is_tried() -> None:
    assert set(OPTIONAL) == {entry.name for entry in pb.DecodingOptions.DESCRIPTOR.fields}


@settings(max_examples=400, deadline=None)
@given(
    given_options=st.fixed_dictionaries({}, optional=OPTIONAL) | st.fixed_dictionaries({}, optional=SOUND),
    default_options=st.fixed_dictionaries({}, optional=DEFAULTS),
    source_lengths=st.lists(st.integers(1, 40), min_size=1, max_size=4),
)
def test_what_is_not_refused_is_sound(
    tokenizer: Tokenizer,
    given_options: dict[str, Any],
    default_options: dict[str, Any],
    source_lengths: list[int],
) -> None:
    defaults = built_in_defaults()
    defaults.MergeFrom(pb.DecodingOptions(**default_options))
    reader = OptionsReader(tokenizer, defaults, limit=LIMIT, max_beam_size=MAX_ROWS)
    options, violations = reader.read(pb.DecodingOptions(**given_options), ["one", "two"])
    fields = [violation.field for violation in violations]
    assert len(set(fields)) == len(fields)
    assert all(violation.description.startswith("It must ") for violation in violations)
    if violations:
        return
    for length in source_lengths:
        for prefix in {(), *options.prefixes}:
            made = options.for_segment(length, prefix)
            assert made.problems(max_rows=MAX_ROWS, vocabulary_size=tokenizer.target_vocab_size) == []
            assert made.max_target_tokens is not None
            assert len(prefix) <= made.max_target_tokens <= LIMIT
            assert made.num_rows <= MAX_ROWS


@settings(max_examples=200, deadline=None)
@given(given_options=st.fixed_dictionaries({}, optional=OPTIONAL), text=st.text(max_size=20))
def test_what_is_not_refused_can_be_scored(tokenizer: Tokenizer, given_options: dict[str, Any], text: str) -> None:
    reader = OptionsReader(tokenizer, built_in_defaults(), limit=LIMIT, max_beam_size=MAX_ROWS)
    options, violations = reader.read_for_scoring(pb.DecodingOptions(**given_options))
    target = (*tokenizer.encode_target(text), EOS_ID)
    if not violations and len(target) <= LIMIT:
        made = options.for_segment(1, target)
        assert made.problems(max_rows=1, vocabulary_size=tokenizer.target_vocab_size) == []
