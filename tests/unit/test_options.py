"""Which decoding options are refused, and in which words."""

from __future__ import annotations

import dataclasses
import math
import random
from typing import Any

import pytest

from service.options import MAX_BEAM_SIZE, MAX_LISTED_SEQUENCES, MAX_LISTED_TOKENS, DecodingOptions, Sampling
from tests.synthetic.random_options import random_options


def problems(**given: Any) -> list[str]:
    return DecodingOptions(**given).problems(max_rows=64, vocabulary_size=100)


@pytest.mark.parametrize(
    ("name", "sound", "unsound", "words"),
    [
        ("beam_size", [1, 16], [0, -1, 17], "must be at least 1 and at most 16"),
        ("length_penalty", [0, 0.6, 10], [-0.1, 10.1, math.nan, math.inf], "must be at least 0 and at most 10"),
        ("coverage_penalty", [0, 0.2, 10], [-0.1, 10.1, math.nan], "must be at least 0 and at most 10"),
        ("patience", [0.1, 1, 16], [0, -1, 16.5, math.nan], "must be above 0 and at most 16"),
        ("repetition_penalty", [1, 1.2, 10], [0.9, 0, 10.5, math.nan], "must be at least 1 and at most 10"),
        ("no_repeat_ngram_size", [0, 1, 50], [-1], "must be at least 0, but is -1"),
        ("min_target_tokens", [0, 1, 1000], [-1], "must be at least 0, but is -1"),
        ("max_target_tokens", [None, 1, 1000], [0, -3], "must be at least 1"),
    ],
)
def test_bounds(name: str, sound: list[Any], unsound: list[Any], words: str) -> None:
    for value in sound:
        assert problems(**{name: value}) == []
    for value in unsound:
        (problem,) = problems(**{name: value})
        assert problem.startswith(f"`{name}` ")
        assert words in problem
        assert f"but is {value}" in problem


@pytest.mark.parametrize(
    ("name", "sound", "unsound", "words"),
    [
        ("top_k", [0, 1, 10_000], [-1], "must be at least 0"),
        ("top_p", [0.01, 1], [0, -0.5, 1.1, math.nan], "must be above 0 and at most 1"),
        ("temperature", [0.01, 1, 100], [0, -1, 100.5, math.inf], "must be above 0 and at most 100"),
        ("seed", [0, 2**63 - 1], [-1, 2**63], "must be at least 0 and at most 9223372036854775807"),
    ],
)
def test_bounds_of_sampling(name: str, sound: list[Any], unsound: list[Any], words: str) -> None:
    for value in sound:
        assert problems(sampling=Sampling(**{name: value})) == []
    for value in unsound:
        (problem,) = problems(sampling=Sampling(**{name: value}))
        assert problem.startswith(f"`sampling.{name}` ")
        assert words in problem
        assert f"but is {value}" in problem


def test_bounds_of_the_bias() -> None:
    for value in (0.0, 0.5, 0.999):
        assert problems(prefix_bias=value, target_prefix=(5,)) == []
    for value in (-0.1, 1.0, math.nan):
        (problem,) = problems(prefix_bias=value, target_prefix=(5,))
        assert "`prefix_bias` must be at least 0 and below 1, but is" in problem


@pytest.mark.parametrize(
    ("given", "most"),
    [
        ({}, 1),
        ({"beam_size": 4}, 4),
        ({"sampling": Sampling()}, 16),
        ({"with_alternatives": True}, 16),
    ],
)
def test_as_many_results_as_there_are_hypotheses(given: dict[str, Any], most: int) -> None:
    assert problems(**given, num_hypotheses=most) == []
    for wrong in (0, most + 1):
        (problem,) = problems(**given, num_hypotheses=wrong)
        assert problem == f"`num_hypotheses` must be at least 1 and at most {most}, but is {wrong}."


def test_no_more_rows_than_the_engine_has() -> None:
    assert DecodingOptions(beam_size=3).problems(max_rows=3) == []
    assert DecodingOptions(beam_size=MAX_BEAM_SIZE).problems() == []
    (problem,) = DecodingOptions(beam_size=4).problems(max_rows=3)
    assert problem == "`beam_size` must be at least 1 and at most 3, but is 4."
    (problem,) = DecodingOptions(num_hypotheses=4, sampling=Sampling()).problems(max_rows=3)
    assert problem == "`num_hypotheses` must be at least 1 and at most 3, but is 4."


