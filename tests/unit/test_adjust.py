"""Adjusted log-probabilities: the same by the candidates alone and by the whole vocabulary, and as defined."""

from __future__ import annotations

import math
import random
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from service.adjust import Adjuster, Continuation
from service.options import DecodingOptions
from service.tokenizer import BOS_ID, EOS_ID, PAD_ID
from tests.parity import reference_search

NEVER = -1.0e9  # what a graph has for tokens that cannot occur


class Case(NamedTuple):
    """A hypothesis, what may follow it, and options."""

    options: DecodingOptions
    target_ids: list[int]
    row: npt.NDArray[np.float32]

    def adjuster(self) -> Adjuster:
        return Adjuster(self.options, eos_id=EOS_ID)

    def best(self, num_candidates: int, count: int) -> list[Continuation]:
        """What `Adjuster.best` makes of so many candidates."""
        order = np.argsort(-self.row, kind="stable")[:num_candidates]
        return self.adjuster().best(self.target_ids, order.tolist(), self.row[order].tolist(), self.row, count)

    def best_of_all(self, count: int) -> list[Continuation]:
        """The same from `Adjuster.all`."""
        adjusted = self.adjuster().all(self.target_ids, self.row)
        tokens = np.flatnonzero(adjusted > -np.inf).tolist()
        return sorted((-float(adjusted[token]), token, float(self.row[token])) for token in tokens)[:count]


def row_of(values: dict[int, float], vocabulary_size: int = 12) -> npt.NDArray[np.float32]:
    """Log-probabilities, -9 where nothing is said."""
    row = np.full(vocabulary_size, -9.0, np.float32)
    row[[PAD_ID, BOS_ID]] = NEVER
    for token_id, value in values.items():
        row[token_id] = value
    return row


def random_case(chance: random.Random) -> Case:
    """Short hypotheses over few tokens, so that every rule applies often, and equal values come about."""
    vocabulary_size = chance.choice([8, 12, 30, 200])

    def some_ids(most: int) -> tuple[int, ...]:
        return tuple(chance.choices([EOS_ID, *range(4, vocabulary_size)], k=chance.randint(1, most)))

    target_ids = [chance.randrange(4, min(vocabulary_size, 12)) for _ in range(chance.randrange(10))]
    given: dict[str, Any] = {}
    if chance.random() < 0.5:
        given["repetition_penalty"] = chance.choice([1.1, 2.0, 9.0])
    if chance.random() < 0.5:
        given["no_repeat_ngram_size"] = chance.randint(1, 4)
    if chance.random() < 0.5:
        given["suppressed_tokens"] = some_ids(chance.choice([3, 3, vocabulary_size]))
    if chance.random() < 0.1:
        given["suppressed_tokens"] = tuple(chance.sample(range(vocabulary_size), vocabulary_size - chance.randrange(3)))
    if chance.random() < 0.5:
        given["suppressed_sequences"] = tuple(
            (*target_ids[-chance.randint(1, 3) :], *some_ids(2)) if chance.random() < 0.7 else some_ids(3)
            for _ in range(chance.randint(1, 4))
        )
    if chance.random() < 0.3:
        given["min_target_tokens"] = chance.randint(1, 12)
    if chance.random() < 0.5:
        follows = chance.random() < 0.7
        given["target_prefix"] = (*target_ids[: chance.randint(0, 10)], *some_ids(3)) if follows else some_ids(8)
        given["prefix_bias"] = chance.choice([0.01, 0.5, 0.99])
    logits = np.random.default_rng(chance.randrange(2**32)).normal(size=vocabulary_size) * chance.choice([0.5, 2, 5])
    logits -= np.log(np.exp(logits).sum())
    if chance.random() < 0.3:
        logits = np.round(logits)
    logits[[PAD_ID, BOS_ID]] = NEVER
    return Case(DecodingOptions(**given), target_ids, np.minimum(logits, 0).astype(np.float32))


