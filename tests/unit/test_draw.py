"""Random draws against a plain computation of the distribution they are drawn from."""

from __future__ import annotations

import itertools
import math

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from service.draw import draw, stream
from service.options import Sampling

GRID = 400
"""Numbers that are drawn with, evenly spread: every token's share of them is its probability, up to one."""


def plain(adjusted: npt.NDArray[np.float64], sampling: Sampling) -> dict[int, float]:
    """The distribution that docs/decoding.md defines: token to probability, of the tokens that may be drawn."""
    weights = {
        token: math.exp(value / sampling.temperature)
        for token, value in enumerate(adjusted.tolist())
        if value > -math.inf
    }
    kept = sorted(weights, key=lambda token: (-weights[token], token))
    if sampling.top_k:
        kept = kept[: sampling.top_k]
    wanted = sampling.top_p * math.fsum(weights[token] for token in kept)
    sums = itertools.accumulate(weights[token] for token in kept)
    if sampling.top_p < 1:
        kept = kept[: 1 + next((i for i, total in enumerate(sums) if total >= wanted), len(kept))]
    whole = math.fsum(weights[token] for token in kept)
    return {token: weights[token] / whole for token in kept}


def some_values(seed: int, size: int, *, num_banned: int = 0, spread: float = 2.0) -> npt.NDArray[np.float64]:
    """Log-probabilities, the first `num_banned` of them at minus infinity."""
    values = np.random.default_rng(seed).normal(size=size) * spread
    values -= np.log(np.exp(values).sum())
    values[:num_banned] = -np.inf
    return values


def drawn(values: npt.NDArray[np.float64], sampling: Sampling) -> list[int]:
    """What is drawn at each number of the grid, in its order."""
    return [draw(values, sampling, (i + 0.5) / GRID) for i in range(GRID)]


@settings(max_examples=120, deadline=None, derandomize=True)
@given(
    seed=st.integers(0, 10**6),
    size=st.sampled_from([1, 5, 40, 300]),
    bans=st.booleans(),
    sampling=st.builds(
        Sampling,
        top_k=st.sampled_from([0, 1, 3, 70, 1000]),
        top_p=st.sampled_from([1.0, 0.999, 0.9, 0.5, 0.01]),
        temperature=st.sampled_from([0.1, 0.7, 1.0, 3.0, 100.0]),
    ),
)
def test_draws_follow_the_plain_distribution(seed: int, size: int, bans: bool, sampling: Sampling) -> None:
    values = some_values(seed, size, num_banned=size // 3 if bans else 0)
    wanted = plain(values, sampling)
    tokens = drawn(values, sampling)
    assert set(tokens) <= set(wanted)
    for token, probability in wanted.items():
        assert abs(tokens.count(token) - GRID * probability) <= 1 + 1e-6
    assert len(list(itertools.groupby(tokens))) == len(set(tokens))  # each token has one stretch of the numbers


def test_a_nucleus_larger_than_the_first_look() -> None:
    values = np.log(np.linspace(1.0, 1.5, 200) / 250.0)
    wanted = plain(values, Sampling(top_p=0.9))
    assert 64 < len(wanted) < 200
    numbers = [(i + 0.5) / 4000 for i in range(4000)]
    assert {draw(values, Sampling(top_p=0.9), number) for number in numbers} == set(wanted)
    both = Sampling(top_k=100, top_p=0.9)
    assert {draw(values, both, number) for number in numbers} == set(plain(values, both))


def test_of_equal_tokens_those_with_the_lowest_ids_are_kept() -> None:
    values = np.full(10, math.log(0.1))
    assert set(drawn(values, Sampling(top_k=3))) == {0, 1, 2}
    assert set(drawn(values, Sampling(top_p=0.35))) == {0, 1, 2, 3}
    assert set(drawn(values, Sampling(top_k=1))) == {0}


@pytest.mark.parametrize(
    "sampling", [Sampling(), Sampling(top_k=8), Sampling(top_p=0.9), Sampling(temperature=0.01), Sampling(top_k=2)]
)
@pytest.mark.parametrize("number", [0.0, np.nextafter(0, 1), 0.5, np.nextafter(1, 0)])
def test_what_is_banned_is_never_drawn(sampling: Sampling, number: float) -> None:
    values = some_values(1, 12)
    values[[0, 1, 5, 10, 11]] = -np.inf  # at both ends and between
    assert values[draw(values, sampling, number)] > -np.inf
    alone = np.full(12, -np.inf)
    alone[7] = -3.0
    assert draw(alone, sampling, number) == 7


def test_a_low_temperature_takes_the_best() -> None:
    values = some_values(2, 50)
    assert set(drawn(values, Sampling(temperature=1e-3))) == {int(values.argmax())}
    small = some_values(3, 50) - 500.0  # whose probabilities are too small for a float before they are compared
    assert set(drawn(small, Sampling(temperature=1e-3))) == {int(small.argmax())}


def test_streams_depend_on_seed_hypothesis_and_source_alone() -> None:
    def numbers(seed: int, hypothesis: int, source_ids: tuple[int, ...]) -> list[float]:
        return stream(seed, hypothesis, source_ids).random(4).tolist()

    given = (7, 1, (5, 6, 3))
    assert numbers(*given) == numbers(*given)
    assert all(0 <= number < 1 for number in numbers(*given))
    others = [(8, 1, (5, 6, 3)), (7, 0, (5, 6, 3)), (7, 1, (5, 7, 3)), (7, 1, (5, 3)), (2**63 - 1, 15, (5, 6, 3))]
    assert len({tuple(numbers(*each)) for each in [given, *others]}) == 6
    one_by_one = stream(*given)
    assert [float(one_by_one.random()) for _ in range(4)] == numbers(*given)
