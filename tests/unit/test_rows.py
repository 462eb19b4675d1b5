"""Rows and lanes of the running batch: who owns what, what is copied, against a plain account of all of it."""

from __future__ import annotations

import random
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from service.rows import LaneCopy, RowCopy, RowStore
from service.tokenizer import BOS_ID

MAX_ROWS = 7
MAX_TARGET_TOKENS = 6


@dataclass(eq=False)
class Owner:
    """A tenant that notes what it is told."""

    source_length: int = 3
    lane: int = -1
    rows: list[int] = field(default_factory=list)
    renumbered: list[tuple[int, int]] = field(default_factory=list)

    def renumber(self, old_row: int, new_row: int) -> None:
        """See `Tenant`."""
        self.renumbered.append((old_row, new_row))


def new_store(max_rows: int = MAX_ROWS) -> RowStore:
    return RowStore(max_rows=max_rows, max_target_tokens=MAX_TARGET_TOKENS, bos_id=BOS_ID)


def twin_of(store: RowStore) -> RowStore:
    """Another store with the same rows, as far as branching looks at them."""
    twin = new_store()
    for name in ("tokens", "log_probabilities", "_cells", "lengths", "last_ids", "scores"):
        getattr(twin, name)[:] = getattr(store, name)
    return twin


def entered(store: RowStore, num_rows: int, *, source_length: int = 3, limit: int = 5) -> Owner:
    owner = Owner(source_length=source_length)
    store.enter(owner, num_rows, limit)
    return owner


def test_who_enters_gets_fresh_rows_and_gaps_first() -> None:
    store = new_store()
    first, second, third = entered(store, 2), entered(store, 1, source_length=4, limit=6), entered(store, 2)
    assert [each.lane for each in (first, second, third)] == [0, 1, 2]
    assert [each.rows for each in (first, second, third)] == [[0, 1], [2], [3, 4]]
    for row in first.rows:
        store.append(row, 9, -0.5, -0.5)
    store.note_step()
    store.leave(first)
    assert (store.num_rows, store.num_used_rows, store.num_lanes) == (5, 3, 3)
    assert store.tenants() == [None, second, third]
    assert [store.row_tenant(row) for row in range(5)] == [None, None, second, third, third]
    fourth = entered(store, 3)
    assert (fourth.lane, fourth.rows) == (0, [0, 1, 5])
    for row in fourth.rows:
        assert store.target_ids(row) == []
        assert (store.last_ids[row], store.scores[row], store.limits[row]) == (BOS_ID, 0, 5)
    inputs = store.inputs(num_candidates=3, with_attention=True)
    assert inputs.row_lanes.tolist() == [0, 0, 1, 2, 2, 0]
    assert inputs.row_places.tolist() == [0, 1, 0, 0, 1, 2]
    assert inputs.source_lengths.tolist() == [3, 4, 3]
    assert inputs.rows_per_lane.tolist() == [3, 1, 2]
    assert (inputs.num_candidates, inputs.with_attention) == (3, True)


def test_a_gap_at_the_end_is_none() -> None:
    store = new_store()
    first, second, third = entered(store, 1), entered(store, 2), entered(store, 1)
    store.leave(third)
    assert (store.num_rows, store.num_lanes) == (3, 2)
    store.leave(first)
    store.leave(second)
    assert (store.num_rows, store.num_used_rows, store.num_lanes) == (0, 0, 0)
    assert list(store.compact()) == []


