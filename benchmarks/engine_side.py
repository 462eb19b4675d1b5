"""Sentences decoded by the service's engine in this process, for comparisons that look at tokens and scores."""

from __future__ import annotations

from collections.abc import Sequence as Ordered

from service.bundle import Bundle
from service.engine import Engine
from service.model_runner import OnnxModelRunner
from service.options import DecodingOptions
from service.request import Sequence

Request = tuple[tuple[int, ...], DecodingOptions]
"""Source ids, end of sentence included, and how to decode them."""


def open_engine(
    bundle: Bundle, *, max_rows: int, max_source_tokens: int, max_target_tokens: int, num_threads: int = 1
) -> Engine:
    """An engine with all rows of a runner of its own."""
    runner = OnnxModelRunner(
        bundle,
        max_rows=max_rows,
        max_source_tokens=max_source_tokens,
        max_target_tokens=max_target_tokens,
        num_threads=num_threads,
    )
    return Engine.over(runner)


def decode_all(engine: Engine, requests: Ordered[Request]) -> list[Sequence]:
    """The sequences, decoded in company, in the order of `requests`.

    Raises:
        RuntimeError: when one failed.
    """
    sequences = [Sequence(source_ids=source_ids, options=options) for source_ids, options in requests]
    engine.run_to_completion(sequences)
    failed = [sequence for sequence in sequences if not sequence.hypotheses]
    if failed:
        raise RuntimeError(f"{len(failed)} of {len(sequences)} sequences failed, the first with {failed[0].error!r}.")
    return sequences
