"""The engine's thread: what other threads may rely on. Waiting is on events, never on time passing."""

from __future__ import annotations

import logging
import math
import os
import sys
import threading
from collections.abc import Iterator

import pytest

from service.engine import Engine
from service.engine_loop import DrainingError, EngineLoop, LoopState
from service.options import DecodingOptions
from service.request import Delivery, FinishReason, InvalidSequenceError, Sequence
from service.scheduler_limits import QueueFullError
from service.step_report import StepReport
from service.tokenizer import EOS_ID
from tests.synthetic.fake_runner import FakeRunner, expected

SECONDS = 20.0  # far more than anything here takes: only a broken loop waits for it


class Gate:
    """Holds the runner before a step until a test lets it go on."""

    def __init__(self) -> None:
        self.arrived = threading.Semaphore(0)
        self.go_on = threading.Semaphore(0)
        self.is_open = False

    def __call__(self) -> None:
        if not self.is_open:
            self.arrived.release()
            assert self.go_on.acquire(timeout=SECONDS)

    def wait(self) -> None:
        assert self.arrived.acquire(timeout=SECONDS)

    def step(self) -> None:
        """Lets the step that waits run, and waits for the next."""
        self.go_on.release()
        self.wait()

    def step_and_let(self, more: int) -> None:
        """Lets the step that waits run, and `more` after it without a stop."""
        for _ in range(1 + more):
            self.go_on.release()
        for _ in range(more):
            self.wait()

    def open(self) -> None:
        self.is_open = True
        self.go_on.release(1000)


class Mailbox:
    """Collects what is delivered, a list a step, and how often each callback was called."""

    def __init__(self) -> None:
        self.deliveries: list[list[Delivery]] = []
        self.calls: dict[Sequence, int] = {}
        self._arrived = threading.Condition()

    def deliver(self, deliveries: list[Delivery]) -> None:
        with self._arrived:
            self.deliveries.append(deliveries)
            for delivery in deliveries:
                delivery.make()
            self._arrived.notify_all()

    def called(self, sequence: Sequence) -> None:
        self.calls[sequence] = self.calls.get(sequence, 0) + 1

    def wait_for(self, *sequences: Sequence) -> None:
        with self._arrived:
            assert self._arrived.wait_for(lambda: all(s in self.calls for s in sequences), SECONDS)


class House:
    """A loop with everything around it."""

    def __init__(self, *, max_rows: int = 4, max_waiting_sequences: int = 100, is_gated: bool = False) -> None:
        self.runner = FakeRunner(max_rows=max_rows)
        self.gate = Gate()
        if is_gated:
            self.runner.before_step = self.gate
        self.mailbox = Mailbox()
        self.reports: list[StepReport] = []
        self.now = 100.0
        self.engine = Engine.over(self.runner, max_waiting_sequences=max_waiting_sequences, clock=lambda: self.now)
        self.loop = EngineLoop(
            self.engine, deliver=self.mailbox.deliver, observe=self.reports.append, clock=lambda: self.now
        )

    def make(self, *body: int, deadline: float | None = None) -> Sequence:
        return Sequence(source_ids=(*body, EOS_ID), deadline=deadline, on_finished=self.mailbox.called)

    def check(self, sequence: Sequence) -> None:
        assert (sequence.target_ids, sequence.token_log_probabilities) == expected(sequence.source_ids, 40)
        assert sequence.finish_reason is FinishReason.STOP
        assert self.mailbox.calls[sequence] == 1


@pytest.fixture
def house() -> Iterator[House]:
    made = House()
    made.loop.start()
    yield made
    made.gate.open()
    assert made.loop.stop(SECONDS)


@pytest.fixture
def gated() -> Iterator[House]:
    made = House(max_rows=2, max_waiting_sequences=3, is_gated=True)
    made.loop.start()
    yield made
    made.gate.open()
    assert made.loop.stop(SECONDS)