def test_gaps_are_closed_by_the_last_rows_and_lanes() -> None:
    store = new_store()
    first, second, third = entered(store, 2), entered(store, 1), entered(store, 3, source_length=5, limit=6)
    for row, token_id in zip(third.rows, (7, 8, 9), strict=True):
        store.append(row, token_id, -0.25, -token_id)
        if token_id != 8:
            store.append(row, 5, -0.5, -token_id - 0.5)
    store.looks[third.rows] = [21, 22, 23]
    store.leave(first)
    assert list(store.compact()) == [RowCopy(5, 0, 0, 2), RowCopy(4, 1, 0, 1), LaneCopy(2, 0, 5)]
    assert (store.num_rows, store.num_used_rows, store.num_lanes) == (4, 4, 2)
    assert (third.lane, third.rows) == (0, [3, 1, 0])  # by place, wherever they lie
    assert third.renumbered == [(5, 0), (4, 1)]
    assert (second.lane, second.rows, second.renumbered) == (1, [2], [])
    assert [store.target_ids(row) for row in third.rows] == [[7, 5], [8], [9, 5]]
    assert [store.last_ids[row] for row in third.rows] == [5, 8, 5]
    assert [store.scores[row] for row in third.rows] == [-7.5, -8, -9.5]
    assert [store.limits[row] for row in third.rows] == [6, 6, 6]
    assert [store.looks[row] for row in third.rows] == [21, 22, 23]
    inputs = store.inputs(num_candidates=1, with_attention=False)
    assert inputs.row_lanes.tolist() == [0, 0, 1, 0]
    assert inputs.row_places.tolist() == [2, 1, 0, 0]
    assert inputs.source_lengths.tolist() == [5, 3]
    assert inputs.rows_per_lane.tolist() == [3, 1]


def test_whoever_moves_can_leave_while_gaps_are_being_closed() -> None:
    for num_copies in range(1, 4):
        store = new_store()
        first, second, third = entered(store, 2), entered(store, 1), entered(store, 3)
        store.leave(first)
        copies = store.compact()
        for _ in range(num_copies):
            next(copies)
        copies.close()
        store.leave(third)
        store.leave(second)
        assert (store.num_rows, store.num_used_rows, store.num_lanes) == (0, 0, 0)


def test_a_branch_copies_only_what_differs() -> None:
    store = new_store()
    owner = entered(store, 3)
    store.note_step()  # each row has run its first position
    assert store.branch(0, 1) == RowCopy(0, 1, 0, 1)
    store.append(0, 7, -0.5, -0.5)
    store.append(1, 8, -0.25, -0.25)
    store.note_step()
    assert store.branch(1, 0) == RowCopy(1, 0, 1, 2)  # the first position is the same in both
    assert store.target_ids(0) == [8]
    store.append(0, 9, -1.0, -1.25)
    store.append(1, 10, -1.0, -1.25)
    store.note_step()
    assert store.branch(1, 2) == RowCopy(1, 2, 0, 3)  # it has never held anything of it
    assert (store.target_ids(1), store.target_ids(2)) == ([8, 10], [8, 10])
    assert store.target_log_probabilities(2) == [-0.25, -1.0]
    assert store.branch(1, 2) == RowCopy(1, 2, 3, 3)  # nothing differs
    for row in owner.rows:
        store.reset(row)
    store.note_step()
    assert store.branch(0, 1) == RowCopy(0, 1, 0, 1)  # what they held before they were reset is no matter


def test_bugs_of_the_caller_are_not_passed_over() -> None:
    store = new_store()
    one = entered(store, 4)
    with pytest.raises(RuntimeError, match="At most 7 rows may be in use, but 4 more were asked for"):
        store.enter(Owner(), 4, 5)
    with pytest.raises(RuntimeError, match="must belong to who leaves them"):
        store.leave(Owner(lane=0, rows=[0]))
    store.leave(one)
    other = entered(store, 2)
    with pytest.raises(RuntimeError, match="must belong to who leaves them"):
        store.leave(one)
    store.clear()
    assert (store.num_rows, store.num_used_rows, store.num_lanes) == (0, 0, 0)
    assert store.tenants() == []
    assert entered(store, 7).rows == list(range(7))
    assert other.rows == [0, 1]


