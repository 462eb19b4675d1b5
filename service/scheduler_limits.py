"""How much may wait, and how much is done at a time?"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass

from service.request import Sequence


class QueueFullError(RuntimeError):
    """The waiting queue cannot take these sequences now; all of them are refused."""

    def __init__(self, message: str, *, num_waiting_sequences: int, num_waiting_tokens: int) -> None:
        super().__init__(message)
        self.num_waiting_sequences = num_waiting_sequences
        """Sequences waiting when it was refused."""
        self.num_waiting_tokens = num_waiting_tokens
        """Source tokens waiting when it was refused."""


@dataclass(frozen=True, kw_only=True)
class SchedulerLimits:
    """What bounds the queue and a step."""

    max_rows: int
    """Rows of the running batch."""
    max_source_tokens: int
    """The longest source a sequence may have, end of sentence included."""
    source_vocabulary_size: int
    """Source token ids are 0..source_vocabulary_size-1."""
    target_vocabulary_size: int | None = None
    """Target token ids are 0..target_vocabulary_size-1; None: those of options are not checked."""
    max_waiting_sequences: int = 8192
    """Sequences that may wait for a row."""
    max_waiting_tokens: int = 262_144
    """Source tokens that may wait for a row, over all waiting sequences."""
    max_encode_tokens_per_step: int = 1024
    """Padded source tokens that one step encodes, so that running sequences do not stall behind newcomers; a single
    longer sequence is encoded alone."""
    reserved_share: float = 0.0
    """Share of what may wait that is kept for interactive sequences of callers none of whose wait."""
    bulk_patience_seconds: float = 5.0
    """How long bulk sequences wait at most for rows that nobody else wants."""

    def problems(self) -> list[str]:
        """Every rule these limits break, in words; empty when they are sound."""
        problems = [
            f"`{name}` must be at least 1, but is {value}."
            for name, value in (
                ("max_rows", self.max_rows),
                ("max_source_tokens", self.max_source_tokens),
                ("source_vocabulary_size", self.source_vocabulary_size),
                ("max_waiting_sequences", self.max_waiting_sequences),
                ("max_waiting_tokens", self.max_waiting_tokens),
                ("max_encode_tokens_per_step", self.max_encode_tokens_per_step),
            )
            if value < 1
        ]
        if not 0 <= self.reserved_share < 1:
            problems.append(f"`reserved_share` must be at least 0 and below 1, but is {self.reserved_share}.")
        if not self.bulk_patience_seconds >= 0:
            problems.append(f"`bulk_patience_seconds` must be at least 0, but is {self.bulk_patience_seconds}.")
        return problems

    def most_waiting(self, *, with_reserve: bool) -> tuple[int, int]:
        """Sequences and source tokens that may wait, with what is kept in reserve or without."""
        most, most_tokens = self.max_waiting_sequences, self.max_waiting_tokens
        if with_reserve:
            return most, most_tokens
        return most - int(most * self.reserved_share), most_tokens - int(most_tokens * self.reserved_share)

    def check_room(
        self,
        sequences: Collection[Sequence],
        *,
        num_waiting_sequences: int,
        num_waiting_tokens: int,
        with_reserve: bool = True,
    ) -> None:
        """Refuses sequences that, beside what waits already, are too many or too long to wait; all of them or none.

        Args:
            sequences: what asks for room.
            num_waiting_sequences: what waits already.
            num_waiting_tokens: its source tokens.
            with_reserve: whether they may take what is kept in reserve.

        Raises:
            QueueFullError: when a limit would be passed.
        """
        tokens = sum(sequence.num_source_tokens for sequence in sequences)
        most, most_tokens = self.most_waiting(with_reserve=with_reserve)
        for name, limit, now, more in (
            ("sequences", most, num_waiting_sequences, len(sequences)),
            ("source tokens", most_tokens, num_waiting_tokens, tokens),
        ):
            if now + more > limit:
                raise QueueFullError(
                    f"At most {limit} {name} may wait, but {now} do and {more} more were asked for.",
                    num_waiting_sequences=num_waiting_sequences,
                    num_waiting_tokens=num_waiting_tokens,
                )
