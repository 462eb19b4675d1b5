"""A runner without a model: what may follow is computed from everything a row should have seen.

It keeps what a real slab keeps (the source of each lane, the cached tokens of each row) and works from that alone, so a
lane that was placed, or a row that was moved, branched or fed wrongly gives other tokens or other scores than a search
over the same `Language` without any runner. What no runner may be asked to do goes into `violations`, because an engine
would turn an exception into a failed sequence.
"""

from __future__ import annotations

import math
import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np
import numpy.typing as npt

from service.runner import EncodedBatch, EncodedSource, GreedyOutputs, StepInputs, StepOutputs
from service.tokenizer import BOS_ID, EOS_ID, PAD_ID

NUM_HEADS = 2


class RunnerBrokeError(RuntimeError):
    """What the fake raises when a test told it to fail."""


class Language(Protocol):
    """What may follow a target, given its source."""

    vocabulary_size: int

    def log_probabilities(self, source: Sequence[int], cached: Sequence[int]) -> npt.NDArray[np.float32]:
        """[V], for the cached tokens, begin of sentence first."""
        ...

    def attention(self, source: Sequence[int], cached: Sequence[int]) -> npt.NDArray[np.float32]:
        """[H,S], for the same."""
        ...


def _seen(source: Sequence[int], cached: Sequence[int]) -> int:
    """A number that depends on every source token and every cached token."""
    return zlib.crc32(np.array([len(source), *source, *cached], np.int64).tobytes())


def next_token(source: Sequence[int], position: int) -> int:
    """The token at a position: the source's own; a source that does not end is copied round and round."""
    return source[position % len(source)]


def log_probability(source: Sequence[int], cached: Sequence[int]) -> float:
    """A float32 between -1 and 0 that depends on every source token and every cached token."""
    return float(np.float32(-(_seen(source, cached) % 99_991 + 1) / 100_000))


def expected(source: Sequence[int], max_target_tokens: int) -> tuple[list[int], list[float]]:
    """Tokens and log-probabilities of greedy search in the language of copies, computed without any runner."""
    tokens: list[int] = []
    scores: list[float] = []
    while len(tokens) < max_target_tokens and (not tokens or tokens[-1] != EOS_ID):
        scores.append(log_probability(source, [BOS_ID, *tokens]))
        tokens.append(next_token(source, len(tokens)))
    return tokens, scores


class Copies:
    """The source is copied; the log-probability of each copied token tells all that was seen."""

    def __init__(self, vocabulary_size: int = 1000) -> None:
        self.vocabulary_size = vocabulary_size

    def log_probabilities(self, source: Sequence[int], cached: Sequence[int]) -> npt.NDArray[np.float32]:
        """See `Language`."""
        values = np.full(self.vocabulary_size, -50.0, np.float32)
        values[next_token(source, len(cached) - 1)] = log_probability(source, cached)
        return values

    def attention(self, source: Sequence[int], cached: Sequence[int]) -> npt.NDArray[np.float32]:
        """See `Language`: all of it on the copied token."""
        weights = np.zeros((NUM_HEADS, len(source)), np.float32)
        weights[:, (len(cached) - 1) % len(source)] = 1.0
        return weights


class Babble:
    """Random distributions, other ones after every target: many searches, ends and ties of every kind come about."""

    def __init__(self, vocabulary_size: int = 24, *, sharpness: float = 1.5, seed: int = 0) -> None:
        self.vocabulary_size = vocabulary_size
        self._sharpness = sharpness
        self._seed = seed

    def log_probabilities(self, source: Sequence[int], cached: Sequence[int]) -> npt.NDArray[np.float32]:
        """See `Language`."""
        chance = np.random.default_rng([self._seed, _seen(source, cached)])
        logits = chance.normal(size=self.vocabulary_size) * self._sharpness
        logits[EOS_ID] += 0.3 * (len(cached) - len(source))  # ends come about where the source does
        logits[[PAD_ID, BOS_ID]] = -1e9
        shifted = logits - logits.max()
        return (shifted - math.log(np.exp(shifted).sum())).astype(np.float32)

    def attention(self, source: Sequence[int], cached: Sequence[int]) -> npt.NDArray[np.float32]:
        """See `Language`."""
        chance = np.random.default_rng([self._seed, 1, _seen(source, cached)])
        weights = chance.random((NUM_HEADS, len(source)))
        return (weights / weights.sum(axis=1, keepdims=True)).astype(np.float32)


def never(*_arguments: object) -> bool:
    """The condition that no call meets."""
    return False


def always(*_arguments: object) -> bool:
    """The condition that every call meets."""
    return True


def nothing() -> None:
    """What is done before a step that nobody waits for."""


@dataclass
class FakeRow:
    """What one row of the slab has cached."""

    cached: list[int] = field(default_factory=list)


