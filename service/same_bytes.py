"""Whether this machine keeps promise 1: a translation's tokens and scores are the same bits in whatever company.

A few sentences, every third by beam search, are decoded alone, all together, and staggered (joining while others are in
the middle), through the engine and the runner that serve. Run at start-up and by `python -m service check`; well under
a second on the default model. Its sentences are random token ids, so it needs no text; `export` tests more, on real
sentences, with a check of its own (`export/same_bytes.py`) before it writes a bundle.
"""

from __future__ import annotations

import random
import struct
import time
from collections.abc import Callable
from collections.abc import Sequence as Ids
from dataclasses import dataclass, replace

from service.engine import Engine
from service.options import DecodingOptions
from service.request import FinishReason, Sequence
from service.runner import Runner
from service.tokenizer import EOS_ID, SPECIAL_PIECES

PROBE_SEED = 20_171
NUM_PROBE_SENTENCES = 12
MAX_PROBE_SOURCE_TOKENS = 40
MAX_PROBE_TARGET_TOKENS = 12
PROBE_BEAM_SIZE = 4


@dataclass(frozen=True, kw_only=True)
class Difference:
    """A sentence that came out differently in company."""

    way: str
    """The company: "together" or "staggered"."""
    index: int
    """Which sentence."""
    is_tokens: bool
    """Whether its tokens differ, and not only the bits of its scores."""


@dataclass(frozen=True, kw_only=True)
class ProbeResult:
    """What the probe found."""

    num_sentences: int
    """Sentences decoded each way."""
    ways: tuple[str, ...]
    """The ways they were decoded beside alone."""
    differences: tuple[Difference, ...]
    """Every sentence and way that was not equal to the bit."""
    error: Exception | None
    """What decoding failed with, if it did; the probe has not passed then."""
    seconds: float
    """How long it took."""

    @property
    def is_same_bytes(self) -> bool:
        """Whether the promise holds here."""
        return not self.differences and self.error is None

    def summary(self) -> str:
        """One line for people."""
        if self.error is not None:
            return f"same-bytes probe failed: {type(self.error).__name__}: {self.error}"
        if self.differences:
            num_tokens = sum(difference.is_tokens for difference in self.differences)
            return (
                f"same-bytes probe found {len(self.differences)} differences, {num_tokens} of them in tokens, "
                f"in {self.num_sentences} sentences decoded {' and '.join(self.ways)}"
            )
        return f"same-bytes probe passed: {self.num_sentences} sentences alone, {' and '.join(self.ways)}"


def probe_sources(source_vocabulary_size: int, max_source_tokens: int) -> list[list[int]]:
    """Sources of many lengths made of random tokens; the same ones at every call."""
    random_ids = random.Random(PROBE_SEED)
    longest = min(MAX_PROBE_SOURCE_TOKENS, max_source_tokens)
    first = min(len(SPECIAL_PIECES), source_vocabulary_size - 1)
    return [
        [random_ids.randrange(first, source_vocabulary_size) for _ in range(random_ids.randrange(0, longest))]
        + [EOS_ID]
        for _ in range(NUM_PROBE_SENTENCES)
    ]


def probe_same_bytes(
    runner: Runner,
    sources: Ids[Ids[int]] | None = None,
    *,
    max_target_tokens: int = MAX_PROBE_TARGET_TOKENS,
    clock: Callable[[], float] = time.monotonic,
) -> ProbeResult:
    """Decodes `sources` alone, together and staggered, and compares tokens and scores bit by bit.

    Args:
        runner: not in use by anybody else meanwhile; its rows are overwritten.
        sources: token ids, end of sentence included; None: `probe_sources`.
        max_target_tokens: of each sentence; more find more and take longer.
        clock: monotonic seconds.
    """
    started_at = clock()
    if sources is None:
        sources = probe_sources(runner.source_vocabulary_size, runner.max_source_tokens)
    greedy = DecodingOptions(max_target_tokens=min(max_target_tokens, runner.max_target_tokens))
    beam_size = max(1, min(PROBE_BEAM_SIZE, runner.max_rows // 2))  # there must be room for company
    beam = replace(greedy, beam_size=beam_size, num_hypotheses=beam_size, with_alignment=True)

    def new() -> list[Sequence]:
        return [
            Sequence(source_ids=tuple(source), options=beam if index % 3 == 2 else greedy)
            for index, source in enumerate(sources)
        ]

    alone, together, staggered = new(), new(), new()
    ways = {"together": together, "staggered": staggered}
    differences: list[Difference] = []
    error: Exception | None = None
    try:
        for sequence in alone:
            _run(runner, [sequence], per_step=1)
        # Backwards, so that each sentence is in another row and in other company than in the staggered run.
        _run(runner, together[::-1], per_step=len(together))
        _run(runner, staggered, per_step=1)
    except Exception as raised:
        error = raised
    else:
        for way, decoded in ways.items():
            for index, (one, other) in enumerate(zip(alone, decoded, strict=True)):
                if result_bits(one) != result_bits(other):
                    is_tokens = one.target_ids != other.target_ids
                    differences.append(Difference(way=way, index=index, is_tokens=is_tokens))
    return ProbeResult(
        num_sentences=len(sources),
        ways=tuple(ways),
        differences=tuple(differences),
        error=error,
        seconds=clock() - started_at,
    )


def _run(runner: Runner, sequences: list[Sequence], *, per_step: int) -> None:
    """Decodes sequences to their end, `per_step` of them joining before each step.

    Raises:
        Exception: what a sequence failed with.
    """
    engine = Engine.over(runner)
    pending = sequences[::-1]
    while pending or not engine.is_idle:
        for _ in range(min(per_step, len(pending))):
            engine.submit([pending.pop()])
        engine.step()
    for sequence in sequences:
        if sequence.finish_reason is FinishReason.FAILED:
            raise sequence.error or RuntimeError("A sequence of the probe failed.")


def result_bits(sequence: Sequence) -> list[tuple[list[int], bytes, bytes]]:
    """Everything a caller sees of a decoded sequence, as bits: equal floats need not be equal bits.

    Tokens, scores and attention of each hypothesis.
    """
    bits = []
    for each in sequence.hypotheses:
        scores = [*each.token_log_probabilities, each.score, each.normalized_score]
        attention = b"" if each.attention is None else each.attention.tobytes()
        bits.append((each.target_ids, struct.pack(f"<{len(scores)}d", *scores), attention))
    return bits
