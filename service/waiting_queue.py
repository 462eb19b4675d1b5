"""Who waits for a row, and who is next?

Interactive sequences come before bulk ones. Those of one priority stand in lines, one for each caller, first in,
first out, and the lines take turns by start-time fair queueing (Goyal et al. 1996). A line's *tag* grows with what its
sequences cost, divided by their weight, and the lowest tag is next; equal ones go by arrival. So a caller gets its
share however much the others ask for, and one caller alone meets a plain queue.

Whoever comes anew starts at the *virtual time*: how far everybody's fair share has come. It also grows by what is
taken, divided by the weight of all who wait, so that an endless row of new callers cannot hold up one that is there.
"""

from __future__ import annotations

from bisect import bisect_left, insort
from collections import OrderedDict
from collections.abc import Callable, Collection, Iterator
from heapq import heappop, heappush
from itertools import chain, islice

from service.request import Priority, Sequence

_FEW_DEBTS = 64


class _Line:
    """What one caller waits for."""

    __slots__ = ("entry", "sequences", "tag", "weight")

    def __init__(self, tag: float) -> None:
        self.sequences: OrderedDict[Sequence, None] = OrderedDict()
        self.tag = tag
        self.weight = 0.0
        self.entry: tuple[float, int, _Line] = (tag, -1, self)

    def prepare_entry(self) -> tuple[float, int, _Line]:
        """Its place among the lines: tag, arrival of the first; no two have the same."""
        self.entry = (self.tag, next(iter(self.sequences)).arrival, self)
        return self.entry


class FairQueue:
    """The lines of one priority."""

    def __init__(self, cost: Callable[[Sequence], float]) -> None:
        """`cost` of a sequence, above 0: what its caller's share is counted in."""
        self._cost = cost
        self._lines: dict[str, _Line] = {}
        self._order: list[tuple[float, int, _Line]] = []  # sorted
        self._virtual_time = 0.0
        self._total_weight = 0.0
        # Tags above the virtual time of callers who wait for nothing: coming back at once does not make them new.
        self._debts: dict[str, float] = {}
        self._most_debts = _FEW_DEBTS
        # Who waits, with cost and rows: by arrival, but first the few that came back.
        self._waiting: OrderedDict[Sequence, tuple[float, int]] = OrderedDict()
        self.num_tokens = 0
        """Source tokens that wait."""
        self.num_rows = 0
        """Rows that are waited for."""

    def __len__(self) -> int:
        """Sequences that wait."""
        return len(self._waiting)

    def __contains__(self, sequence: Sequence) -> bool:
        """Whether a sequence waits here."""
        return sequence in self._waiting

    def __iter__(self) -> Iterator[Sequence]:
        """Who waits, in no particular order."""
        return iter(self._waiting)

    def has_caller(self, caller: str) -> bool:
        """Whether a caller waits for anything."""
        return caller in self._lines

    def oldest_since(self) -> float | None:
        """When the one that waits longest was submitted; None when nobody waits."""
        oldest: float | None = None
        for sequence in self._waiting:
            if oldest is None or sequence.submitted_at < oldest:
                oldest = sequence.submitted_at
            if not sequence.num_preemptions:
                break
        return oldest

    def in_order(self, left_out: Collection[Sequence] = ()) -> Iterator[Sequence]:
        """Who is next, and after that, if nobody comes and those `left_out` are not there. Changes nothing, and looks
        at no more lines than it must; nothing may change while it is followed."""
        again: list[tuple[float, int, Sequence, Iterator[Sequence]]] = []  # a heap: lines that have had a turn
        order, index = self._order, 0
        while again or index < len(order):
            if again and (index == len(order) or again[0][:2] < order[index][:2]):
                tag, _, sequence, rest = heappop(again)
            else:
                tag, arrival, line = order[index]
                index += 1
                rest = (each for each in line.sequences if each not in left_out) if left_out else iter(line.sequences)
                first = next(rest, None)
                if first is None or first.arrival != arrival:  # the first of the line is left out
                    if first is not None:
                        heappush(again, (tag, first.arrival, first, rest))
                    continue
                sequence = first
            yield sequence
            following = next(rest, None)
            if following is not None:
                paid = self._waiting[sequence][0] / sequence.weight
                heappush(again, (tag + paid, following.arrival, following, rest))

    def add(self, sequence: Sequence) -> None:
        """A sequence comes, last of its line."""
        line = self._line_of(sequence)
        line.sequences[sequence] = None
        self._place(line, sequence, self._cost(sequence))

    def put_back(self, sequence: Sequence) -> None:
        """A sequence that was taken comes back: first of its line, and what its caller paid is paid back."""
        line, cost = self._line_of(sequence), self._cost(sequence)
        line.tag -= cost / sequence.weight
        line.sequences[sequence] = None
        line.sequences.move_to_end(sequence, last=False)
        self._place(line, sequence, cost)
        self._waiting.move_to_end(sequence, last=False)

    def take(self, sequence: Sequence) -> None:
        """A sequence has what it waited for; its caller pays.

        Raises:
            KeyError: when it does not wait.
        """
        cost, _ = self._waiting[sequence]
        line = self._lines[sequence.caller]
        total_weight = max(self._total_weight, line.weight)  # a sum of very unlike weights may lose the least
        share = min(self._virtual_time + cost / total_weight, self._order[-1][0])
        self._virtual_time = max(self._virtual_time, share, line.tag)
        self._leave(sequence, line, cost / sequence.weight)

    def remove(self, sequence: Sequence) -> None:
        """A sequence waits no more, for nothing.

        Raises:
            KeyError: when it does not wait.
        """
        self._leave(sequence, self._lines[sequence.caller], 0.0)

    def _line_of(self, sequence: Sequence) -> _Line:
        """The line of a sequence's caller, out of the order until it is placed."""
        line = self._lines.get(sequence.caller)
        if line is None:
            tag = max(self._virtual_time, self._debts.pop(sequence.caller, self._virtual_time))
            line = self._lines[sequence.caller] = _Line(tag)
        else:
            self._take_out(line)
        self._total_weight += sequence.weight - line.weight
        line.weight = sequence.weight
        return line

    def _place(self, line: _Line, newcomer: Sequence, cost: float) -> None:
        insort(self._order, line.prepare_entry())
        num_rows = newcomer.options.num_rows
        self._waiting[newcomer] = cost, num_rows
        self.num_tokens += len(newcomer.source_ids)
        self.num_rows += num_rows

    def _take_out(self, line: _Line) -> None:
        order, entry = self._order, line.entry
        del order[0 if order[0] is entry else bisect_left(order, entry)]

    def _leave(self, sequence: Sequence, line: _Line, paid: float) -> None:
        del line.sequences[sequence]
        self._take_out(line)
        _, num_rows = self._waiting.pop(sequence)
        self.num_tokens -= len(sequence.source_ids)
        self.num_rows -= num_rows
        line.tag += paid
        if line.sequences:
            insort(self._order, line.prepare_entry())
            return
        del self._lines[sequence.caller]
        self._total_weight -= line.weight
        if not self._lines:  # nobody has a claim against anybody
            self._virtual_time = self._total_weight = 0.0
            self._debts.clear()
        elif line.tag > self._virtual_time:
            self._debts[sequence.caller] = line.tag
            if len(self._debts) > self._most_debts:
                self._debts = {name: tag for name, tag in self._debts.items() if tag > self._virtual_time}
                self._most_debts = max(_FEW_DEBTS, 2 * len(self._debts))


