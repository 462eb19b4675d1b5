"""What one decoding step costs beside the graph: the engine's Python, the candidates, the bindings.

    python -m benchmarks.engine_overhead BUNDLE [--beam-size 4] [--threads 2] [--spinning] [--source-tokens 24]

Each figure is the median over interleaved repeats, so that whatever else the machine does touches all of them alike:

    graph       the decoder's run on bound buffers, nothing else
    runner      graph, the short input vectors, the choice of the best tokens
    engine      one whole step: plan, runner, search, what beams copy, commit
    candidates  the choice of the best tokens, measured alone
    python      engine less graph less candidates

`benchmarks.decoding` measures whole translations instead, and what share of them is spent outside the runtime.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

from service.bundle import load_bundle
from service.candidates import best_tokens
from service.cpu import cpu_budget
from service.engine import Engine
from service.graphs import open_graphs
from service.model_runner import OnnxModelRunner
from service.options import DecodingOptions
from service.request import Sequence
from service.scheduler import Scheduler
from service.scheduler_limits import SchedulerLimits
from service.tokenizer import EOS_ID

ROWS = (1, 16, 64)
STEPS_PER_REPEAT = 20
NEVER = -1
"""In place of the end of sentence: no sentence ends, so that every measured step has the same rows."""


def seconds_of(run: Callable[[], object]) -> float:
    """Seconds of one of `STEPS_PER_REPEAT` calls, the median."""
    taken = []
    for _ in range(STEPS_PER_REPEAT):
        started = time.perf_counter()
        run()
        taken.append(time.perf_counter() - started)
    return statistics.median(taken)


def measure(runner: OnnxModelRunner, rows: int, beam_size: int, source_tokens: int, repeats: int) -> dict[str, float]:
    """Milliseconds by name, at a fixed number of rows."""
    rng = np.random.default_rng(0)
    limits = SchedulerLimits(
        max_rows=rows,
        max_source_tokens=runner.max_source_tokens,
        source_vocabulary_size=runner.source_vocabulary_size,
        max_encode_tokens_per_step=10**9,
    )
    engine = Engine(runner, Scheduler(limits, padded_length=runner.padded_length), eos_id=NEVER)
    engine.submit(
        [
            Sequence(
                source_ids=(*rng.integers(4, runner.source_vocabulary_size, source_tokens - 1).tolist(), EOS_ID),
                options=DecodingOptions(beam_size=beam_size),
            )
            for _ in range(rows // beam_size)
        ]
    )
    engine.step()
    store = engine.store
    num_candidates = 1 if beam_size == 1 else 2 * beam_size
    log_probabilities = runner._log_probabilities[:rows].copy()

    def runner_step() -> None:
        runner.decode_step(store.inputs(num_candidates=num_candidates, with_attention=False))

    def candidates() -> None:
        if num_candidates == 1:
            best_tokens(log_probabilities)
        else:
            runner._candidates.run_with_iobinding(runner._candidates_binding(rows, num_candidates).binding)

    found: dict[str, list[float]] = {"graph": [], "runner": [], "engine": [], "candidates": []}
    for _ in range(repeats):
        for row in range(rows):  # back to the start: the length of the past is part of a step's price
            store.reset(row)
        found["engine"].append(seconds_of(engine.step))
        found["runner"].append(seconds_of(runner_step))
        binding = runner._step_binding(with_attention=False)
        found["graph"].append(seconds_of(lambda: runner._decoder.run_with_iobinding(binding)))  # noqa: B023 (called at once)
        found["candidates"].append(seconds_of(candidates))
    if engine.scheduler.num_used_rows != rows:
        raise RuntimeError(f"Every step must have {rows} rows, but the last had {engine.scheduler.num_used_rows}.")
    medians = {name: statistics.median(values) * 1e3 for name, values in found.items()}
    medians["python"] = medians["engine"] - medians["graph"] - medians["candidates"]
    return {name: round(value, 4) for name, value in medians.items()}


def main() -> None:
    """Prints the figures as JSON."""
    parser = argparse.ArgumentParser(description="What one decoding step costs beside the graph, in milliseconds.")
    parser.add_argument("bundle", type=Path)
    parser.add_argument("--beam-size", type=int, default=1)
    parser.add_argument("--threads", type=int, default=cpu_budget().num_threads)
    parser.add_argument("--spinning", action="store_true", help="let idle threads of the pool wait busily")
    parser.add_argument("--source-tokens", type=int, default=24)
    parser.add_argument("--repeats", type=int, default=15)
    arguments = parser.parse_args()
    beam_size = arguments.beam_size
    rows = sorted({max(1, rows // beam_size) * beam_size for rows in ROWS})
    bundle = load_bundle(arguments.bundle)
    runner = OnnxModelRunner(
        bundle,
        max_rows=max(rows),
        max_source_tokens=min(64, bundle.architecture.max_positions),
        max_target_tokens=min(64, bundle.architecture.max_positions),
        graphs=open_graphs(bundle, num_threads=arguments.threads, allow_spinning=arguments.spinning),
    )
    figures = {each: measure(runner, each, beam_size, arguments.source_tokens, arguments.repeats) for each in rows}
    settings = {"beam_size": beam_size, "threads": arguments.threads, "spinning": arguments.spinning}
    print(json.dumps({**settings, "milliseconds_by_rows": figures}, indent=2))


if __name__ == "__main__":
    main()