class Account:
    """A store, what a runner would hold for it, and what every row should have."""

    def __init__(self, chance: random.Random) -> None:
        self.chance = chance
        self.store = new_store()
        self.wanted: dict[Owner, list[tuple[int, ...]]] = {}
        """Of each owner, by place: the tokens of its rows."""
        self.cached: dict[int, list[tuple[int, ...]]] = {}
        """Of each row of the slab, by position: the tokens that were seen up to it."""
        self.placed: dict[int, Owner] = {}
        """Of each lane of the slab: whose source it holds."""

    def carry_out(self, copies: Iterable[RowCopy | LaneCopy]) -> None:
        for each in copies:
            if isinstance(each, LaneCopy):
                self.placed[each.target_lane] = self.placed.pop(each.source_lane)
            else:
                source, target = self.cached.get(each.source_row, []), self.cached.get(each.target_row, [])
                assert each.start <= len(target)
                assert each.stop <= len(source)
                self.cached[each.target_row] = target[: each.start] + source[each.start : each.stop]

    def enter(self) -> None:
        num_rows = self.chance.randint(1, 3)
        if self.store.num_used_rows + num_rows <= MAX_ROWS:
            owner = entered(self.store, num_rows)
            self.placed[owner.lane] = owner
            self.wanted[owner] = [()] * num_rows

    def leave(self, owner: Owner) -> None:
        self.store.leave(owner)
        del self.wanted[owner]

    def reset(self, owner: Owner) -> None:
        for row in owner.rows:
            self.store.reset(row)
        self.wanted[owner] = [()] * len(owner.rows)

    def step(self) -> None:
        """Closes gaps, runs a step of every row and goes on with random tokens after random branches."""
        store = self.store
        self.carry_out(store.compact())
        inputs = store.inputs(num_candidates=1, with_attention=False)
        for row in range(store.num_rows):
            assert store.row_tenant(row) is not None
            held, past = self.cached.get(row, []), int(inputs.past_lengths[row])
            assert past <= len(held)
            before = held[past - 1] if past else ()
            self.cached[row] = [*held[:past], (*before, int(inputs.target_ids[row]))]
        store.note_step()
        for owner, hypotheses in self.wanted.items():
            assert self.placed[owner.lane] is owner
            for place, row in enumerate(owner.rows):
                assert (inputs.row_lanes[row], inputs.row_places[row]) == (owner.lane, place)
                assert self.cached[row][-1] == (BOS_ID, *hypotheses[place])
        self.carry_out(self.branch([pair for owner in self.wanted for pair in self.children(owner)]))
        for owner, hypotheses in self.wanted.items():
            for place, row in enumerate(owner.rows):
                token_id = self.chance.randrange(4, 9)
                store.append(row, token_id, -token_id / 8, 0.0)
                hypotheses[place] = (*hypotheses[place], token_id)

    def children(self, owner: Owner) -> Iterator[tuple[int, int]]:
        """Rows of `owner`, and others of its rows that are to become what they are."""
        hypotheses = self.wanted[owner]
        parents = sorted({self.chance.randrange(len(owner.rows)) for _ in owner.rows})
        for place, row in enumerate(owner.rows):
            if place not in parents:
                parent = self.chance.choice(parents)
                hypotheses[place] = hypotheses[parent]
                yield owner.rows[parent], row

    def branch(self, pairs: list[tuple[int, int]]) -> list[RowCopy]:
        """All at once or one by one, which comes to the same."""
        twin = twin_of(self.store)
        copies = [twin.branch(source, target) for source, target in pairs]
        if pairs:
            sources, targets = np.array(pairs).T
            assert self.store.branch_all(sources, targets) == copies
        for row in range(self.store.num_rows):
            stop = int(self.store.lengths[row]) + 1
            assert stop == twin.lengths[row] + 1
            np.testing.assert_array_equal(self.store.cells(row, stop), twin.cells(row, stop))
        return copies

    def check(self) -> None:
        store = self.store
        assert store.num_used_rows == sum(len(owner.rows) for owner in self.wanted)
        for owner, hypotheses in self.wanted.items():
            for row, tokens in zip(owner.rows, hypotheses, strict=True):
                assert store.row_tenant(row) is owner
                assert store.target_ids(row) == list(tokens)
                assert store.target_log_probabilities(row) == [-token_id / 8 for token_id in tokens]
                assert store.last_ids[row] == (tokens[-1] if tokens else BOS_ID)


@settings(max_examples=150, deadline=None, derandomize=True)
@given(seed=st.integers(0, 10**6))
def test_every_row_holds_its_own_history_after_any_order_of_events(seed: int) -> None:
    chance = random.Random(seed)
    account = Account(chance)
    for _ in range(40):
        event = chance.random()
        owners = list(account.wanted)
        if event < 0.25:
            account.enter()
        elif event < 0.4 and owners:
            account.leave(chance.choice(owners))
        elif event < 0.45 and owners:
            account.reset(chance.choice(owners))
        elif owners:
            for owner in owners:
                if len(account.wanted[owner][0]) == MAX_TARGET_TOKENS - 1:
                    account.leave(owner)
            account.step()
        account.check()
