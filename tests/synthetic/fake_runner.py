"""A runner without a model: it copies the source, and scores each token by everything its row should have seen.

It keeps what a real slab keeps (the source and the cached tokens of each row) and works from that alone, so a row that
was placed, moved or fed wrongly gives other tokens or other scores than `expected` says. What no runner may be asked to
do goes into `violations`, because an engine would turn an exception into a failed sequence.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np

from service.runner import Candidates, EncodedBatch, EncodedSource
from service.tokenizer import BOS_ID, EOS_ID


class RunnerBrokeError(RuntimeError):
    """What the fake raises when a test told it to fail."""


@dataclass
class FakeRow:
    """What one row of the slab holds."""

    source: tuple[int, ...]
    cached: list[int] = field(default_factory=list)


def next_token(source: Sequence[int], position: int) -> int:
    """The token at a position: the source's own; a source that does not end is copied round and round."""
    return source[position % len(source)]


def log_probability(source: Sequence[int], cached: Sequence[int]) -> float:
    """A float32 between -1 and 0 that depends on every source token and every cached token."""
    seen = np.array([len(source), *source, *cached], np.int64).tobytes()
    return float(np.float32(-(zlib.crc32(seen) % 99_991 + 1) / 100_000))


def expected(source: Sequence[int], max_target_tokens: int) -> tuple[list[int], list[float]]:
    """Tokens and log-probabilities of greedy search, computed without any runner."""
    tokens: list[int] = []
    scores: list[float] = []
    while len(tokens) < max_target_tokens and (not tokens or tokens[-1] != EOS_ID):
        scores.append(log_probability(source, [BOS_ID, *tokens]))
        tokens.append(next_token(source, len(tokens)))
    return tokens, scores


def never(*_arguments: object) -> bool:
    """The condition that no call meets."""
    return False


def always(*_arguments: object) -> bool:
    """The condition that every call meets."""
    return True


def nothing() -> None:
    """What is done before a step that nobody waits for."""


class FakeRunner:
    """See `service.runner.Runner`."""

    def __init__(
        self,
        *,
        max_rows: int = 4,
        max_source_tokens: int = 32,
        max_target_tokens: int = 40,
        source_vocabulary_size: int = 1000,
    ) -> None:
        self.max_rows = max_rows
        self.max_source_tokens = max_source_tokens
        self.max_target_tokens = max_target_tokens
        self.source_vocabulary_size = source_vocabulary_size
        self.rows: dict[int, FakeRow] = {}
        self.violations: list[str] = []
        self.rows_per_step: list[int] = []
        self.encoded: list[tuple[int, ...]] = []
        self.fail_encode: Callable[[Sequence[Sequence[int]]], bool] = never
        self.fail_place: Callable[[int], bool] = never
        self.fail_decode: Callable[[int], bool] = never
        self.fail_move: Callable[[int, int], bool] = never
        self.is_nan: Callable[[tuple[int, ...]], bool] = never
        self.before_step: Callable[[], None] = nothing

    def padded_length(self, source_length: int) -> int:
        """Rounded up to a multiple of 8."""
        return -(-source_length // 8) * 8

    def encode(self, sources: Sequence[Sequence[int]]) -> EncodedBatch:
        """Keeps the sources."""
        if self.fail_encode(sources):
            raise RunnerBrokeError("encode")
        self.encoded += [tuple(source) for source in sources]
        return EncodedBatch(
            sources=[EncodedSource(source_length=len(source), payload=tuple(source)) for source in sources],
            num_tokens=sum(len(source) for source in sources),
            num_padded_tokens=sum(self.padded_length(len(source)) for source in sources),
        )

    def place(self, row: int, encoded: EncodedSource) -> None:
        """Puts a source into a row, which then has no past."""
        if self.fail_place(row):
            raise RunnerBrokeError("place")
        if not 0 <= row < self.max_rows:
            self.violations.append(f"placed into row {row} of {self.max_rows}")
        self.rows[row] = FakeRow(encoded.payload)

    def move_row(self, source_row: int, target_row: int, *, past_length: int, source_length: int) -> None:
        """Copies a row's content; the old row keeps garbage."""
        if self.fail_move(source_row, target_row):
            raise RunnerBrokeError("move")
        row = self.rows[source_row]
        if (past_length, source_length) != (len(row.cached), len(row.source)):
            self.violations.append(f"row {source_row} was moved with lengths {past_length}, {source_length}")
        self.rows[target_row] = FakeRow(row.source[:source_length], row.cached[:past_length])
        self.rows[source_row] = FakeRow((999,) * 5, [998] * 7)

    def decode_step(
        self,
        target_ids: Sequence[int],
        past_lengths: Sequence[int],
        source_lengths: Sequence[int],
        num_candidates: int,
    ) -> Candidates:
        """The next token of every row, from what the row holds."""
        num_rows = len(target_ids)
        self.rows_per_step.append(num_rows)
        self.before_step()
        if self.fail_decode(len(self.rows_per_step) - 1):
            raise RunnerBrokeError("decode")
        if not 1 <= num_rows <= self.max_rows:
            self.violations.append(f"{num_rows} rows of {self.max_rows}")
        token_ids = np.zeros((num_rows, num_candidates), np.int64)
        log_probabilities = np.full((num_rows, num_candidates), -50.0, np.float32)
        for index in range(num_rows):
            row = self.rows[index]
            if past_lengths[index] != len(row.cached) or source_lengths[index] != len(row.source):
                self.violations.append(
                    f"row {index} was run with lengths {past_lengths[index]}, {source_lengths[index]}"
                )
            if past_lengths[index] >= self.max_target_tokens:
                self.violations.append(f"row {index} was run past its cache")
            row.cached = [*row.cached[: past_lengths[index]], int(target_ids[index])]
            token_ids[index, 0] = next_token(row.source, len(row.cached) - 1)
            log_probabilities[index, 0] = np.nan if self.is_nan(row.source) else log_probability(row.source, row.cached)
        return Candidates(token_ids=token_ids, log_probabilities=log_probabilities)
