"""Engines side by side: who takes what, all or none, and one door for all of them."""

from __future__ import annotations

import dataclasses
import math
import time
from collections.abc import Iterator

import pytest

from service.config import EngineConfig
from service.engine import Engine
from service.engine_loop import DrainingError, EngineLoop, LoopState
from service.loop_group import LoopGroup
from service.models import MAX_DEFAULT_WORKERS, choose_workers
from service.options import DecodingOptions
from service.request import FinishReason, InvalidSequenceError, Priority, Sequence
from service.scheduler_limits import QueueFullError
from service.tokenizer import EOS_ID
from tests.synthetic.fake_runner import FakeRunner, expected
from tests.unit.test_engine_loop import SECONDS, Gate, Mailbox


class Street:
    """Two loops of one row each in a group, each held at its own gate."""

    def __init__(self) -> None:
        self.mailbox = Mailbox()
        self.gates = (Gate(), Gate())
        self.runners = (FakeRunner(max_rows=1), FakeRunner(max_rows=1))
        self.loops = []
        for runner, gate in zip(self.runners, self.gates, strict=True):
            runner.before_step = gate
            engine = Engine.over(runner, max_waiting_sequences=4, max_waiting_tokens=40)
            self.loops.append(EngineLoop(engine, deliver=self.mailbox.deliver))
        self.group = LoopGroup(self.loops)

    def make(self, *body: int) -> Sequence:
        return Sequence(source_ids=(*body, EOS_ID), on_finished=self.mailbox.called)

    def fill(self) -> list[Sequence]:
        """One sequence in each loop's only row, held before its first step."""
        first = [self.make(5, 6), self.make(7, 8)]
        self.group.submit(first)
        for gate in self.gates:
            gate.wait()
        return first

    def open(self) -> None:
        for gate in self.gates:
            gate.open()


@pytest.fixture
def street() -> Iterator[Street]:
    made = Street()
    made.group.start()
    yield made
    made.open()
    assert made.group.stop(SECONDS)


def test_a_call_is_shared_by_the_loops_and_comes_back_whole(street: Street) -> None:
    sequences = [*street.fill(), *[street.make(10 + i, 20 + i) for i in range(4)]]
    street.group.submit(sequences[2:])
    assert [loop.num_waiting for loop in street.loops] == [2, 2]
    assert (street.group.num_running, street.group.num_waiting, street.group.num_waiting_tokens) == (2, 4, 12)
    street.open()
    street.mailbox.wait_for(*sequences)
    for sequence in sequences:
        assert (sequence.target_ids, sequence.token_log_probabilities) == expected(sequence.source_ids, 40)
        assert street.mailbox.calls[sequence] == 1
    assert [len(runner.encoded) for runner in street.runners] == [3, 3]


def test_a_group_is_full_when_nothing_more_can_wait(street: Street) -> None:
    street.fill()
    for i in range(4):
        assert not street.group.is_full
        street.group.submit([street.make(10 + i)])
    assert street.group.is_full  # four of four sequences


def test_a_group_is_full_when_its_tokens_are_as_many_as_may_wait(street: Street) -> None:
    street.fill()
    street.group.submit([street.make(*range(10, 29))])
    assert not street.group.is_full
    street.group.submit([street.make(*range(10, 29))])
    assert street.group.is_full  # two of four sequences, 40 of 40 tokens


def test_a_sequence_weighs_as_many_rows_as_it_owns() -> None:
    mailbox = Mailbox()
    runners = [FakeRunner(max_rows=8), FakeRunner(max_rows=8)]
    loops = [EngineLoop(Engine.over(runner), deliver=mailbox.deliver) for runner in runners]
    group = LoopGroup(loops)

    def make(first: int, num_rows: int) -> Sequence:
        options = DecodingOptions(beam_size=num_rows)
        return Sequence(source_ids=(first, EOS_ID), options=options, on_finished=mailbox.called)

    wide, narrow, last = make(5, 4), [make(6 + i, 1) for i in range(6)], make(20, 2)
    group.submit([wide, *narrow])  # 4 rows are as much to do as four sentences of one
    assert [loop.num_rows_wanted for loop in loops] == [5, 5]
    assert [loop.num_waiting for loop in loops] == [2, 5]
    group.submit([last])
    assert [loop.num_rows_wanted for loop in loops] == [7, 5]
    group.start()
    mailbox.wait_for(wide, *narrow, last)
    assert group.stop(SECONDS)
    assert [loop.num_rows_wanted for loop in loops] == [0, 0]
    assert group.num_used_rows == 0
    assert {source[0] for source in runners[0].encoded} == {5, 10, 20}
    assert {source[0] for source in runners[1].encoded} == {6, 7, 8, 9, 11}


