"""How fast the engine decodes, and how much of it is not the graphs: greedy search, beams, beams with options on.

    python -m benchmarks.decoding BUNDLE --data ../shared/data

Real sentences are decoded by an engine in this process with 1, 16 and 64 of them in flight, newcomers joining as
others leave. Figures are medians over interleaved rounds: target tokens of the best translations a second, rows a step,
and the share of the steps' time that is spent outside ONNX Runtime, by clocks around every step and every run of a
session. The share is also given of the full steps alone (three quarters of the rows and more), and by the clock of the
thread's own processor time, which other work on the machine does not touch (with one thread; the pool's other threads
have clocks of their own). Prints a table, and JSON.
"""

from __future__ import annotations

import argparse
import math
import random
import statistics
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import onnxruntime

from benchmarks.server_process import write_json
from benchmarks.test_sets import english_chinese
from service.bundle import load_bundle
from service.engine import Engine
from service.graphs import runtime_version
from service.model_runner import OnnxModelRunner
from service.options import DecodingOptions
from service.request import Sequence as Segment
from service.scheduler import Scheduler
from service.scheduler_limits import SchedulerLimits
from service.tokenizer import UNK_ID

IN_FLIGHT = (1, 16, 64)
SENTENCES = {1: 16, 16: 64, 64: 192}
"""Sentences of a round by how many are in flight: at least three times as many, so that most steps are full."""
FULL = 0.75
"""Share of the rows from which a step counts as full."""
SEARCHES: dict[str, dict[str, Any]] = {
    "greedy": {},
    "beam 4": {"beam_size": 4},
    "beam 4, five options": {
        "beam_size": 4,
        "repetition_penalty": 1.1,
        "no_repeat_ngram_size": 3,
        "suppressed_tokens": (UNK_ID,),
        "min_target_tokens": 4,
        "coverage_penalty": 0.2,
    },
}


@dataclass
class Clocks:
    """Seconds by two clocks."""

    wall: float = 0.0
    thread: float = 0.0
    """Processor time of this thread."""

    @contextmanager
    def running(self) -> Iterator[None]:
        """Adds the time of the block."""
        wall, thread = time.perf_counter(), time.thread_time()
        try:
            yield
        finally:
            self.wall += time.perf_counter() - wall
            self.thread += time.thread_time() - thread


@contextmanager
def timed_runtime() -> Iterator[Clocks]:
    """Counts the time of every run of every session, for as long as the block lasts."""
    inside = Clocks()
    originals = {name: getattr(onnxruntime.InferenceSession, name) for name in ("run", "run_with_iobinding")}

    def timed(original: Any) -> Any:
        def run(*arguments: Any, **keywords: Any) -> Any:
            with inside.running():
                return original(*arguments, **keywords)

        return run

    for name, original in originals.items():
        setattr(onnxruntime.InferenceSession, name, timed(original))
    try:
        yield inside
    finally:
        for name, original in originals.items():
            setattr(onnxruntime.InferenceSession, name, original)


@dataclass(kw_only=True)
class Share:
    """The time of some steps, and what of it was spent in ONNX Runtime."""

    steps: Clocks = field(default_factory=Clocks)
    inside: Clocks = field(default_factory=Clocks)

    def outside(self, clock: str) -> float:
        """The share of the time that was spent elsewhere; nan where there was no such step."""
        seconds: float = getattr(self.steps, clock)
        return 1 - getattr(self.inside, clock) / seconds if seconds else math.nan


@dataclass(kw_only=True)
class Rounds:
    """What one case's rounds came to."""

    tokens_per_second: list[float] = field(default_factory=list)
    step_milliseconds: list[float] = field(default_factory=list)
    """Mean of a round's steps."""
    rows_per_step: list[float] = field(default_factory=list)
    share_outside: list[float] = field(default_factory=list)
    """Of the time of steps, what was not spent in ONNX Runtime."""
    share_outside_thread: list[float] = field(default_factory=list)
    """The same by the thread's own time."""
    share_outside_full_thread: list[float] = field(default_factory=list)
    """The same, of full steps."""

    def medians(self) -> dict[str, float]:
        """The median of each, rounded for people."""
        return {
            "tokens_per_second": round(statistics.median(self.tokens_per_second)),
            "step_milliseconds": round(statistics.median(self.step_milliseconds), 3),
            "rows_per_step": round(statistics.median(self.rows_per_step), 1),
            "share_outside": round(statistics.median(self.share_outside), 4),
            "share_outside_thread": round(statistics.median(self.share_outside_thread), 4),
            "share_outside_full_thread": round(statistics.median(self.share_outside_full_thread), 4),
        }


