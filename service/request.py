"""What one segment asks of the engine, and everything that becomes known about it on the way.

A `Sequence` is the one object of a segment in flight: the edge makes it, the scheduler queues it, the engine decodes
it and it comes back with its hypotheses, finish reason and timings. Nothing here knows gRPC, ONNX Runtime, a clock or a
thread; times are seconds of one monotonic clock that the caller chooses.
"""

from __future__ import annotations

import enum
import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from service.options import DecodingOptions


class FinishReason(enum.Enum):
    """Why a segment, or one of its hypotheses, ended."""

    STOP = "stop"
    """The model ended the sentence."""
    LENGTH = "length"
    """The limit of target tokens was reached; the text may be cut."""
    REPETITION = "repetition"
    """The target looped, and did not end by itself when it was decoded again so that the loop could not recur."""
    BLANK = "blank"
    """There was nothing to translate; set at the edge, such a segment never reaches the engine."""
    CANCELLED = "cancelled"
    """Nobody waits for it any more."""
    EXPIRED = "expired"
    """Its deadline passed."""
    FAILED = "failed"
    """Our fault; `Sequence.error` says what happened."""


class Priority(enum.Enum):
    """Who goes first."""

    INTERACTIVE = "interactive"
    """Somebody waits for it."""
    BULK = "bulk"
    """It fills the rows that interactive work leaves, and may be put back for it."""


class InvalidSequenceError(ValueError):
    """A sequence that this engine can never decode. The message names every problem."""


DEFAULT_OPTIONS = DecodingOptions()


@dataclass(frozen=True, kw_only=True, slots=True)
class Hypothesis:
    """One result of a sequence."""

    target_ids: list[int]
    """Target token ids; the end of sentence is last when the finish reason is STOP."""
    token_log_probabilities: list[float]
    """The model's own natural-log probability of each of `target_ids`, as float32 values."""
    score: float
    """Their sum."""
    normalized_score: float
    """What it was ranked by: the search score over a power of the length, and the coverage term (docs/decoding.md)."""
    finish_reason: FinishReason
    """STOP, LENGTH or REPETITION."""
    attention: npt.NDArray[np.float32] | None
    """[T,S]: of each target token, the end of sentence included, over the source tokens; None unless asked for."""

    @property
    def text_ids(self) -> list[int]:
        """Target token ids without the end of sentence: what the tokenizer turns into text."""
        ends = self.finish_reason is FinishReason.STOP
        return self.target_ids[:-1] if ends else list(self.target_ids)


def ignore_finished(sequence: Sequence) -> None:
    """The `on_finished` of a sequence nobody needs to be told about."""