def test_running_and_waiting_rows_weigh_alike(street: Street) -> None:
    first = street.fill()
    assert [loop.num_rows_wanted for loop in street.loops] == [1, 1]
    assert street.group.num_used_rows == 2
    street.group.submit([street.make(9)])
    assert [loop.num_rows_wanted for loop in street.loops] == [2, 1]
    street.group.submit([street.make(10), street.make(11)])
    assert [loop.num_rows_wanted for loop in street.loops] == [3, 2]
    assert [loop.num_waiting for loop in street.loops] == [2, 1]
    street.open()
    street.mailbox.wait_for(*first)


def test_the_loop_with_least_to_do_takes_the_next(street: Street) -> None:
    first = street.fill()
    street.gates[1].open()
    street.mailbox.wait_for(first[1])
    later = [street.make(9), street.make(11)]
    for sequence in later:  # one after the other: each finds the first loop busy and the second idle
        street.group.submit([sequence])
        street.mailbox.wait_for(sequence)
    assert street.runners[1].encoded == [(7, 8, EOS_ID), (9, EOS_ID), (11, EOS_ID)]
    assert first[0] not in street.mailbox.calls


def test_the_queue_limit_is_the_groups_and_refuses_all_or_none(street: Street) -> None:
    street.fill()
    street.group.submit([street.make(1, 2), street.make(3)])
    with pytest.raises(
        QueueFullError, match="At most 4 sequences may wait, but 2 do and 3 more were asked for"
    ) as caught:
        street.group.submit([street.make(4), street.make(5), street.make(6)])
    assert (caught.value.num_waiting_sequences, caught.value.num_waiting_tokens) == (2, 5)
    with pytest.raises(QueueFullError, match="At most 40 source tokens may wait, but 5 do and 36 more"):
        street.group.submit([street.make(*range(10, 27)), street.make(*range(10, 27))])
    assert street.group.num_waiting == 2


def test_one_unsound_sequence_refuses_the_call(street: Street) -> None:
    street.fill()
    with pytest.raises(InvalidSequenceError, match="999999"):
        street.group.submit([street.make(4), street.make(999_999)])
    assert street.group.num_waiting == 0


def test_a_cancelled_sequence_leaves_whichever_loop_has_it(street: Street) -> None:
    first = street.fill()
    waiting = [street.make(10), street.make(11)]
    street.group.submit(waiting)
    street.group.cancel([first[1], waiting[0]])
    street.open()
    street.mailbox.wait_for(*first, *waiting)
    reasons = [sequence.finish_reason for sequence in (*first, *waiting)]
    assert reasons == [FinishReason.STOP, FinishReason.CANCELLED, FinishReason.CANCELLED, FinishReason.STOP]


def test_a_draining_group_refuses_and_finishes_what_it_has(street: Street) -> None:
    first = street.fill()
    street.group.begin_drain()
    assert [loop.state for loop in street.loops] == [LoopState.DRAINING] * 2
    with pytest.raises(DrainingError):
        street.group.submit([street.make(4)])
    street.open()
    street.mailbox.wait_for(*first)
    assert [sequence.finish_reason for sequence in first] == [FinishReason.STOP] * 2


def test_nothing_to_submit_is_refused_by_a_draining_group_too(street: Street) -> None:
    street.group.submit([])
    street.group.begin_drain()
    with pytest.raises(DrainingError):
        street.group.submit([])


def test_failures_of_one_loop_are_the_groups(street: Street) -> None:
    street.runners[1].fail_decode = lambda _num_rows: True
    first = street.fill()
    street.open()
    street.mailbox.wait_for(*first)
    assert [sequence.finish_reason for sequence in first] == [FinishReason.STOP, FinishReason.FAILED]
    assert street.group.num_consecutive_failures == 1
    assert street.group.stalled_seconds() < SECONDS
    assert street.group.oldest_wait_seconds() == 0.0


def test_a_group_of_none_is_refused() -> None:
    with pytest.raises(ValueError, match="at least one loop"):
        LoopGroup([])