@settings(max_examples=800, deadline=None, derandomize=True)
@given(seed=st.integers(0, 10**9))
def test_candidates_and_the_whole_vocabulary_give_identical_numbers(seed: int) -> None:
    chance = random.Random(seed)
    case = random_case(chance)
    for _ in range(4):
        count = chance.randint(1, 8)
        num_candidates = min(case.row.size, count + chance.choice([0, 1, 8]))
        assert case.best(num_candidates, count) == case.best_of_all(count)
    assert case.best(case.row.size, 5) == case.best_of_all(5)


@settings(max_examples=800, deadline=None, derandomize=True)
@given(seed=st.integers(0, 10**9))
def test_all_tokens_are_adjusted_as_defined(seed: int) -> None:
    case = random_case(random.Random(seed))
    row = np.where(case.row == np.float32(NEVER), -np.inf, case.row)
    with np.errstate(divide="ignore", invalid="ignore"):
        wanted = reference_search.adjusted(row, tuple(case.target_ids), case.options)
    adjusted = case.adjuster().all(case.target_ids, case.row)
    np.testing.assert_array_equal(np.isneginf(adjusted), np.isneginf(wanted))
    np.testing.assert_allclose(adjusted, wanted, rtol=1e-12)


def test_a_token_outside_the_candidates_can_win() -> None:
    row = row_of({5: -0.1, 6: -0.2, 7: -3.0, 8: -3.5, 9: -4.0})
    banned = Case(DecodingOptions(suppressed_tokens=(5, 6)), [], row)
    assert [token for _, token, _ in banned.best(2, 2)] == [7, 8]
    lowered = Case(DecodingOptions(repetition_penalty=10.0), [6, 7], row)
    assert [token for _, token, _ in lowered.best(3, 3)] == [5, 6, 8]  # 6 is at -2 now, 7 at -30
    equal = Case(DecodingOptions(repetition_penalty=2.0), [9], row_of({9: -1.0, 10: -1.5, 4: -2.0}))
    assert [token for _, token, _ in equal.best(2, 2)] == [10, 4]  # 4 and 9 are both at -2: the lower id
    # 9 came down to -2, where 5 is banned and 6 is not among the candidates: 6 has the lower id.
    last = Case(
        DecodingOptions(repetition_penalty=2.0, suppressed_tokens=(5,)), [9], row_of({9: -1.0, 5: -2.0, 6: -2.0})
    )
    assert [token for _, token, _ in last.best(2, 1)] == [6]


def test_log_probabilities_stay_the_models_own() -> None:
    case = Case(DecodingOptions(repetition_penalty=2.0), [5], row_of({5: -0.5, 6: -0.75}))
    assert case.best(4, 2) == [(0.75, 6, -0.75), (1.0, 5, -0.5)]


@pytest.mark.parametrize(
    ("size", "target_ids", "banned"),
    [
        (1, [5, 6], {5, 6}),
        (2, [5, 6, 7, 5], {6}),
        (2, [5, 5], {5}),
        (3, [5, 6, 7, 8, 5, 6], {7}),
        (3, [5, 6], set()),
        (3, [5, 5, 5], {5}),
        (4, [5, 6, 7, 5, 6, 7], {5}),
        (2, [], set()),
    ],
)
def test_no_ngram_occurs_twice(size: int, target_ids: list[int], banned: set[int]) -> None:
    adjusted = Adjuster(DecodingOptions(no_repeat_ngram_size=size), eos_id=EOS_ID).all(target_ids, row_of({}))
    assert set(np.flatnonzero(np.isneginf(adjusted)).tolist()) - {PAD_ID, BOS_ID} == banned