@pytest.mark.parametrize(
    ("given", "problem"),
    [
        (
            {"min_target_tokens": 5, "max_target_tokens": 5},
            "`min_target_tokens` must be below `max_target_tokens` 5, but is 5.",
        ),
        (
            {"target_prefix": (5, 6, 7), "max_target_tokens": 2},
            "`target_prefix` must have at most `max_target_tokens` 2 tokens, but has 3.",
        ),
        ({"sampling": Sampling(), "beam_size": 2}, "`beam_size` must be 1 with `sampling`, but is 2."),
        ({"with_alternatives": True, "beam_size": 2}, "`beam_size` must be 1 with `with_alternatives`, but is 2."),
        ({"sampling": Sampling(), "with_alternatives": True}, "`with_alternatives` must be off with `sampling`."),
        (
            {"sampling": Sampling(), "prefix_bias": 0.5, "target_prefix": (5,)},
            "`prefix_bias` must be 0 with `sampling`.",
        ),
        (
            {"with_alternatives": True, "prefix_bias": 0.5, "target_prefix": (5,)},
            "`prefix_bias` must be 0 with `with_alternatives`.",
        ),
        ({"prefix_bias": 0.5}, "`target_prefix` must be given with `prefix_bias`."),
        (
            {"suppressed_tokens": (5,) * (MAX_LISTED_TOKENS + 1)},
            "`suppressed_tokens` must have at most 1024 tokens, but has 1025.",
        ),
        (
            {"suppressed_sequences": ((5, 6),) * (MAX_LISTED_SEQUENCES + 1)},
            "`suppressed_sequences` must have at most 128 sequences, but has 129.",
        ),
        ({"suppressed_sequences": ((5,), ())}, "`suppressed_sequences` must have no empty sequence."),
        (
            {"suppressed_tokens": (5, 100)},
            "`suppressed_tokens` must have token ids between 0 and 99, but reaches from 5 to 100.",
        ),
        (
            {"suppressed_sequences": ((5, -1), (7,))},
            "`suppressed_sequences` must have token ids between 0 and 99, but reaches from -1 to 7.",
        ),
        (
            {"target_prefix": (100,)},
            "`target_prefix` must have token ids between 0 and 99, but reaches from 100 to 100.",
        ),
        ({"is_scoring": True}, "`target_prefix` must be the target to score, but is empty."),
    ],
)
def test_what_does_not_go_together(given: dict[str, Any], problem: str) -> None:
    assert problems(**given) == [problem]


@pytest.mark.parametrize(
    "given",
    [
        {"beam_size": 2},
        {"sampling": Sampling()},
        {"with_alternatives": True},
        {"repetition_penalty": 2.0},
        {"min_target_tokens": 3},
        {"prefix_bias": 0.5},
    ],
)
def test_a_target_is_scored_without_any_search(given: dict[str, Any]) -> None:
    assert problems(is_scoring=True, target_prefix=(5, 3), with_alignment=True, length_penalty=0.5) == []
    (problem,) = problems(is_scoring=True, target_prefix=(5, 3), **given)
    assert problem.startswith("Nothing but lengths and alignment may be asked for")


def test_every_problem_is_named_together() -> None:
    wrong = DecodingOptions(
        beam_size=20,
        num_hypotheses=30,
        length_penalty=-1,
        coverage_penalty=-1,
        patience=0,
        repetition_penalty=0.5,
        no_repeat_ngram_size=-1,
        min_target_tokens=9,
        max_target_tokens=4,
        suppressed_tokens=(500,),
        suppressed_sequences=((), (600,)),
        target_prefix=(700,) * 5,
        prefix_bias=0.5,
        sampling=Sampling(top_k=-1, top_p=2, temperature=0, seed=-1),
        with_alternatives=True,
    )
    found = wrong.problems(max_rows=64, vocabulary_size=100)
    assert len(found) == len(set(found)) == 22
    text = " ".join(found)
    for field in dataclasses.fields(DecodingOptions):
        if field.name not in {"early_stopping", "is_scoring", "with_alignment", "guards_repetition"}:
            assert field.name in text
    for name in ("top_k", "top_p", "temperature", "seed"):
        assert f"`sampling.{name}`" in text


def test_a_limit_out_of_bounds_is_named_once() -> None:
    assert len(problems(max_target_tokens=0, min_target_tokens=1, target_prefix=(5,))) == 1


def test_what_is_random_is_sound() -> None:
    chance = random.Random(1)
    for _ in range(500):
        options = random_options(chance, vocabulary_size=40, max_target_tokens=12)
        assert options.problems(max_rows=8, vocabulary_size=40) == []
        assert options.num_rows <= 8


@pytest.mark.parametrize(
    ("given", "num_rows"),
    [
        ({}, 1),
        ({"beam_size": 5, "num_hypotheses": 3}, 5),
        ({"num_hypotheses": 3, "sampling": Sampling()}, 3),
        ({"num_hypotheses": 7, "with_alternatives": True}, 7),
    ],
)
def test_rows(given: dict[str, Any], num_rows: int) -> None:
    assert DecodingOptions(**given).num_rows == num_rows


def test_what_makes_greedy_search_more_than_the_best_token() -> None:
    assert DecodingOptions(max_target_tokens=9, length_penalty=2.0, guards_repetition=False).is_plain_greedy
    for given in (
        {"beam_size": 2},
        {"sampling": Sampling()},
        {"with_alternatives": True},
        {"with_alignment": True},
        {"coverage_penalty": 0.5},
        {"target_prefix": (5,)},
        {"suppressed_tokens": (5,)},
    ):
        assert not DecodingOptions(**given).is_plain_greedy  # type: ignore[arg-type]


def test_what_adjusts() -> None:
    assert not DecodingOptions(beam_size=4, target_prefix=(5,), coverage_penalty=1.0).adjusts
    for given in (
        {"repetition_penalty": 1.1},
        {"no_repeat_ngram_size": 3},
        {"suppressed_tokens": (5,)},
        {"suppressed_sequences": ((5, 6),)},
        {"min_target_tokens": 1},
        {"target_prefix": (5,), "prefix_bias": 0.5},
    ):
        assert DecodingOptions(**given).adjusts  # type: ignore[arg-type]