@pytest.mark.parametrize(
    ("settings", "num_cores", "wanted"),
    [
        ({}, 1, (1, 1)),
        ({}, 2, (2, 1)),
        ({}, 7, (MAX_DEFAULT_WORKERS, 1)),
        ({}, 32, (MAX_DEFAULT_WORKERS, 8)),
        ({"num_threads": 3}, 2, (2, 3)),
        ({"num_workers": 1}, 8, (1, 8)),
        ({"num_workers": 3, "num_threads": 2}, 1, (3, 2)),
        ({"max_rows": 2}, 4, (2, 2)),
    ],
)
def test_cores_are_shared_out(settings: dict[str, int], num_cores: int, wanted: tuple[int, int]) -> None:
    assert choose_workers(EngineConfig(**settings), num_cores) == wanted


def of_priority(sequence: Sequence, priority: Priority, caller: str = "") -> Sequence:
    sequence.priority, sequence.caller = priority, caller
    return sequence


def test_interactive_work_goes_where_least_of_its_kind_is_in_the_way() -> None:
    runners = [FakeRunner(max_rows=8), FakeRunner(max_rows=8)]
    loops = [EngineLoop(Engine.over(runner)) for runner in runners]
    group = LoopGroup(loops)

    def make(priority: Priority, num_rows: int = 1) -> Sequence:
        options = DecodingOptions(beam_size=num_rows)
        return Sequence(source_ids=(5, EOS_ID), options=options, priority=priority)

    group.submit([make(Priority.INTERACTIVE, 2), make(Priority.BULK, 5)])
    group.submit([make(Priority.INTERACTIVE)])
    assert [loop.num_interactive_rows_wanted for loop in loops] == [2, 1]  # five rows of bulk are not in its way
    assert [loop.num_rows_wanted for loop in loops] == [2, 6]
    group.submit([make(Priority.BULK, 2)])
    assert [loop.num_rows_wanted for loop in loops] == [4, 6]  # bulk goes where there is least to do
    group.submit([make(Priority.INTERACTIVE), make(Priority.INTERACTIVE)])
    assert [loop.num_interactive_rows_wanted for loop in loops] == [3, 2]
    assert (group.num_waiting_of(Priority.INTERACTIVE), group.num_waiting_of(Priority.BULK)) == (4, 2)
    group.start()
    group.begin_drain()
    assert all(loop.drain(SECONDS) for loop in loops)
    assert group.stop(SECONDS)
    assert [loop.num_interactive_rows_wanted for loop in loops] == [0, 0]
    assert (group.num_waiting_of(Priority.INTERACTIVE), group.num_waiting_of(Priority.BULK)) == (0, 0)


def test_the_reserve_of_a_group_is_for_who_waits_in_none_of_its_loops(street: Street) -> None:
    for loop in street.loops:
        limits = dataclasses.replace(loop.limits, reserved_share=0.5)
        loop._engine.scheduler.limits = limits
    street.fill()
    interactive, bulk = Priority.INTERACTIVE, Priority.BULK
    street.group.submit([of_priority(street.make(10), interactive, "ada")])
    assert not street.group.is_full_for(bulk, "bob")
    street.group.submit([of_priority(street.make(11), interactive, "ada")])
    assert street.group.is_full_for(bulk, "bob")
    assert street.group.is_full_for(interactive, "ada")
    assert not street.group.is_full_for(interactive, "bob")
    for refused in (of_priority(street.make(12), interactive, "ada"), of_priority(street.make(13), bulk, "bob")):
        with pytest.raises(QueueFullError, match="At most 2 sequences may wait, but 2 do"):
            street.group.submit([refused])
    street.group.submit([of_priority(street.make(14 + i), interactive, "bob") for i in range(2)])
    assert street.group.is_full_for(interactive, "cid")
    with pytest.raises(QueueFullError, match="At most 4 sequences"):
        street.group.submit([of_priority(street.make(16), interactive, "cid")])


def test_when_a_sequence_was_cancelled_is_noted_at_once(street: Street) -> None:
    first = street.fill()
    assert first[0].gone_at == math.inf
    before = time.monotonic()
    street.group.cancel(first[:1])
    told = first[0].cancelled_at
    assert before <= told <= time.monotonic()
    street.group.cancel(first[:1])
    assert first[0].cancelled_at == told  # the first time counts
    street.open()
    street.mailbox.wait_for(*first)
    assert (first[0].finish_reason, first[1].gone_at) == (FinishReason.CANCELLED, math.inf)
