"""Which batching serves CTranslate2 best, tried on the machine that the comparison runs on.

Every candidate's server runs at the same time, all but one idle; rounds go through them in turn, each with the same
sentences and arrivals. The best has the lowest 95th percentile, as the geometric mean of the medians at two loads:
0.35 and 0.55 of what the plainest candidate answers a second when 500 calls come at once.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from itertools import product
from pathlib import Path

from benchmarks.load import measured, poisson_arrivals
from benchmarks.online_workload import Scenario, Workload
from benchmarks.peers.ctranslate2_process import Batching, running_ctranslate2
from benchmarks.server_process import ServerProcess

LOADS = (0.35, 0.55)
BURST_CALLS = 500
WARM_CALLS = 64
SETTLE_SECONDS = 0.5

PLAIN = Batching()
BEST = Batching(max_batch=16)
"""The best of the full grid on 2 cores of an AMD EPYC; see docs/benchmarks-online.md."""
SHORT_LIST = (
    PLAIN,
    Batching(max_batch=8),
    Batching(max_batch=16),
    Batching(max_batch=64),
    Batching(max_batch=16, max_wait_ms=2.0),
    Batching(max_batch=16, workers=4),
    Batching(inter_threads=1, intra_threads=2),
)
"""What came near the best in the full grid, or would be expected to."""
FULL_GRID = (
    *(Batching(max_batch=batch, max_wait_ms=wait) for wait, batch in product((0.0, 2.0, 5.0), (32, 8, 16, 64))),
    *(Batching(inter_threads=1, intra_threads=2, max_batch=batch) for batch in (8, 32)),
    Batching(max_batch=1),
    Batching(max_batch=1, workers=64),
    Batching(max_batch=4),
    Batching(max_batch=16, workers=4),
    Batching(max_batch=64, workers=1, split=16),
)
"""Every combination; each call by itself, from our queue or from CTranslate2's own; and CTranslate2's own batches."""


@dataclass(frozen=True, kw_only=True)
class Trial:
    """How one candidate did."""

    batching: Batching
    """Its settings."""
    p95_seconds: tuple[float, ...]
    """Median over the rounds at each load."""
    rates: tuple[float, ...]
    """Those loads, calls a second."""

    @property
    def score(self) -> float:
        """Geometric mean of the percentiles, in seconds; lower is better."""
        return math.prod(self.p95_seconds) ** (1 / len(self.p95_seconds))


@contextmanager
def running_all(
    candidates: Sequence[Batching], model: Path, tokenizer: Path
) -> Iterator[list[tuple[Batching, ServerProcess]]]:
    """A server of each candidate, until the block ends."""
    with ExitStack() as stack:
        yield [(one, stack.enter_context(running_ctranslate2(model, tokenizer, one))) for one in candidates]


def calibrate(
    candidates: Sequence[Batching],
    *,
    model: Path,
    tokenizer: Path,
    workload: Workload,
    scenario: Scenario,
    rounds: int,
    seconds: float,
) -> list[Trial]:
    """Trials of all candidates, best first; `seconds` of load for each at each load in each round."""
    with running_all(candidates, model, tokenizer) as servers:
        for _, server in servers:
            _burst(server, workload, scenario, WARM_CALLS)
        per_second = max(_burst(servers[0][1], workload, scenario, BURST_CALLS) for _ in range(2))
        rates = tuple(round(load * per_second, 1) for load in LOADS)
        found: dict[Batching, list[list[float]]] = {one: [[] for _ in rates] for one in candidates}
        for turn in range(rounds):
            for number, rate in enumerate(rates):
                arrivals = poisson_arrivals(rate, seconds + SETTLE_SECONDS, seed=turn)
                messages = workload.messages(scenario, len(arrivals), seed=turn)
                for batching, server in servers:
                    result = measured(
                        server.address,
                        server.pid,
                        messages,
                        arrivals,
                        offered_per_second=rate,
                        settle_seconds=SETTLE_SECONDS,
                    )
                    found[batching][number].append(result.p95_seconds)
    trials = [
        Trial(batching=one, p95_seconds=tuple(map(statistics.median, percentiles)), rates=rates)
        for one, percentiles in found.items()
    ]
    return sorted(trials, key=lambda trial: trial.score)


def _burst(server: ServerProcess, workload: Workload, scenario: Scenario, calls: int) -> float:
    """Calls a second of a burst."""
    messages = workload.messages(scenario, calls, seed=1)
    result = measured(server.address, server.pid, messages, [0.0] * calls, offered_per_second=math.inf)
    return result.answered_per_second
