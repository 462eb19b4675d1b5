"""Which lanes run, and which of them want something special of a step."""

from __future__ import annotations

from service.lane import Lane
from service.request import Sequence


class Accounts:
    """The running lanes of one engine, in the order they came. Used by one thread at a time."""

    def __init__(self) -> None:
        self.lanes: dict[Sequence, Lane] = {}
        """All of them."""
        self.others: dict[Lane, None] = {}
        """Those that want more than the best token."""
        self.talkative: dict[Lane, None] = {}
        """Those whose owners want to be told of progress."""
        self.attentive: dict[Lane, None] = {}
        """Those that keep their attention."""
        self.fresh: list[Lane] = []
        """Those that have not decoded yet."""

    @property
    def want_best_tokens_only(self) -> bool:
        """Whether nobody wants anything of a step but the best token, nor to see it at once."""
        return not (self.others or self.talkative or self.attentive)

    def admit(self, lane: Lane) -> None:
        """A lane runs from now on; one of plain greedy search is not among `others`, all else is."""
        self.lanes[lane.sequence] = lane
        if not lane.is_plain_greedy:
            self.others[lane] = None
        if lane.sequence.on_progress is not None:
            self.talkative[lane] = None
        if lane.keeps_attention:
            self.attentive[lane] = None
        self.fresh.append(lane)

    def release(self, sequence: Sequence) -> Lane:
        """A sequence's lane runs no more; returns it."""
        lane = self.lanes.pop(sequence)
        self.others.pop(lane, None)
        self.talkative.pop(lane, None)
        self.attentive.pop(lane, None)
        return lane

    def clear(self) -> None:
        """Nobody runs."""
        for each in (self.lanes, self.others, self.talkative, self.attentive, self.fresh):
            each.clear()