def test_every_callback_comes_once_whoever_submits(house: House) -> None:
    sequences = [[house.make(*range(10 * i + 5, 10 * i + 5 + j)) for j in range(9)] for i in range(8)]
    threads = [threading.Thread(target=house.loop.submit, args=(batch,)) for batch in sequences]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    everybody = [sequence for batch in sequences for sequence in batch]
    house.mailbox.wait_for(*everybody)
    for sequence in everybody:
        house.check(sequence)
    assert house.runner.violations == []
    for batch in sequences:
        assert [s.arrival for s in batch] == list(range(batch[0].arrival, batch[0].arrival + len(batch)))


def test_the_finished_of_a_step_are_delivered_together(gated: House) -> None:
    pair = [gated.make(5, 6), gated.make(7, 8)]
    gated.loop.submit(pair)
    gated.gate.open()
    gated.mailbox.wait_for(*pair)
    assert gated.mailbox.deliveries == [[Delivery(pair[0], None), Delivery(pair[1], None)]]


@pytest.mark.parametrize("beam_size", [1, 2])
def test_what_is_certain_is_told_before_the_end_in_order(house: House, beam_size: int) -> None:
    events: dict[Sequence, list[list[int] | None]] = {}

    def told(sequence: Sequence, ids: list[int]) -> None:
        assert not sequence.is_finished
        events.setdefault(sequence, []).append(ids)

    def ended(sequence: Sequence) -> None:
        events.setdefault(sequence, []).append(None)
        house.mailbox.called(sequence)

    pair = [
        Sequence(
            source_ids=(*range(10 * i, 10 * i + 8), EOS_ID),
            options=DecodingOptions(beam_size=beam_size),
            on_finished=ended,
            on_progress=told,
        )
        for i in (1, 2)
    ]
    silent = house.make(5, 6)
    house.loop.submit([*pair, silent])
    house.mailbox.wait_for(*pair, silent)
    for sequence in pair:
        *pieces, last = events[sequence]
        assert last is None
        assert all(pieces)
        flat = [token_id for piece in pieces for token_id in piece or []]
        assert len(pieces) >= 1
        assert flat == sequence.text_ids[: len(flat)]
    for deliveries in house.mailbox.deliveries:  # of one step, what became certain comes before what ended
        kinds = [delivery.certain_ids is None for delivery in deliveries]
        assert kinds == sorted(kinds)
    told_of = [d.sequence for step in house.mailbox.deliveries for d in step if d.certain_ids is not None]
    assert silent not in told_of


def test_cancel_leaves_by_the_next_step(gated: House) -> None:
    cancelled, other = gated.make(5, 6, 7, 8), gated.make(9, 10, 11)
    gated.loop.submit([cancelled, other])
    gated.gate.wait()  # both rows are in their first step
    gated.loop.cancel([cancelled])
    gated.gate.step()
    assert gated.runner.rows_per_step == [2, 1]
    gated.gate.open()
    gated.mailbox.wait_for(cancelled, other)
    assert cancelled.finish_reason is FinishReason.CANCELLED
    assert gated.mailbox.calls[cancelled] == 1
    gated.check(other)
    gated.loop.cancel([cancelled, other])  # too late; nothing happens
    assert gated.loop.drain(SECONDS)
    assert gated.mailbox.calls == {cancelled: 1, other: 1}


def test_a_deadline_that_passes_while_it_waits_or_runs(gated: House) -> None:
    running, waiting = gated.make(5, 6, 7, deadline=200.0), gated.make(9, deadline=200.0)
    gated.loop.submit([running, gated.make(5, 6)])
    gated.gate.wait()
    gated.loop.submit([waiting])
    gated.now = 200.0
    gated.gate.open()
    gated.mailbox.wait_for(running, waiting)
    assert {running.finish_reason, waiting.finish_reason} == {FinishReason.EXPIRED}


def test_queue_limits_count_what_the_thread_has_not_taken_over(gated: House) -> None:
    running = [gated.make(5), gated.make(6)]
    gated.loop.submit(running)
    gated.gate.wait()  # the thread is busy: what comes now stays outside
    waiting = [gated.make(7), gated.make(8)]
    gated.loop.submit(waiting)
    with pytest.raises(QueueFullError) as full:
        gated.loop.submit([gated.make(9), gated.make(10)])
    assert full.value.num_waiting_sequences == 2
    assert (gated.loop.num_running, gated.loop.num_waiting, gated.loop.num_waiting_tokens) == (2, 2, 4)
    last = gated.make(11)
    gated.loop.submit([last])
    gated.gate.open()
    gated.mailbox.wait_for(*running, *waiting, last)
    for sequence in (*running, *waiting, last):
        gated.check(sequence)


