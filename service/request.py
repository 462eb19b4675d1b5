"""What one segment asks of the engine, and everything that becomes known about it on the way.

A `Sequence` is the one object of a segment in flight: the edge makes it, the scheduler queues it, the engine decodes
it and it comes back with its tokens, scores, finish reason and timings. Nothing here knows gRPC, ONNX Runtime, a clock
or a thread; times are seconds of one monotonic clock that the caller chooses.
"""

from __future__ import annotations

import enum
import math
from collections.abc import Callable
from dataclasses import dataclass, field


class FinishReason(enum.Enum):
    """Why a segment ended."""

    STOP = "stop"
    """The model ended the sentence."""
    LENGTH = "length"
    """The limit of target tokens was reached; the text may be cut."""
    BLANK = "blank"
    """There was nothing to translate; set at the edge, such a segment never reaches the engine."""
    CANCELLED = "cancelled"
    """Nobody waits for it any more."""
    EXPIRED = "expired"
    """Its deadline passed."""
    FAILED = "failed"
    """Our fault; `Sequence.error` says what happened."""


class InvalidSequenceError(ValueError):
    """A sequence that this engine can never decode. The message names every problem."""


@dataclass(frozen=True, kw_only=True)
class DecodingOptions:
    """How a caller wants a segment decoded."""

    max_target_tokens: int | None = None
    """The most target tokens, end of sentence included; None: as many as the engine's cache holds."""

    def problems(self) -> list[str]:
        """Every rule these options break, in words; empty when they are sound."""
        if self.max_target_tokens is not None and self.max_target_tokens < 1:
            return [f"`max_target_tokens` must be at least 1, but is {self.max_target_tokens}."]
        return []


DEFAULT_OPTIONS = DecodingOptions()


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

    is_cancelled: bool = False
    """Set through `EngineLoop.cancel` (or `Scheduler.cancel`): leave by the next step."""
    arrival: int = -1
    """Order of submission, given by the scheduler; -1 before."""
    row: int | None = None
    """Row of the running batch it owns; None while it waits and after it ended."""

    target_ids: list[int] = field(default_factory=list)
    """Target token ids so far; ends with the end of sentence when the finish reason is STOP."""
    token_log_probabilities: list[float] = field(default_factory=list)
    """Natural-log probability of each of `target_ids`, as float32 values."""
    finish_reason: FinishReason | None = None
    """Why it ended; None while it has not."""
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
    """Decoding steps it took part in."""
    max_rows_shared: int = 0
    """The most rows that decoded in one step with it, its own included."""

    @property
    def num_source_tokens(self) -> int:
        """Source tokens, end of sentence included."""
        return len(self.source_ids)

    @property
    def text_ids(self) -> list[int]:
        """Target token ids without the end of sentence: what the tokenizer turns into text."""
        ends = self.finish_reason is FinishReason.STOP
        return self.target_ids[:-1] if ends else list(self.target_ids)

    @property
    def score(self) -> float:
        """Sum of the natural-log probabilities of the target tokens, end of sentence included."""
        return math.fsum(self.token_log_probabilities)

    @property
    def is_finished(self) -> bool:
        """Whether it has ended, for whatever reason."""
        return self.finish_reason is not None

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