@dataclass(kw_only=True, eq=False, slots=True)
class Sequence:
    """One segment in flight: what was asked, where it stands, what came out. Compared and hashed by identity."""

    source_ids: tuple[int, ...]
    """Source token ids, end of sentence included."""
    options: DecodingOptions = DEFAULT_OPTIONS
    """How to decode it."""
    deadline: float | None = None
    """Monotonic seconds after which nobody wants it; None: never."""
    on_finished: Callable[[Sequence], None] = ignore_finished
    """Called exactly once, when the sequence has ended, by whoever delivers it (see `EngineLoop`)."""
    on_progress: Callable[[Sequence, list[int]], None] | None = None
    """Called by the same with target tokens that have become certain, in their order, each once; those that were not
    certain before the sequence ended come with the result."""

    priority: Priority = Priority.INTERACTIVE
    """Whether it goes before others or after them."""
    caller: str = ""
    """Who asks for it; empty: anonymous. Callers share the rows fairly."""
    weight: float = 1.0
    """What its caller's share is multiplied by."""

    is_cancelled: bool = False
    """Set through `EngineLoop.cancel` (or `Scheduler.cancel`): leave by the next step."""
    cancelled_at: float = math.inf
    """When `EngineLoop.cancel` (or `Engine.cancel`) was told that nobody wants it; infinity before."""
    arrival: int = -1
    """Order of submission, given by the scheduler; -1 before."""

    hypotheses: list[Hypothesis] = field(default_factory=list)
    """The results, best first; empty unless it ended well."""
    was_guarded: bool = False
    """Whether it looped and was decoded again."""
    finish_reason: FinishReason | None = None
    """Why it ended; None while it has not. Of a sequence that ended well: why its best hypothesis did."""
    error: BaseException | None = None
    """What went wrong when the finish reason is FAILED."""

    submitted_at: float = math.nan
    """When the scheduler took it."""
    admitted_at: float = math.nan
    """When it left the waiting queue for the batch."""
    encoded_at: float = math.nan
    """When its encoder run was over."""
    first_token_at: float = math.nan
    """When its first target token was committed."""
    finished_at: float = math.nan
    """When it ended."""
    encode_seconds: float = 0.0
    """Duration of the encoder run it was part of."""
    num_steps: int = 0
    """Decoding steps it took part in; those before it was last put back are not counted."""
    num_late_steps: int = 0
    """Of these, how many were begun when nobody wanted it any more."""
    num_preemptions: int = 0
    """How often it was put back into the queue for others, to be decoded anew."""
    max_rows_shared: int = 0
    """The most rows that decoded in one step with it, its own included."""

    @property
    def num_source_tokens(self) -> int:
        """Source tokens, end of sentence included."""
        return len(self.source_ids)

    @property
    def target_ids(self) -> list[int]:
        """Target token ids of the best hypothesis; none before the sequence has ended well."""
        return self.hypotheses[0].target_ids if self.hypotheses else []

    @property
    def token_log_probabilities(self) -> list[float]:
        """Of the best hypothesis; see there."""
        return self.hypotheses[0].token_log_probabilities if self.hypotheses else []

    @property
    def text_ids(self) -> list[int]:
        """Of the best hypothesis; see there."""
        return self.hypotheses[0].text_ids if self.hypotheses else []

    @property
    def score(self) -> float:
        """Of the best hypothesis; see there."""
        return self.hypotheses[0].score if self.hypotheses else 0.0

    @property
    def num_row_steps(self) -> int:
        """Decoding steps its rows took part in: what `num_steps` cost."""
        return self.num_steps * self.options.num_rows

    @property
    def gone_at(self) -> float:
        """When nobody wants it any more, as far as is known now; infinity: not yet."""
        return self.cancelled_at if self.deadline is None else min(self.cancelled_at, self.deadline)

    @property
    def is_finished(self) -> bool:
        """Whether it has ended, for whatever reason."""
        return self.finish_reason is not None

    def start_over(self) -> None:
        """Forgets how far it came: it waits again, to be decoded anew."""
        self.num_preemptions += 1
        self.was_guarded = False
        self.admitted_at = self.encoded_at = self.first_token_at = math.nan
        self.encode_seconds = 0.0
        self.num_steps = self.num_late_steps = self.max_rows_shared = 0

    def finish(self, reason: FinishReason, now: float, error: BaseException | None = None) -> None:
        """Ends the sequence, once.

        Raises:
            RuntimeError: when it had ended before: two owners are at work, which is a bug.
        """
        if self.finish_reason is not None:
            raise RuntimeError(
                f"A sequence must end once, but number {self.arrival} ended {self.finish_reason} and now {reason}."
            )
        self.finish_reason = reason
        self.error = error
        self.finished_at = now


class Delivery(NamedTuple):
    """One thing to tell a sequence's owner."""

    sequence: Sequence
    certain_ids: list[int] | None
    """Target tokens that have become certain; None: the sequence has ended."""

    def make(self) -> None:
        """Tells it. What the owner's callback raises goes through."""
        if self.certain_ids is None:
            self.sequence.on_finished(self.sequence)
        elif self.sequence.on_progress is not None:
            self.sequence.on_progress(self.sequence, self.certain_ids)
