"""The highest load at which a server still answers in time: the search for it, apart from how loads are measured.

Loads lie on a ladder of rates, each a fixed factor above the one before. A rung *holds* a bound when the 95th
percentile of latency at that rate is within it; a failed call counts as one that is never answered. Goodput is the rate
of the highest rung that holds, judged by the median of several repeats.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Sequence


def rate_of(rung: int, *, lowest: float, step: float) -> float:
    """Calls per second of a rung, the first being 0."""
    return lowest * step**rung


def rung_of(rate: float, *, lowest: float, step: float) -> int:
    """The highest rung whose rate is not above `rate`; 0 where even the first is.

    Raises:
        ValueError: when the rate is not above 0.
    """
    if rate <= 0:
        raise ValueError(f"A rate must be above 0, but is {rate}.")
    return max(0, math.floor(math.log(rate / lowest) / math.log(step) + 1e-9))


def highest_holding(holds: Callable[[int], bool], low: int, high: int) -> int:
    """The highest rung in [low, high] that holds, by bisection; `low` - 1 when none does.

    Load is taken to be monotone: what holds at a rung holds below. Noise can make it otherwise; `settled` sees to that.
    """
    good, bad = low - 1, high + 1
    while bad - good > 1:
        middle = (good + bad) // 2
        if holds(middle):
            good = middle
        else:
            bad = middle
    return good


def settled(percentiles_at: Callable[[int], Sequence[float]], start: int, bound: float, *, moves: int) -> int:
    """The highest rung near `start` whose median holds, where the one above does not.

    Args:
        percentiles_at: measures a rung until it has repeats enough, and returns their 95th percentiles.
        start: where to begin; below 0 there is no load.
        bound: what the median must not exceed.
        moves: how many rungs up or down it may go from `start`.

    Returns:
        The rung; -1 when not even the lowest holds, or the search ran out of moves going down.
    """

    def holds(rung: int) -> bool:
        return statistics.median(percentiles_at(rung)) <= bound

    lowest = max(0, start - moves)
    rung = max(start, 0)
    if holds(rung):
        while rung < start + moves and holds(rung + 1):
            rung += 1
        return rung
    while rung > lowest:
        rung -= 1
        if holds(rung):
            return rung
    return -1