class FakeRunner:
    """See `service.runner.Runner`."""

    def __init__(
        self,
        *,
        max_rows: int = 4,
        max_source_tokens: int = 32,
        max_target_tokens: int = 40,
        source_vocabulary_size: int = 1000,
        language: Language | None = None,
        greedy_steps: int = 1,
    ) -> None:
        self.language = language or Copies(source_vocabulary_size)
        self.greedy_steps = greedy_steps
        self.max_rows = max_rows
        self.max_source_tokens = max_source_tokens
        self.max_target_tokens = max_target_tokens
        self.source_vocabulary_size = source_vocabulary_size
        self.target_vocabulary_size = self.language.vocabulary_size
        self.lanes: dict[int, tuple[int, ...]] = {}
        self.rows: dict[int, FakeRow] = {}
        self.violations: list[str] = []
        self.rows_per_step: list[int] = []
        self.copied_positions = 0
        self.encoded: list[tuple[int, ...]] = []
        self.fail_encode: Callable[[Sequence[Sequence[int]]], bool] = never
        self.fail_place: Callable[[int], bool] = never
        self.fail_decode: Callable[[int], bool] = never
        self.fail_copy: Callable[[int, int], bool] = never
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

    def place(self, lane: int, encoded: EncodedSource) -> None:
        """Puts a source into a lane."""
        if self.fail_place(lane):
            raise RunnerBrokeError("place")
        if not 0 <= lane < self.max_rows:
            self.violations.append(f"placed into lane {lane} of {self.max_rows}")
        self.lanes[lane] = encoded.payload

    def copy_lane(self, source_lane: int, target_lane: int, *, source_length: int) -> None:
        """Copies a lane's source; the old lane keeps garbage."""
        if self.fail_copy(source_lane, target_lane):
            raise RunnerBrokeError("copy")
        source = self.lanes[source_lane]
        if source_length != len(source):
            self.violations.append(f"lane {source_lane} was copied with length {source_length}")
        self.lanes[target_lane] = source[:source_length]
        self.lanes[source_lane] = (999,) * 5

    def copy_row(self, source_row: int, target_row: int, *, start: int, stop: int) -> None:
        """Copies some of a row's positions onto another; what the other has before them stays."""
        if self.fail_copy(source_row, target_row):
            raise RunnerBrokeError("copy")
        source = self.rows[source_row].cached
        target = self.rows.setdefault(target_row, FakeRow()).cached
        if not 0 <= start < stop <= len(source) or start > len(target):
            self.violations.append(f"positions {start} to {stop} of row {source_row} were copied to row {target_row}")
        self.copied_positions += stop - start
        self.rows[target_row] = FakeRow([*target[:start], *source[start:stop]])

    def decode_step(self, inputs: StepInputs) -> StepOutputs:
        """What may follow every row, from what it holds."""
        num_rows, num_lanes = len(inputs.target_ids), len(inputs.source_lengths)
        self.rows_per_step.append(num_rows)
        self.before_step()
        if self.fail_decode(len(self.rows_per_step) - 1):
            raise RunnerBrokeError("decode")
        self._check(inputs)
        vocabulary_size = self.target_vocabulary_size
        log_probabilities = np.empty((num_rows, vocabulary_size), np.float32)
        longest = max(len(self.lanes[lane]) for lane in range(num_lanes))
        attention = np.full((num_rows, longest), np.nan, np.float32) if inputs.with_attention else None
        for index in range(num_rows):
            source = self.lanes[int(inputs.row_lanes[index])]
            row = self.rows.setdefault(index, FakeRow())
            past = int(inputs.past_lengths[index])
            if past > len(row.cached):
                self.violations.append(f"row {index} was run at {past} but has {len(row.cached)} positions")
            row.cached = [*row.cached[:past], int(inputs.target_ids[index])]
            log_probabilities[index] = self.language.log_probabilities(source, row.cached)
            if self.is_nan(source):
                log_probabilities[index] = np.nan
            if attention is not None:
                attention[index, : len(source)] = self.language.attention(source, row.cached).mean(axis=0)
        order = np.argsort(-log_probabilities, axis=1, kind="stable")[:, : inputs.num_candidates]
        return StepOutputs(
            candidate_ids=order,
            candidate_log_probabilities=np.take_along_axis(log_probabilities, order, axis=1),
            log_probabilities=log_probabilities,
            attention=attention,
        )

    def decode_greedy(self, inputs: StepInputs) -> GreedyOutputs:
        """As many steps, each with the best token of the one before; a row at the end of its cache stays."""
        if self.greedy_steps == 1 or inputs.num_candidates != 1 or inputs.with_attention:
            self.violations.append("several greedy steps were asked for more than the best tokens")
        before, run = self.before_step, len(self.rows_per_step)
        found: list[StepOutputs] = []
        for step in range(self.greedy_steps):
            last = found[-1].candidate_ids[:, 0] if found else inputs.target_ids
            past = np.minimum(inputs.past_lengths + step, self.max_target_tokens - 1).astype(np.int32)
            found.append(self.decode_step(inputs._replace(target_ids=last, past_lengths=past)))
            self.before_step = nothing  # it is one run
        self.before_step = before
        del self.rows_per_step[run + 1 :]
        return GreedyOutputs(
            np.concatenate([each.candidate_ids for each in found], axis=1),
            np.concatenate([each.candidate_log_probabilities for each in found], axis=1),
        )

    def _check(self, inputs: StepInputs) -> None:
        """Whether the step is one that a real runner could run."""
        num_rows, num_lanes = len(inputs.target_ids), len(inputs.source_lengths)
        if not 1 <= num_lanes <= num_rows <= self.max_rows:
            self.violations.append(f"{num_rows} rows and {num_lanes} lanes of {self.max_rows}")
        if not 1 <= inputs.num_candidates <= self.target_vocabulary_size:
            self.violations.append(f"{inputs.num_candidates} candidates")
        if int(inputs.past_lengths.max()) >= self.max_target_tokens:
            self.violations.append("a row was run past its cache")
        for lane in range(num_lanes):
            places = sorted(inputs.row_places[inputs.row_lanes == lane].tolist())
            if places != list(range(int(inputs.rows_per_lane[lane]))) or not places:
                self.violations.append(f"lane {lane} has rows at places {places}")
            if inputs.source_lengths[lane] != len(self.lanes[lane]):
                self.violations.append(f"lane {lane} was run with length {inputs.source_lengths[lane]}")
