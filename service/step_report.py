"""What one step of an engine did."""

from __future__ import annotations

from typing import NamedTuple

from service.request import Sequence


class StepReport(NamedTuple):
    """What one step did, for metrics and tests."""

    finished: list[Sequence]
    """Every sequence that ended in this step, for whatever reason; each appears in one report only."""
    progress: list[tuple[Sequence, list[int]]]
    """Target tokens that have become certain, of the sequences that want to be told."""
    num_rows: int
    """Rows that decoded; 0 when no decoding step ran."""
    num_steps: int
    """Decoding steps of the run: one, or several of greedy search; 0 when none ran."""
    num_admitted: int
    """Sequences that joined the batch."""
    num_dropped: int
    """Sequences that were cancelled or expired."""
    num_dropped_steps: int
    """Decoding steps the rows of those had already taken: wasted work."""
    num_failed: int
    """Sequences that ended FAILED."""
    num_waiting: int
    """Sequences that wait after the step."""
    num_target_tokens: int
    """Target positions decided: one for each sequence and step, however many rows it has, and none after its end."""
    num_source_tokens: int
    """Source tokens encoded, without padding."""
    num_padded_source_tokens: int
    """Source tokens encoded, padding included."""
    encode_seconds: float
    """Duration of the encoder run; 0.0 when nothing was encoded."""
    decode_seconds: float
    """Duration of the decoding run in the runner; 0.0 when none ran."""
    step_seconds: float
    """Duration of the whole step."""
    encode_error: Exception | None
    """What the encoder run failed with."""
    decode_error: Exception | None
    """What the decoding step failed with."""
    num_preempted: int = 0
    """Bulk sequences that were put back for interactive ones."""
    num_preempted_steps: int = 0
    """Decoding steps the rows of those had already taken: to be taken again."""
    num_late_steps: int = 0
    """Decoding steps of rows that were begun when nobody wanted their sequences any more; told when these end."""