@pytest.mark.parametrize(
    ("target_ids", "banned"),
    [([], {9}), ([5], {9, 6}), ([6, 5], {9, 6}), ([5, 6], {9, 7}), ([7, 5, 6], {9, 7}), ([5, 6, 7], {9})],
)
def test_suppressed_sequences(target_ids: list[int], banned: set[int]) -> None:
    options = DecodingOptions(suppressed_sequences=((5, 6, 7), (5, 6), (9,)))
    adjusted = Adjuster(options, eos_id=EOS_ID).all(target_ids, row_of({}))
    assert set(np.flatnonzero(np.isneginf(adjusted)).tolist()) - {PAD_ID, BOS_ID} == banned


def test_the_end_of_sentence_comes_not_before_the_least_length() -> None:
    adjuster = Adjuster(DecodingOptions(min_target_tokens=2), eos_id=EOS_ID)
    for length in range(4):
        assert np.isneginf(adjuster.all([5, 6, 7][:length], row_of({}))[EOS_ID]) == (length < 2)


def test_a_prefix_is_favoured_while_it_is_followed() -> None:
    options = DecodingOptions(target_prefix=(5, 6), prefix_bias=0.25)
    adjuster = Adjuster(options, eos_id=EOS_ID)
    row = row_of({5: math.log(0.5), 6: math.log(0.25), 7: math.log(0.125)})
    for target_ids, favoured in (([], 5), ([5], 6)):
        probabilities = np.exp(adjuster.all(target_ids, row))
        for token_id, own in ((5, 0.5), (6, 0.25), (7, 0.125)):
            wanted = 0.75 * own + (0.25 if token_id == favoured else 0.0)
            assert probabilities[token_id] == pytest.approx(wanted, rel=1e-6)
    for target_ids in ([6], [5, 7], [5, 6], [5, 6, 7], [4, 6]):
        np.testing.assert_array_equal(
            adjuster.all(target_ids, row), np.where(row == np.float32(NEVER), -np.inf, row.astype(np.float64))
        )


def test_a_favoured_token_wins_from_far_outside_the_candidates() -> None:
    case = Case(DecodingOptions(target_prefix=(9,), prefix_bias=0.9), [], row_of({5: -0.1, 6: -3.0, 9: -8.0}))
    (first, second) = case.best(2, 2)
    assert (first[1], first[2], second[1]) == (9, -8.0, 5)
    assert -first[0] == pytest.approx(math.log(0.1 * math.exp(-8) + 0.9))


def test_where_nothing_may_follow_the_end_of_sentence_does() -> None:
    row = row_of({5: -0.1, EOS_ID: -4.0})
    everything = tuple(range(12))
    for options, value in (
        (DecodingOptions(suppressed_tokens=everything), -4.0),
        (DecodingOptions(suppressed_tokens=everything, repetition_penalty=3.0), -4.0),
        (
            DecodingOptions(suppressed_tokens=everything, target_prefix=(5,), prefix_bias=0.5),
            -4.0 + math.log(0.5),
        ),
        (
            DecodingOptions(suppressed_tokens=everything, target_prefix=(EOS_ID,), prefix_bias=0.5),
            math.log(0.5 * math.exp(-4.0) + 0.5),
        ),
    ):
        case = Case(options, [], row)
        ((negative, token_id, own),) = case.best(4, 3)
        assert (token_id, own) == (EOS_ID, -4.0)
        assert -negative == pytest.approx(value)
        adjusted = case.adjuster().all([], row)
        assert np.flatnonzero(adjusted > -np.inf).tolist() == [EOS_ID]
        assert adjusted[EOS_ID] == -negative


@pytest.mark.parametrize("num_candidates", [2, 8, 12])
def test_what_cannot_occur_is_never_a_continuation(num_candidates: int) -> None:
    case = Case(DecodingOptions(suppressed_tokens=(1, *range(5, 12))), [], row_of({4: -2.0}))
    assert case.best(num_candidates, 6) == [(2.0, 4, -2.0), (9.0, EOS_ID, -9.0)]
    assert np.isneginf(case.adjuster().all([], case.row)[[PAD_ID, BOS_ID]]).all()