def test_what_is_taken_over_is_never_counted_twice(house: House, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[int] = []
    add = house.engine.scheduler.add

    def watched(sequences: list[Sequence], now: float) -> None:
        add(sequences, now)
        seen.append(house.loop.num_waiting)

    monkeypatch.setattr(house.engine.scheduler, "add", watched)
    sequence = house.make(5)
    house.loop.submit([sequence])
    house.mailbox.wait_for(sequence)
    assert seen == [1]


def test_unsound_sequences_are_refused_at_the_door(house: House) -> None:
    with pytest.raises(InvalidSequenceError):
        house.loop.submit([house.make(5), Sequence(source_ids=())])
    twice = house.make(5)
    house.loop.submit([twice])
    with pytest.raises(InvalidSequenceError, match="submitted once"):
        house.loop.submit([twice])
    house.mailbox.wait_for(twice)
    house.check(twice)


def test_drain_finishes_accepted_work_and_refuses_more(gated: House) -> None:
    accepted = [gated.make(5, 6), gated.make(7), gated.make(8, 9)]
    gated.loop.submit(accepted)
    gated.gate.wait()
    gated.loop.begin_drain()
    with pytest.raises(DrainingError):
        gated.loop.submit([gated.make(10)])
    assert not gated.loop.drain(0.0)
    gated.gate.open()
    assert gated.loop.drain(SECONDS)
    for sequence in accepted:  # delivered already: draining waits for that too
        gated.check(sequence)
    assert gated.loop.state is LoopState.DRAINING


def test_stop_delivers_the_rest_as_failed() -> None:
    house = House(max_rows=1, is_gated=True)
    house.loop.start()
    running, waiting = house.make(5, 6), house.make(7)
    house.loop.submit([running])
    house.gate.wait()
    house.loop.submit([waiting])
    house.gate.is_open = True
    stopper = threading.Thread(target=house.loop.stop)
    stopper.start()
    with house.loop._changed:
        assert house.loop._changed.wait_for(lambda: house.loop.state is LoopState.STOPPED, SECONDS)
    house.gate.open()
    stopper.join(SECONDS)
    house.mailbox.wait_for(running, waiting)
    for sequence in (running, waiting):
        assert sequence.finish_reason is FinishReason.FAILED
        assert isinstance(sequence.error, DrainingError)
        assert house.mailbox.calls[sequence] == 1
    assert house.loop.stop()
    assert house.loop.stalled_seconds() == 0.0
    with pytest.raises(DrainingError):
        house.loop.submit([house.make(10)])
    with pytest.raises(RuntimeError, match="must be new"):
        house.loop.start()


def test_work_submitted_before_the_start_waits() -> None:
    house = House()
    early = house.make(5)
    house.loop.submit([early])
    assert house.loop.num_waiting == 1
    other = House()
    never_run = other.make(5)
    other.loop.submit([never_run])
    assert other.loop.stop()
    assert other.mailbox.calls == {never_run: 1}
    house.loop.start()
    assert house.loop.drain(SECONDS)
    house.check(early)
    assert house.loop.stop(SECONDS)


def test_liveness_sees_a_step_that_hangs_and_no_idleness(gated: House) -> None:
    assert gated.loop.stalled_seconds() == 0.0
    first = gated.make(5)
    gated.loop.submit([first])
    gated.gate.wait()
    gated.gate.step_and_let(1)
    gated.mailbox.wait_for(first)
    with gated.loop._changed:  # until the loop sleeps again, its clock still counts
        assert gated.loop._changed.wait_for(lambda: gated.loop._is_asleep, SECONDS)
    gated.now = 1000.0
    assert gated.loop.stalled_seconds() == 0.0  # idle for long is no stall
    gated.loop.submit([gated.make(5, 6, 7)])
    gated.gate.wait()
    gated.now = 1007.0
    assert gated.loop.stalled_seconds() == 7.0
    gated.gate.step()
    assert gated.loop.stalled_seconds() == 0.0
    assert gated.loop.oldest_wait_seconds() == 0.0
    gated.loop.submit([gated.make(5)])
    gated.now = 1009.0
    assert gated.loop.oldest_wait_seconds() == 2.0


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_liveness_sees_a_dead_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    house = House()

    def die() -> None:
        raise SystemExit

    monkeypatch.setattr(house.engine, "step", die)
    house.loop.start()
    house.loop.submit([house.make(5)])
    house.loop._thread.join(SECONDS)
    assert house.loop.stalled_seconds() == math.inf
    house.loop.stop(SECONDS)


def test_failures_in_a_row_are_counted(house: House, caplog: pytest.LogCaptureFixture) -> None:
    house.runner.fail_decode = lambda step: step < 2
    for count in (1, 2, 0):
        sequence = house.make(5)
        house.loop.submit([sequence])
        house.mailbox.wait_for(sequence)
        assert house.loop.num_consecutive_failures == count
    assert "The decoding step failed: RunnerBrokeError: decode" in caplog.text


def test_a_bug_in_a_step_fails_what_it_held_and_the_loop_goes_on(
    house: House, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    step = house.engine.step
    error = KeyError("bug")

    def buggy() -> StepReport:
        monkeypatch.setattr(house.engine, "step", step)
        raise error

    monkeypatch.setattr(house.engine, "step", buggy)
    first = house.make(5)
    house.loop.submit([first])
    house.mailbox.wait_for(first)
    assert first.error is error
    assert house.mailbox.calls[first] == 1
    second = house.make(6)
    house.loop.submit([second])
    house.mailbox.wait_for(second)
    house.check(second)
    assert "broke off" in caplog.text


def test_bystanders_that_raise_do_not_stop_the_loop(caplog: pytest.LogCaptureFixture) -> None:
    runner = FakeRunner()
    ended = threading.Event()

    def raise_it(_sequence: Sequence) -> None:
        raise RuntimeError("callback")

    def observe(_report: StepReport) -> None:
        raise RuntimeError("observer")

    loop = EngineLoop(Engine.over(runner), observe=observe)  # with the loop's own delivery
    loop.start()

    def raise_at_once(_sequence: Sequence, _ids: list[int]) -> None:
        raise RuntimeError("progress")

    with caplog.at_level(logging.ERROR):
        loop.submit(
            [
                Sequence(source_ids=(5, 6, 7, EOS_ID), on_progress=raise_at_once),
                Sequence(source_ids=(5, EOS_ID), on_finished=raise_it),
                Sequence(source_ids=(6, EOS_ID), on_finished=lambda _sequence: ended.set()),
            ]
        )
        assert ended.wait(SECONDS)
        assert loop.drain(SECONDS)
    assert "callback failed" in caplog.text
    assert "observer of the engine's steps failed" in caplog.text
    assert loop.stop(SECONDS)


def test_a_delivery_that_raises_does_not_stop_the_loop(caplog: pytest.LogCaptureFixture) -> None:
    def deliver(_deliveries: list[Delivery]) -> None:
        raise RuntimeError("nobody there")

    loop = EngineLoop(Engine.over(FakeRunner()), deliver=deliver)
    loop.start()
    first, second = Sequence(source_ids=(5, EOS_ID)), Sequence(source_ids=(6, EOS_ID))
    loop.submit([first])
    loop.submit([second])
    assert loop.drain(SECONDS)
    assert first.is_finished
    assert second.is_finished
    assert "Delivering" in caplog.text
    assert loop.stop(SECONDS)


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere it is the process that gives way")
def test_a_thread_gives_way_and_no_other_does() -> None:
    seen: list[int] = []
    own = os.getpriority(os.PRIO_PROCESS, 0)

    def look(_: StepReport) -> None:
        seen.append(os.getpriority(os.PRIO_PROCESS, threading.get_native_id()))

    loop = EngineLoop(Engine.over(FakeRunner()), observe=look, niceness=3)
    loop.submit([Sequence(source_ids=(5, EOS_ID))])
    loop.start()
    assert loop.drain(SECONDS)
    loop.stop()
    assert set(seen) == {min(own + 3, 19)}
    assert os.getpriority(os.PRIO_PROCESS, 0) == own
