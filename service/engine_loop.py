"""The one thread that owns the engine, and the door other threads come through.

Other threads submit and cancel; the loop takes both over between steps, steps while there is work, sleeps when there is
none, and hands each step's finished sequences over together: one call a step, not one a sequence.
"""

from __future__ import annotations

import enum
import logging
import threading
import time
from collections.abc import Callable, Collection, Iterable

from service.engine import Engine, StepReport
from service.request import FinishReason, Sequence

logger = logging.getLogger(__name__)

type_of_deliver = Callable[[list[Sequence]], None]


class DrainingError(RuntimeError):
    """The loop takes no new work: it drains, has stopped or was never started."""


class LoopState(enum.Enum):
    """Where the loop stands in its life."""

    NEW = "new"
    RUNNING = "running"
    DRAINING = "draining"
    """No new work; what was accepted is decoded."""
    STOPPED = "stopped"


def deliver_directly(sequences: list[Sequence]) -> None:
    """Calls each sequence's `on_finished` in the engine's thread; one that raises does not keep the others from it."""
    for sequence in sequences:
        try:
            sequence.on_finished(sequence)
        except Exception:
            logger.exception("A finished sequence's callback failed.")


def observe_nothing(report: StepReport) -> None:
    """The observer of a loop nobody watches."""


class EngineLoop:
    """Runs an engine in a thread of its own. Every public method may be called from any thread; none waits for a step,
    but for `drain` and `stop`."""

    def __init__(
        self,
        engine: Engine,
        *,
        deliver: Callable[[list[Sequence]], None] = deliver_directly,
        observe: Callable[[StepReport], None] = observe_nothing,
        clock: Callable[[], float] = time.monotonic,
        name: str = "engine",
    ) -> None:
        """Args:
            engine: not to be touched by others from now on.
            deliver: called in the engine's thread, once a step that ended sequences, with all of them; it must see to
                it that each one's `on_finished` is called, and return at once. An asyncio side passes one that calls
                `call_soon_threadsafe` once.
            observe: called in the engine's thread after each step, before `deliver`.
            clock: monotonic seconds, the engine's.
            name: of the thread.
        """
        self._engine = engine
        self._deliver = deliver
        self._observe = observe
        self._clock = clock
        self._changed = threading.Condition()  # guards everything below
        self._state = LoopState.NEW
        self._submitted: list[Sequence] = []
        self._num_submitted_tokens = 0
        self._cancelled: list[Sequence] = []
        self._is_asleep = True
        self._heartbeat = clock()
        self._num_consecutive_failures = 0
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)

    @property
    def state(self) -> LoopState:
        """Where the loop stands."""
        return self._state

    @property
    def num_running(self) -> int:
        """Rows in use, as of about now."""
        return self._engine.scheduler.num_running

    @property
    def num_waiting(self) -> int:
        """Sequences that wait for a row, as of about now."""
        return self._engine.scheduler.num_waiting + len(self._submitted)

    @property
    def num_consecutive_failures(self) -> int:
        """Steps in a row whose encoder run or decoding step failed; any other step that ran something resets it."""
        return self._num_consecutive_failures

    def oldest_wait_seconds(self) -> float:
        """How long the sequence that waits longest has waited, as of about now; 0.0 when nobody waits."""
        raise NotImplementedError

    def stalled_seconds(self) -> float:
        """Seconds since the loop last made progress while it had work; 0.0 when it is idle or was stopped in order.

        Liveness: a value above any honest step's duration, or infinity (the thread died), asks for a restart.
        """
        raise NotImplementedError

    def start(self) -> None:
        """Starts the thread.

        Raises:
            RuntimeError: when it was started before.
        """
        raise NotImplementedError

    def submit(self, sequences: Collection[Sequence]) -> None:
        """Accepts sequences, all of them or none; returns at once.

        Raises:
            DrainingError: when the loop takes no new work.
            InvalidSequenceError: when one can never be decoded; names every problem.
            QueueFullError: when the waiting queue cannot take them now.
        """
        raise NotImplementedError

    def cancel(self, sequences: Iterable[Sequence]) -> None:
        """Makes sequences leave by the next step; they are delivered with CANCELLED unless they ended before."""
        raise NotImplementedError

    def begin_drain(self) -> None:
        """Refuses new work from now on; accepted work goes on."""
        raise NotImplementedError

    def drain(self, timeout_seconds: float) -> bool:
        """Refuses new work and waits until accepted work has ended and was delivered. Not for the asyncio thread.

        Returns:
            Whether it ended within the time.
        """
        raise NotImplementedError

    def stop(self) -> None:
        """Ends the thread after the step at hand and waits for it; what has not ended is delivered with FAILED and
        a `DrainingError`. Calling it again does nothing."""
        raise NotImplementedError

    def _run(self) -> None:
        raise NotImplementedError
