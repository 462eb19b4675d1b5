"""The one thread that owns the engine, and the door other threads come through.

Other threads submit and cancel; the loop takes both over between steps, steps while there is work, sleeps when there is
none, and hands over what each step has to tell together: one call a step, not one a sequence.
"""

from __future__ import annotations

import enum
import logging
import math
import os
import sys
import threading
import time
from collections.abc import Callable, Collection, Iterable
from contextlib import AbstractContextManager

from service.engine import Engine
from service.request import Delivery, Priority, Sequence
from service.scheduler_limits import SchedulerLimits
from service.step_report import StepReport

logger = logging.getLogger(__name__)


class DrainingError(RuntimeError):
    """The loop takes no new work: it drains or has stopped."""


class LoopState(enum.Enum):
    """Where the loop stands in its life."""

    NEW = "new"
    """Not started; what is submitted waits."""
    RUNNING = "running"
    DRAINING = "draining"
    """No new work; what was accepted is decoded."""
    STOPPED = "stopped"


def deliver_directly(deliveries: list[Delivery]) -> None:
    """Tells each sequence's owner in the engine's thread; one that raises does not keep the others from it."""
    for delivery in deliveries:
        try:
            delivery.make()
        except Exception:
            logger.exception("A sequence's callback failed.")


def observe_nothing(report: StepReport) -> None:
    """The observer of a loop nobody watches."""