class WaitingQueue:
    """Everybody who waits. Used by one thread at a time, but for the numbers."""

    def __init__(self, cost: Callable[[Sequence], float]) -> None:
        """`cost` of a sequence: see `FairQueue`."""
        self._cost = cost
        self.interactive = FairQueue(cost)
        """Those of interactive priority."""
        self.bulk = FairQueue(cost)
        """Those of bulk priority."""

    def __len__(self) -> int:
        """Sequences that wait."""
        return len(self.interactive) + len(self.bulk)

    def __contains__(self, sequence: Sequence) -> bool:
        """Whether a sequence waits."""
        return sequence in self.of(sequence.priority)

    def __iter__(self) -> Iterator[Sequence]:
        """Who waits, in no particular order."""
        yield from self.interactive
        yield from self.bulk

    def of(self, priority: Priority) -> FairQueue:
        """Those of a priority."""
        return self.bulk if priority is Priority.BULK else self.interactive

    @property
    def num_tokens(self) -> int:
        """Source tokens that wait."""
        return self.interactive.num_tokens + self.bulk.num_tokens

    @property
    def num_rows(self) -> int:
        """Rows that are waited for."""
        return self.interactive.num_rows + self.bulk.num_rows

    def oldest_since(self) -> float | None:
        """When the one that waits longest was submitted; None when nobody waits."""
        interactive, bulk = self.interactive.oldest_since(), self.bulk.oldest_since()
        if interactive is None or bulk is None:
            return bulk if interactive is None else interactive
        return min(interactive, bulk)

    def in_order(self, left_out: Collection[Sequence] = (), *, bulk_first: bool = False) -> Iterator[Sequence]:
        """As `FairQueue.in_order`: interactive sequences, then bulk ones; with `bulk_first` one of these before all."""
        interactive, bulk = self.interactive.in_order(left_out), self.bulk.in_order(left_out)
        return chain(islice(bulk, 1), interactive, bulk) if bulk_first else chain(interactive, bulk)

    def clear(self) -> None:
        """Nobody waits."""
        self.interactive = FairQueue(self._cost)
        self.bulk = FairQueue(self._cost)
