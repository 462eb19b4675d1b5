"""Several engine loops that serve one model side by side, behind the door of one.

Threads inside a step scale badly for small graphs, and stand idle while the engine's own Python runs. Loops side by
side, each with its own slab and thread, do not wait for each other: on two cores, two of one thread answered a
third more calls than one of one or two threads (docs/decisions/0003-engines-side-by-side.md).
Since a translation's bytes do not depend on its company, it does not matter which loop decodes it.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable
from collections.abc import Sequence as Row
from contextlib import ExitStack

from service.engine_loop import EngineLoop
from service.request import Priority, Sequence


class LoopGroup:
    """Engine loops of one model. Every method may be called from any thread; none but `stop` waits for a step."""

    def __init__(self, loops: Row[EngineLoop]) -> None:
        """`loops`, at least one, are alike: each one's queue limits are the group's.

        Raises:
            ValueError: when there is none.
        """
        if not loops:
            raise ValueError("A group must have at least one loop, but has none.")
        self._loops = tuple(loops)

    @property
    def loops(self) -> tuple[EngineLoop, ...]:
        """The loops side by side."""
        return self._loops

    @property
    def num_running(self) -> int:
        """Sequences that are being decoded, over all loops, as of about now."""
        return sum(loop.num_running for loop in self._loops)

    @property
    def num_used_rows(self) -> int:
        """Rows in use, over all loops, as of about now."""
        return sum(loop.num_used_rows for loop in self._loops)

    @property
    def num_waiting(self) -> int:
        """Sequences that wait for a row, over all loops, as of about now."""
        return sum(loop.num_waiting for loop in self._loops)

    @property
    def num_used_interactive_rows(self) -> int:
        """Rows that interactive sequences use, over all loops, as of about now."""
        return sum(loop.num_used_interactive_rows for loop in self._loops)

    @property
    def num_interactive_rows_wanted(self) -> int:
        """Rows that interactive sequences use or wait for, over all loops, as of about now."""
        return sum(loop.num_interactive_rows_wanted for loop in self._loops)

    @property
    def num_waiting_interactive_tokens(self) -> int:
        """Source tokens of interactive sequences that wait for a row, over all loops, as of about now."""
        return sum(loop.num_waiting_interactive_tokens for loop in self._loops)

    def num_waiting_of(self, priority: Priority) -> int:
        """Sequences of a priority that wait for a row, over all loops, as of about now."""
        return sum(loop.num_waiting_of(priority) for loop in self._loops)

    @property
    def num_waiting_tokens(self) -> int:
        """Source tokens that wait for a row, over all loops, as of about now."""
        return sum(loop.num_waiting_tokens for loop in self._loops)

    @property
    def is_full(self) -> bool:
        """Whether not even one more sequence could wait, as of about now."""
        limits = self._loops[0].limits
        return self.num_waiting >= limits.max_waiting_sequences or self.num_waiting_tokens >= limits.max_waiting_tokens

    def is_full_for(self, priority: Priority, caller: str) -> bool:
        """Whether not even one more sequence of a caller could wait, as of about now: most may not take the reserve."""
        most, most_tokens = self._loops[0].limits.most_waiting(with_reserve=self._may_take_reserve(priority, caller))
        return self.num_waiting >= most or self.num_waiting_tokens >= most_tokens

    def _may_take_reserve(self, priority: Priority, caller: str) -> bool:
        return priority is Priority.INTERACTIVE and not any(loop.has_interactive_of(caller) for loop in self._loops)

    @property
    def num_consecutive_failures(self) -> int:
        """Failed steps in a row of the loop that has most."""
        return max(loop.num_consecutive_failures for loop in self._loops)

    def oldest_wait_seconds(self) -> float:
        """How long the sequence that waits longest has waited, as of about now; 0.0 when nobody waits."""
        return max(loop.oldest_wait_seconds() for loop in self._loops)

    def stalled_seconds(self) -> float:
        """Seconds since the loop that stands longest made progress while it had work; see `EngineLoop`."""
        return max(loop.stalled_seconds() for loop in self._loops)

    def start(self) -> None:
        """Starts every loop.

        Raises:
            RuntimeError: when one was started before, or stopped.
        """
        for loop in self._loops:
            loop.start()

    def submit(self, sequences: Collection[Sequence]) -> None:
        """Accepts sequences, all of them or none, each by the loop that has least to do; returns at once.

        Raises:
            DrainingError, InvalidSequenceError, QueueFullError: as `EngineLoop.submit`; the limits hold for the group.
        """
        with ExitStack() as holds:
            for loop in self._loops:  # always in this order, and a loop's thread holds no other: no deadlock
                holds.enter_context(loop.held())
            self._loops[0].limits.check_room(
                sequences,
                num_waiting_sequences=self.num_waiting,
                num_waiting_tokens=self.num_waiting_tokens,
                with_reserve=all(
                    self._may_take_reserve(priority, caller)
                    for priority, caller in {(each.priority, each.caller) for each in sequences}
                ),
            )
            shares = self._share(sequences)
            for loop, share in shares:
                loop.check(share)
            for loop, share in shares:
                loop.submit(share)

    def _share(self, sequences: Collection[Sequence]) -> list[tuple[EngineLoop, list[Sequence]]]:
        """Which loop takes which sequences, in their order; loops that take none are left out, unless all do.

        A sequence weighs what it costs a step: its rows. Bulk ones are not in the way of interactive ones, and
        count for these only where there is nothing else to choose by.
        """
        loads = [(loop.num_interactive_rows_wanted, loop.num_rows_wanted) for loop in self._loops]
        shares: list[list[Sequence]] = [[] for _ in self._loops]
        for sequence in sequences:
            num_rows = sequence.options.num_rows
            if sequence.priority is Priority.INTERACTIVE:
                least = loads.index(min(loads))
                loads[least] = (loads[least][0] + num_rows, loads[least][1] + num_rows)
            else:
                least = min(range(len(loads)), key=lambda index: loads[index][1])
                loads[least] = (loads[least][0], loads[least][1] + num_rows)
            shares[least].append(sequence)
        return [(loop, share) for loop, share in zip(self._loops, shares, strict=True) if share] or [
            (self._loops[0], [])
        ]

    def cancel(self, sequences: Iterable[Sequence]) -> None:
        """Makes sequences leave by the next step; those of another loop are nothing to a loop."""
        given = list(sequences)
        for loop in self._loops:
            loop.cancel(given)

    def begin_drain(self) -> None:
        """Refuses new work from now on; accepted work goes on."""
        for loop in self._loops:
            loop.begin_drain()

    def stop(self, timeout_seconds: float = 10.0) -> bool:
        """Stops every loop as `EngineLoop.stop` does.

        Returns:
            Whether every thread ended within the time, which each has.
        """
        have_ended = True
        for loop in self._loops:
            have_ended &= loop.stop(timeout_seconds)
        return have_ended