class EngineLoop:
    """Runs an engine in a thread of its own. Every public method may be called from any thread; none waits for a step,
    but for `drain` and `stop`."""

    def __init__(
        self,
        engine: Engine,
        *,
        deliver: Callable[[list[Delivery]], None] = deliver_directly,
        observe: Callable[[StepReport], None] = observe_nothing,
        clock: Callable[[], float] = time.monotonic,
        name: str = "engine",
        niceness: int = 0,
    ) -> None:
        """Args:
        engine: not to be touched by others from now on.
        deliver: called in the engine's thread, once a step that has something to tell, with all of it; it must see to
            it that each one is made, in this order, and return at once. An asyncio side passes one that calls
            `call_soon_threadsafe` once.
        observe: called in the engine's thread after each step, before `deliver`.
        clock: monotonic seconds, the engine's.
        name: of the thread.
        niceness: how much its thread gives way to the others of the process; on Linux only, elsewhere it would be
            the process that does.
        """
        self._engine = engine
        self._deliver = deliver
        self._observe = observe
        self._clock = clock
        self._niceness = niceness
        self._changed = threading.Condition()  # guards everything below but the thread
        self._state = LoopState.NEW
        self._forget_submitted()
        self._cancelled: list[Sequence] = []
        self._is_asleep = True  # nothing to do, and everything that ended was delivered
        self._heartbeat = clock()
        self._oldest_waiting_since: float | None = None
        self._num_consecutive_failures = 0
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)

    @property
    def state(self) -> LoopState:
        """Where the loop stands."""
        return self._state

    @property
    def num_running(self) -> int:
        """Sequences that are being decoded, as of about now."""
        return self._engine.scheduler.num_running

    @property
    def num_used_rows(self) -> int:
        """Rows in use, as of about now."""
        return self._engine.scheduler.num_used_rows

    @property
    def num_rows_wanted(self) -> int:
        """Rows that are in use or waited for, as of about now: how much there is to do."""
        scheduler = self._engine.scheduler
        return scheduler.num_used_rows + scheduler.num_waiting_rows + self._num_submitted_rows

    @property
    def num_waiting(self) -> int:
        """Sequences that wait for a row, as of about now."""
        return self._engine.scheduler.num_waiting + len(self._submitted)

    @property
    def num_waiting_tokens(self) -> int:
        """Source tokens that wait for a row, as of about now."""
        return self._engine.scheduler.num_waiting_tokens + self._num_submitted_tokens

    @property
    def num_consecutive_failures(self) -> int:
        """Steps in a row whose encoder run or decoding step failed; a step that ran without a failure resets it."""
        return self._num_consecutive_failures

    @property
    def num_used_interactive_rows(self) -> int:
        """Rows that interactive sequences use, as of about now."""
        return self._engine.scheduler.num_used_interactive_rows

    @property
    def num_waiting_interactive_tokens(self) -> int:
        """Source tokens of interactive sequences that wait for a row, as of about now."""
        return self._engine.scheduler.waiting.interactive.num_tokens + self._num_submitted_interactive_tokens

    @property
    def num_interactive_rows_wanted(self) -> int:
        """Of `num_rows_wanted`, those of interactive sequences: what is ahead of another of these."""
        scheduler = self._engine.scheduler
        num_waiting_rows = scheduler.waiting.interactive.num_rows
        return scheduler.num_used_interactive_rows + num_waiting_rows + self._num_submitted_interactive_rows

    def num_waiting_of(self, priority: Priority) -> int:
        """Sequences of a priority that wait for a row, as of about now."""
        num_interactive = self._num_submitted_interactive
        num_submitted = num_interactive if priority is Priority.INTERACTIVE else len(self._submitted) - num_interactive
        return len(self._engine.scheduler.waiting.of(priority)) + num_submitted

    def has_interactive_of(self, caller: str) -> bool:
        """Whether interactive sequences of a caller wait for a row, as of about now."""
        return caller in self._submitted_callers or self._engine.scheduler.waiting.interactive.has_caller(caller)

    def oldest_wait_seconds(self) -> float:
        """How long the sequence that waits longest has waited, as of about now; 0.0 when nobody waits."""
        with self._changed:
            since = self._oldest_waiting_since
            if since is None and self._submitted:
                since = self._submitted[0].submitted_at
        return 0.0 if since is None else max(0.0, self._clock() - since)

    def stalled_seconds(self) -> float:
        """Seconds since the loop last made progress while it had work; 0.0 when it has none or was stopped in order.

        Liveness: a value above any honest step's duration, or infinity (the thread died), asks for a restart.
        """
        with self._changed:
            if self._state in {LoopState.NEW, LoopState.STOPPED}:
                return 0.0
            if not self._thread.is_alive():
                return math.inf
            has_work = not self._is_asleep or bool(self._submitted)
            return max(0.0, self._clock() - self._heartbeat) if has_work else 0.0

    def start(self) -> None:
        """Starts the thread.

        Raises:
            RuntimeError: when it was started before, or stopped.
        """
        with self._changed:
            if self._state is not LoopState.NEW:
                raise RuntimeError(f"The engine loop must be new to be started, but is {self._state.value}.")
            self._state = LoopState.RUNNING
            self._heartbeat = self._clock()
            self._thread.start()

    @property
    def limits(self) -> SchedulerLimits:
        """What bounds its queue and its steps."""
        return self._engine.scheduler.limits

    def held(self) -> AbstractContextManager[object]:
        """While entered, no other thread submits, cancels or stops, and what waits can only become less."""
        return self._changed

    def check(self, sequences: Collection[Sequence]) -> None:
        """Raises what `submit` would raise for these sequences now, and changes nothing."""
        scheduler = self._engine.scheduler
        with self._changed:
            if self._state not in {LoopState.NEW, LoopState.RUNNING}:
                raise DrainingError(f"The engine loop must be running to take work, but is {self._state.value}.")
            scheduler.check_sound(sequences)
            scheduler.check_room(
                sequences,
                num_sequences=len(self._submitted),
                num_tokens=self._num_submitted_tokens,
                callers=self._submitted_callers,
            )

    def submit(self, sequences: Collection[Sequence]) -> None:
        """Accepts sequences, all of them or none; returns at once.

        Raises:
            DrainingError: when the loop takes no new work.
            InvalidSequenceError: when one can never be decoded; names every problem.
            QueueFullError: when the waiting queue cannot take them now.
        """
        with self._changed:
            self.check(sequences)
            now = self._clock()
            if self._is_asleep and not self._submitted:
                self._heartbeat = now
            for sequence in sequences:
                sequence.submitted_at = now
                self._num_submitted_tokens += len(sequence.source_ids)
                self._num_submitted_rows += sequence.options.num_rows
                if sequence.priority is Priority.INTERACTIVE:
                    self._num_submitted_interactive += 1
                    self._num_submitted_interactive_rows += sequence.options.num_rows
                    self._num_submitted_interactive_tokens += len(sequence.source_ids)
                    self._submitted_callers.add(sequence.caller)
            self._submitted.extend(sequences)
            self._changed.notify_all()

    def cancel(self, sequences: Iterable[Sequence]) -> None:
        """Makes sequences leave by the next step; they are delivered with CANCELLED unless they ended before."""
        given = list(sequences)
        with self._changed:
            now = self._clock()
            for sequence in given:
                sequence.cancelled_at = min(sequence.cancelled_at, now)
            self._cancelled.extend(given)
            self._changed.notify_all()

    def begin_drain(self) -> None:
        """Refuses new work from now on; accepted work goes on."""
        with self._changed:
            if self._state in {LoopState.NEW, LoopState.RUNNING}:
                self._state = LoopState.DRAINING
            self._changed.notify_all()

    def drain(self, timeout_seconds: float) -> bool:
        """Refuses new work and waits until accepted work has ended and was delivered. Not for the asyncio thread.

        Returns:
            Whether it ended within the time.
        """
        self.begin_drain()
        with self._changed:
            return self._changed.wait_for(lambda: self._is_asleep and not self._submitted, timeout_seconds)

    def stop(self, timeout_seconds: float = 10.0) -> bool:
        """Ends the thread after the step at hand and waits for it; what has not ended is delivered with FAILED and
        a `DrainingError`. Calling it again does nothing.

        Returns:
            Whether the thread ended within the time.
        """
        with self._changed:
            was_started = self._thread.ident is not None
            was_stopped = self._state is LoopState.STOPPED
            self._state = LoopState.STOPPED
            self._changed.notify_all()
        if was_started:
            self._thread.join(timeout_seconds)
            return not self._thread.is_alive()
        if not was_stopped:
            self._fail_the_rest()
        return True

    def _run(self) -> None:
        if self._niceness and sys.platform == "linux":
            os.nice(self._niceness)  # of the calling thread
        while self._wait_for_work():
            try:
                report = self._engine.step()
            except Exception as error:
                # Not a failure of the runner, which a step ends well, but a bug: what the engine holds is not trusted.
                logger.exception("The engine's step broke off; every sequence in it fails.")
                self._num_consecutive_failures += 1
                self._hand_over([], self._engine.fail_all(error))
                continue
            self._count_failures(report)
            try:
                self._observe(report)
            except Exception:
                logger.exception("The observer of the engine's steps failed.")
            self._hand_over(report.progress, report.finished)
        self._fail_the_rest()

    def _wait_for_work(self) -> bool:
        """Takes over what came in; sleeps while there is nothing to do. False: the loop is to end."""
        scheduler = self._engine.scheduler
        with self._changed:
            self._heartbeat = self._clock()
            while True:
                self._take_over()
                if self._state is LoopState.STOPPED:
                    return False
                if not scheduler.is_idle:
                    self._is_asleep = False
                    return True
                self._is_asleep = True
                self._changed.notify_all()  # whoever drains
                self._changed.wait()

    def _take_over(self) -> None:
        scheduler = self._engine.scheduler
        if self._submitted:
            submitted = self._submitted
            self._forget_submitted()  # before: who reads the numbers meanwhile must not find them twice
            scheduler.add(submitted, self._clock())
        if self._cancelled:
            scheduler.cancel(self._cancelled)
            self._cancelled = []
        self._oldest_waiting_since = scheduler.oldest_waiting_since()

    def _forget_submitted(self) -> None:
        """Nothing was accepted that was not added."""
        self._submitted: list[Sequence] = []
        self._num_submitted_tokens = 0
        self._num_submitted_rows = 0
        self._num_submitted_interactive = 0
        self._num_submitted_interactive_rows = 0
        self._num_submitted_interactive_tokens = 0
        self._submitted_callers: set[str] = set()

    def _count_failures(self, report: StepReport) -> None:
        if report.encode_error or report.decode_error:
            self._num_consecutive_failures += 1
            for what, error in (("encoder run", report.encode_error), ("decoding step", report.decode_error)):
                if error is not None:
                    logger.error("The %s failed: %s: %s", what, type(error).__name__, error)
        elif report.num_rows:
            self._num_consecutive_failures = 0

    def _hand_over(self, progress: list[tuple[Sequence, list[int]]], finished: list[Sequence]) -> None:
        if not progress and not finished:
            return
        deliveries = [Delivery(sequence, ids) for sequence, ids in progress]
        deliveries += [Delivery(sequence, None) for sequence in finished]
        try:
            self._deliver(deliveries)
        except Exception:
            logger.exception("Delivering %d finished sequences failed.", len(finished))

    def _fail_the_rest(self) -> None:
        with self._changed:
            self._take_over()
            rest = self._engine.fail_all(DrainingError("The engine loop was stopped before this sequence ended."))
            self._is_asleep = True
            self._oldest_waiting_since = None
        self._hand_over([], rest)
        with self._changed:
            self._changed.notify_all()
