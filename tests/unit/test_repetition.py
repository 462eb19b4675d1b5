"""Loops in a target, found."""

import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from service.repetition import (
    MAX_PERIOD,
    MIN_COPIES,
    MIN_LOOP_TOKENS,
    Loop,
    find_loop,
    is_repetitive,
    unlooped_length,
)

few_kinds = st.lists(st.integers(4, 7), max_size=40)
loops = st.builds(
    lambda before, group, copies, after: before + group * copies + after,
    st.lists(st.integers(4, 9), max_size=8),
    st.lists(st.integers(4, 9), min_size=1, max_size=5),
    st.integers(2, 7),
    st.lists(st.integers(4, 9), max_size=8),
)


def loops_by_definition(ids: list[int]) -> list[Loop]:
    """A group of tokens that stands so many times in a row, so many tokens in all; shortest and first ones first."""
    found = []
    for period in range(1, MAX_PERIOD + 1):
        num_tokens = max(MIN_COPIES * period, MIN_LOOP_TOKENS)
        for start in range(len(ids) - num_tokens + 1):
            if all(ids[start + i] == ids[start + i % period] for i in range(num_tokens)):
                found.append(Loop(start, period))
    return found


@settings(max_examples=400, deadline=None, derandomize=True)
@given(ids=few_kinds | loops)
def test_the_first_loop_of_the_definition_is_found(ids: list[int]) -> None:
    assert find_loop(ids) == next(iter(loops_by_definition(ids)), None)


@settings(max_examples=400, deadline=None, derandomize=True)
@given(ids=few_kinds | loops, cut=st.integers(0, 60))
def test_what_was_told_at_any_time_stays_before_any_loop_that_comes(ids: list[int], cut: int) -> None:
    """Whenever a stream is looked at: whatever loop is not there yet, nothing behind its first copy was told."""
    known = loops_by_definition(ids[:cut])
    told = unlooped_length(ids[:cut])
    for loop in loops_by_definition(ids):
        if loop not in known:
            assert loop.first_stop >= told


@pytest.mark.parametrize(
    ("target", "is_loop"),
    [
        ([5, 6, 7, 8, 9], False),
        ([5] * 6, True),
        ([5] * 5, False),  # "!!!!!"
        ([5, 6] * 4, True),
        ([5, 6] * 3, False),
        ([9, 8, 7] + [5, 6, 7] * 4 + [1, 2], True),  # in the middle
        (list(range(20)) * 4, True),  # a whole sentence again and again
        (list(range(20)) * 3, False),
        ([5, 6, 5, 7] * 3 + [5, 6, 5, 8], False),
        ([], False),
    ],
)
def test_loops(target: list[int], is_loop: bool) -> None:
    assert is_repetitive(target, source_ids=[1, 2, 3]) is is_loop


def test_a_source_that_loops_may_be_answered_so() -> None:
    assert not is_repetitive([5] * 8, source_ids=[4] * 8)
    assert is_repetitive([5] * 8, source_ids=[4] * 3)


def test_any_loop_of_four_is_found_and_no_random_text_is_one() -> None:
    generator = random.Random(1)
    for _ in range(300):
        period = generator.randint(2, 20)
        loop = [generator.randrange(8000) for _ in range(period)]
        around = [generator.randrange(8000) for _ in range(10)]
        assert is_repetitive(around + loop * 4 + around, source_ids=around)
        assert not is_repetitive([generator.randrange(8000) for _ in range(100)], source_ids=around)


def test_where_a_loop_stands() -> None:
    generator = random.Random(2)
    for _ in range(300):
        period = generator.randint(1, MAX_PERIOD)
        group = [generator.randrange(8000) for _ in range(period)]
        before = [generator.randrange(8000, 9000) for _ in range(generator.randint(0, 10))]
        loop = find_loop(before + group * 6 + [9999])
        assert loop is not None
        assert (loop.start, loop.period) == (len(before), period)
        assert loop.first_stop == len(before) + period


def test_what_stands_before_a_repeat_in_the_making_is_certain() -> None:
    """As a target grows into a loop, its first copy ends at or behind all that was certain on the way."""
    generator = random.Random(3)
    num_loops = 0
    for _ in range(500):
        ids: list[int] = []
        certain = 0
        ending = [generator.randrange(4) for _ in range(generator.randint(1, 6))] * 6
        for token in [generator.randrange(4) for _ in range(generator.randint(0, 12))] + ending:
            ids.append(token)
            loop = find_loop(ids)
            if loop is not None:
                assert loop.first_stop >= certain
                num_loops += 1
                break
            certain = max(certain, unlooped_length(ids))
    assert num_loops == 500
