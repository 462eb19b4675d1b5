"""What one decoding step costs beside the graph: the engine's Python, the candidates, the bindings.

    python -m benchmarks.engine_overhead BUNDLE [--threads 2] [--spinning] [--source-tokens 24] [--repeats 15]

Each figure is the median over interleaved repeats, so that whatever else the machine does touches all of them alike:

    graph       the decoder's run on bound buffers, nothing else
    runner      graph, the three short input vectors, the choice of the best tokens
    engine      one whole step: plan, runner, search, commit
    candidates  the choice of the best tokens, measured alone
    python      engine less graph less candidates
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable
from collections.abc import Sequence as Row
from pathlib import Path

import numpy as np

from service.bundle import load_bundle
from service.candidates import best_candidates
from service.cpu import cpu_budget
from service.engine import Engine
from service.model_runner import OnnxModelRunner
from service.request import DecodingOptions, Sequence
from service.scheduler import Scheduler, SchedulerLimits
from service.search import Advance, GreedySearch
from service.tokenizer import EOS_ID

ROWS = (1, 16, 64)
STEPS_PER_REPEAT = 20


class EndlessSearch(GreedySearch):
    """Greedy search that never ends a sentence, so that every measured step has the same rows."""

    def __init__(self) -> None:
        super().__init__(eos_id=-1)

    def advance(
        self, sequence: Sequence, token_ids: Row[int], log_probabilities: Row[float], max_target_tokens: int
    ) -> Advance:
        decided = super().advance(sequence, token_ids, log_probabilities, max_target_tokens)
        return decided._replace(finish_reason=None)


def seconds_of(run: Callable[[], object]) -> float:
    """Seconds of one of `STEPS_PER_REPEAT` calls, the median."""
    taken = []
    for _ in range(STEPS_PER_REPEAT):
        started = time.perf_counter()
        run()
        taken.append(time.perf_counter() - started)
    return statistics.median(taken)


def measure(runner: OnnxModelRunner, rows: int, source_tokens: int, repeats: int) -> dict[str, float]:
    """Milliseconds by name, at a fixed number of rows."""
    rng = np.random.default_rng(0)
    limits = SchedulerLimits(
        max_rows=rows,
        max_source_tokens=runner.max_source_tokens,
        source_vocabulary_size=runner.source_vocabulary_size,
        max_encode_tokens_per_step=10**9,
    )
    engine = Engine(runner, Scheduler(limits, padded_length=runner.padded_length), EndlessSearch())
    sequences = [
        Sequence(
            source_ids=(*rng.integers(4, runner.source_vocabulary_size, source_tokens - 1).tolist(), EOS_ID),
            options=DecodingOptions(),
        )
        for _ in range(rows)
    ]
    engine.submit(sequences)
    engine.step()
    log_probabilities = runner._log_probabilities[:rows].copy()
    binding = runner._bindings[rows]
    ids, source_lengths = [5] * rows, [source_tokens] * rows

    def runner_step() -> None:
        runner.decode_step(ids, [len(sequences[0].target_ids)] * rows, source_lengths, 1)

    def candidates() -> None:
        best_candidates(log_probabilities, 1)

    found: dict[str, list[float]] = {"graph": [], "runner": [], "engine": [], "candidates": []}
    for _ in range(repeats):
        for sequence in sequences:  # back to the start: the length of the past is part of a step's price
            del sequence.target_ids[1:], sequence.token_log_probabilities[1:]
        found["engine"].append(seconds_of(engine.step))
        found["runner"].append(seconds_of(runner_step))
        found["graph"].append(seconds_of(lambda: runner._decoder.run_with_iobinding(binding)))
        found["candidates"].append(seconds_of(candidates))
    medians = {name: statistics.median(values) * 1e3 for name, values in found.items()}
    medians["python"] = medians["engine"] - medians["graph"] - medians["candidates"]
    return {name: round(value, 4) for name, value in medians.items()}


def main() -> None:
    """Prints the figures as JSON."""
    parser = argparse.ArgumentParser(description="What one decoding step costs beside the graph, in milliseconds.")
    parser.add_argument("bundle", type=Path)
    parser.add_argument("--threads", type=int, default=cpu_budget().num_threads)
    parser.add_argument("--spinning", action="store_true", help="let idle threads of the pool wait busily")
    parser.add_argument("--source-tokens", type=int, default=24)
    parser.add_argument("--repeats", type=int, default=15)
    arguments = parser.parse_args()
    runner = OnnxModelRunner(
        load_bundle(arguments.bundle),
        max_rows=max(ROWS),
        max_source_tokens=64,
        max_target_tokens=64,
        num_threads=arguments.threads,
        allow_spinning=arguments.spinning,
    )
    figures = {rows: measure(runner, rows, arguments.source_tokens, arguments.repeats) for rows in ROWS}
    print(json.dumps({"threads": arguments.threads, "spinning": arguments.spinning, "milliseconds": figures}, indent=2))


if __name__ == "__main__":
    main()
