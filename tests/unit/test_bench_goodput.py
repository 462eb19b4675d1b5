"""The search for the highest load that holds a bound."""

import math
import random
from collections.abc import Sequence

import pytest

from benchmarks.goodput import highest_holding, rate_of, rung_of, settled


def test_a_rung_and_its_rate_belong_together() -> None:
    for rung in range(60):
        rate = rate_of(rung, lowest=4.0, step=1.08)
        assert rung_of(rate, lowest=4.0, step=1.08) == rung
        assert rung_of(rate * 1.079, lowest=4.0, step=1.08) == rung
    assert rung_of(1.0, lowest=4.0, step=1.08) == 0
    with pytest.raises(ValueError, match="above 0"):
        rung_of(0.0, lowest=4.0, step=1.08)


@pytest.mark.parametrize("limit", range(-1, 13))
def test_bisection_finds_the_highest_rung_that_holds(limit: int) -> None:
    tried: list[int] = []

    def holds(rung: int) -> bool:
        tried.append(rung)
        return rung <= limit

    assert highest_holding(holds, 0, 11) == min(limit, 11)
    assert len(tried) <= 4
    assert len(set(tried)) == len(tried)


def test_bisection_stays_inside_its_range() -> None:
    assert highest_holding(lambda _: False, 5, 9) == 4
    assert highest_holding(lambda _: True, 5, 9) == 9


@pytest.mark.parametrize("start", range(4, 17))
def test_the_median_decides_wherever_the_search_begins(start: int) -> None:
    chance = random.Random(start)

    def percentiles_at(rung: int) -> Sequence[float]:
        """The median holds up to rung 10; one in three is an outlier either way."""
        median = 1.0 if rung <= 10 else 3.0
        return chance.sample([median, 0.0, math.inf], 3)

    assert settled(percentiles_at, start, 2.0, moves=6) == 10


def test_a_search_that_runs_out_of_moves_says_so() -> None:
    assert settled(lambda _: [9.0], 8, 2.0, moves=3) == -1
    assert settled(lambda _: [9.0], -1, 2.0, moves=3) == -1
    assert settled(lambda _: [1.0], 8, 2.0, moves=3) == 11
    assert settled(lambda rung: [1.0 if rung == 0 else 9.0], -1, 2.0, moves=3) == 0
