"""Loops in a target: found, and kept away from what a stream hands out too early."""

from __future__ import annotations

from collections.abc import Sequence
from operator import eq
from typing import NamedTuple

MAX_PERIOD = 24
MIN_COPIES = 4
MIN_LOOP_TOKENS = 6
GUARD_NGRAM_SIZE = 3
"""No n-gram of this size may recur where a loop was decoded again."""


class Loop(NamedTuple):
    """A group of tokens that stands several times in a row."""

    start: int
    """Where its first copy begins."""
    period: int
    """Tokens of a copy."""

    @property
    def first_stop(self) -> int:
        """Where its first copy ends."""
        return self.start + self.period


def find_loop(ids: Sequence[int]) -> Loop | None:
    """The loop with the shortest period: a group of 1 to `MAX_PERIOD` tokens that stands at least `MIN_COPIES` times in
    a row, `MIN_LOOP_TOKENS` tokens in all. Two or three copies occur in good translations.

    The usual sentence has few equal tokens and is answered by one count.
    """
    length = len(ids)
    if length - len(set(ids)) < MIN_LOOP_TOKENS - 1:  # a loop has at least so many equal ones
        return None
    for period in range(1, min(MAX_PERIOD, length // MIN_COPIES) + 1):
        needed = max(MIN_COPIES * period, MIN_LOOP_TOKENS) - period  # equal pairs one period apart, in a row
        if sum(map(eq, ids, ids[period:])) < needed:  # in a row or not
            continue
        run = 0
        for i in range(length - period):
            run = run + 1 if ids[i] == ids[i + period] else 0
            if run >= needed:
                return Loop(i + 1 - run, period)
    return None


def is_repetitive(target_ids: Sequence[int], source_ids: Sequence[int]) -> bool:
    """Whether the target loops where the source does not: a source that itself loops may be answered so."""
    return find_loop(target_ids) is not None and find_loop(source_ids) is None


def unlooped_length(ids: Sequence[int]) -> int:
    """How many of the first tokens stand before any repeat that the last tokens may be making.

    Should the tokens grow into a loop, its first copy ends there or later, whatever its period: what stands before it
    is never taken back by the repetition guard.
    """
    length = len(ids)
    least = length
    for period in range(1, min(MAX_PERIOD, length - 1) + 1):
        at = length
        while at > period and ids[at - 1] == ids[at - 1 - period]:
            at -= 1
        least = min(least, at)
    return least