def new_engine(runner: OnnxModelRunner, max_rows: int) -> Engine:
    """An engine that uses the first `max_rows` rows of `runner`."""
    limits = SchedulerLimits(
        max_rows=max_rows,
        max_source_tokens=runner.max_source_tokens,
        source_vocabulary_size=runner.source_vocabulary_size,
        target_vocabulary_size=runner.target_vocabulary_size,
    )
    return Engine(runner, Scheduler(limits, padded_length=runner.padded_length))


def measure(
    runner: OnnxModelRunner, sources: Sequence[tuple[int, ...]], options: DecodingOptions, in_flight: int, into: Rounds
) -> None:
    """One round of one case.

    Raises:
        RuntimeError: when a sentence failed, or the runtime was not called where its time is taken.
    """
    max_rows = in_flight * options.num_rows
    engine = new_engine(runner, max_rows)
    segments = [Segment(source_ids=source, options=options) for source in sources]
    every, full = Share(), Share()
    rows: list[int] = []
    with timed_runtime() as inside:
        waiting = list(reversed(segments))
        while waiting or not engine.is_idle:
            while waiting and engine.scheduler.num_waiting < in_flight:
                engine.submit([waiting.pop()])
            step, before = Clocks(), Clocks(inside.wall, inside.thread)
            with step.running():
                report = engine.step()
            rows.append(report.num_rows)
            for share in (every, full) if report.num_rows >= FULL * max_rows else (every,):
                share.steps.wall += step.wall
                share.steps.thread += step.thread
                share.inside.wall += inside.wall - before.wall
                share.inside.thread += inside.thread - before.thread
    if not inside.wall or any(segment.error for segment in segments):
        raise RuntimeError("Every sentence must be decoded, by sessions of ONNX Runtime.")
    into.tokens_per_second.append(sum(len(segment.target_ids) for segment in segments) / every.steps.wall)
    into.step_milliseconds.append(1e3 * every.steps.wall / len(rows))
    into.rows_per_step.append(statistics.fmean(rows))
    into.share_outside.append(every.outside("wall"))
    into.share_outside_thread.append(every.outside("thread"))
    into.share_outside_full_thread.append(full.outside("thread"))


def table(cases: dict[tuple[str, int], dict[str, float]]) -> str:
    """The figures in Markdown."""
    lines = [
        "| search | in flight | rows a step | tokens/s | ms a step | outside the runtime | thread time | full steps |",
        "|---|---|---|---|---|---|---|---|",
    ]
    lines += [
        f"| {search} | {in_flight} | {one['rows_per_step']} | {one['tokens_per_second']:.0f} | "
        f"{one['step_milliseconds']:.2f} | {100 * one['share_outside']:.1f} % | "
        f"{100 * one['share_outside_thread']:.1f} % | {100 * one['share_outside_full_thread']:.1f} % |"
        for (search, in_flight), one in cases.items()
    ]
    return "\n".join(lines)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bundle", type=Path)
    parser.add_argument("--data", type=Path, required=True, help="directory with docs-enzh, tatoeba-enzh, flores-enzh")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--in-flight", type=int, nargs="+", choices=IN_FLIGHT, default=IN_FLIGHT)
    parser.add_argument("--output", type=Path, help="also write the JSON here")
    arguments = parser.parse_args()

    bundle = load_bundle(arguments.bundle)
    texts = [text for test_set in english_chinese(arguments.data) for text in test_set.sources]
    sources = [tuple(bundle.tokenizer.encode_source(text)) for text in random.Random(1).sample(texts, 400)]
    sources = [source for source in sources if len(source) <= 64][: max(SENTENCES.values())]
    runner = OnnxModelRunner(
        bundle,
        max_rows=max(arguments.in_flight) * 4,
        max_source_tokens=64,
        max_target_tokens=160,
        num_threads=arguments.threads,
    )
    cases = [(search, in_flight) for search in SEARCHES for in_flight in arguments.in_flight]
    rounds = {case: Rounds() for case in cases}
    for number in range(arguments.rounds + 1):
        for case in cases:
            search, in_flight = case
            options = DecodingOptions(**SEARCHES[search])
            into = rounds[case] if number else Rounds()  # the first round warms up
            measure(runner, sources[: SENTENCES[in_flight]], options, in_flight, into)
    medians = {case: rounds[case].medians() for case in cases}
    print(table(medians), file=sys.stderr)
    result = {
        "runtime": runtime_version(),
        "precision": bundle.manifest.precision,
        "threads": arguments.threads,
        "rounds": arguments.rounds,
        "cases": [
            {"search": search, "in_flight": in_flight, **medians[search, in_flight]} for search, in_flight in cases
        ],
    }
    write_json(result, arguments.output)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
