"""One scenario of the online comparison: what is measured of both servers, and in which order.

docs/benchmarks-online.md defines the measures. Both servers stand ready all the time; one is loaded at a time.
"""

from __future__ import annotations

import dataclasses
import math
import statistics
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from benchmarks.goodput import highest_holding, rate_of, rung_of, settled
from benchmarks.load import LoadResult, measured, poisson_arrivals, processor_seconds, translations
from benchmarks.online_workload import Scenario, Workload
from benchmarks.server_process import ServerProcess, memory_bytes

LOWEST_RATE = 4.0
STEP = 1.08
SWEEP_RUNGS = 5
"""The sweep takes every fifth rung: each load is 1.47 times the one before."""
SETTLE_SECONDS = 0.5
BURST_CALLS = 500
WARM_CALLS = 200
BOUND_FACTOR = 2.0
SWEEP_ENDS_AT = 4.0
"""The sweep of a system ends where its 95th percentile is so many times its own bound."""
MAX_MOVES = 6
AGREEMENT = 0.5
"""Fewer of the sentences with the same translation by both, and something is wrong: int8 differs, but not so much."""


@dataclass(frozen=True, kw_only=True)
class Effort:
    """How long to measure."""

    rounds: int
    """Searches for the goodput, bursts, and runs of calls one after another."""
    seconds: float
    """Of a load."""
    min_calls: int
    """Of a load: low rates take longer, up to `max_seconds`."""
    max_seconds: float
    """Of a load."""
    alone_calls: int
    """Calls one after another in a round."""


FULL = Effort(rounds=3, seconds=3.0, min_calls=240, max_seconds=7.0, alone_calls=150)
QUICK = Effort(rounds=1, seconds=2.0, min_calls=100, max_seconds=3.0, alone_calls=80)


@dataclass(kw_only=True)
class Side:
    """One of the two servers and what was measured of it."""

    name: str
    """dragoman or ctranslate2."""
    server: ServerProcess
    """Where it answers."""
    alone: list[LoadResult] = field(default_factory=list)
    """Calls one after another, a round each."""
    bursts: list[LoadResult] = field(default_factory=list)
    """All calls at once, a round each."""
    loads: dict[int, dict[int, LoadResult]] = field(default_factory=lambda: defaultdict(dict))
    """Rung → repeat → result."""

    @property
    def unloaded_p95(self) -> float:
        """Seconds; the median of the rounds."""
        return statistics.median(result.p95_seconds for result in self.alone)

    @property
    def bound(self) -> float:
        """What its 95th percentile may be under load, in seconds."""
        return BOUND_FACTOR * self.unloaded_p95


class Comparison:
    """Both servers under the loads of one scenario."""

    def __init__(self, sides: Sequence[Side], workload: Workload, scenario: Scenario, effort: Effort) -> None:
        self.sides = sides
        self._idle_cpu_seconds = 0.0
        self._wall_seconds = 0.0
        self._workload = workload
        self._scenario = scenario
        self._effort = effort

    def _measured(
        self, side: Side, messages: Sequence[bytes], arrivals: Sequence[float] | None, per_second: float
    ) -> LoadResult:
        others = [other.server.pid for other in self.sides if other is not side]
        before = sum(map(processor_seconds, others))
        is_load = arrivals is not None and 0 < per_second < math.inf
        result = measured(
            side.server.address,
            side.server.pid,
            messages,
            arrivals,
            offered_per_second=per_second,
            settle_seconds=SETTLE_SECONDS if is_load else 0.0,
        )
        self._idle_cpu_seconds += sum(map(processor_seconds, others)) - before
        self._wall_seconds += result.wall_seconds
        return result

    @property
    def idle_share(self) -> float:
        """Processor time that the server whose turn it was not took, as a share of one core."""
        return self._idle_cpu_seconds / self._wall_seconds

    def in_turn(self, turn: int) -> list[Side]:
        """The sides, in an order that changes from turn to turn."""
        return [*self.sides] if turn % 2 == 0 else [*reversed(self.sides)]

    def run_alone_and_bursts(self) -> None:
        """Warms both up, then measures calls one after another and bursts, in turns."""
        for side in self.sides:
            messages = self._workload.messages(self._scenario, WARM_CALLS, seed=99)
            self._measured(side, messages, [0.0] * len(messages), math.inf)
        for turn in range(self._effort.rounds):
            for side in self.in_turn(turn):
                messages = self._workload.messages(self._scenario, self._effort.alone_calls, seed=100)
                side.alone.append(self._measured(side, messages, None, 0.0))
            for side in self.in_turn(turn):
                messages = self._workload.messages(self._scenario, BURST_CALLS, seed=200 + turn)
                side.bursts.append(self._measured(side, messages, [0.0] * BURST_CALLS, math.inf))

    def load(self, side: Side, rung: int, repeat: int) -> LoadResult:
        """The result at a rung; measured once for each repeat, with sentences and arrivals that both sides share."""
        if repeat not in side.loads[rung]:
            rate = rate_of(rung, lowest=LOWEST_RATE, step=STEP)
            seconds = min(max(self._effort.seconds, self._effort.min_calls / rate), self._effort.max_seconds)
            seed = 1000 * repeat + rung
            arrivals = poisson_arrivals(rate, seconds + SETTLE_SECONDS, seed)
            messages = self._workload.messages(self._scenario, len(arrivals), seed)
            side.loads[rung][repeat] = self._measured(side, messages, arrivals, rate)
        return side.loads[rung][repeat]

    def sweep(self) -> None:
        """Rising load, both in turns, until each is overloaded."""
        capacity = min(statistics.median(burst.answered_per_second for burst in side.bursts) for side in self.sides)
        rung = rung_of(0.08 * capacity, lowest=LOWEST_RATE, step=STEP) // SWEEP_RUNGS * SWEEP_RUNGS
        rising = list(self.sides)
        turn = 0
        while rising and rate_of(rung, lowest=LOWEST_RATE, step=STEP) < 10_000:
            for side in [one for one in self.in_turn(turn) if one in rising]:
                if self.load(side, rung, 0).p95_seconds > SWEEP_ENDS_AT * side.bound:
                    rising.remove(side)
            rung += SWEEP_RUNGS
            turn += 1

    def search(self, side: Side, bound: float, repeat: int) -> int:
        """The highest rung near the sweep's that holds a bound in one repeat; -1 when none can."""
        if bound < side.unloaded_p95:
            return -1
        swept = {rung: results[0].p95_seconds for rung, results in side.loads.items() if 0 in results}
        holding = [rung for rung, p95_seconds in swept.items() if p95_seconds <= bound]
        middle = max(holding, default=-1)
        low, high = max(0, middle - SWEEP_RUNGS + 1), max(middle, 0) + SWEEP_RUNGS + 1
        return highest_holding(lambda rung: self.load(side, rung, repeat).p95_seconds <= bound, low, high)

    def goodput(self, side: Side, bound: float, searched: Sequence[int]) -> int:
        """The highest rung that holds a bound by the median of the repeats; -1 when none does.

        Args:
            searched: what `search` found, in one repeat or several.
        """
        if bound < side.unloaded_p95:
            return -1

        def percentiles_at(rung: int) -> list[float]:
            return [self.load(side, rung, repeat).p95_seconds for repeat in range(1, self._effort.rounds + 1)]

        return settled(percentiles_at, statistics.median_low(searched), bound, moves=MAX_MOVES)


def compare(comparison: Comparison, effort: Effort) -> dict[str, Any]:
    """Measures everything of one scenario and returns it as the JSON has it."""
    comparison.run_alone_and_bursts()
    comparison.sweep()
    searched: dict[str, list[int]] = defaultdict(list)
    for repeat in range(1, effort.rounds + 1):
        for side in comparison.in_turn(repeat):
            searched[side.name].append(comparison.search(side, side.bound, repeat))
    goodput = {"own": _goodput(comparison, {side.name: side.bound for side in comparison.sides}, searched)}
    for other in comparison.sides:
        bounds = {side.name: other.bound for side in comparison.sides}
        found = {
            side.name: searched[side.name] if side is other else [comparison.search(side, other.bound, 1)]
            for side in comparison.sides
        }
        goodput[other.name] = _goodput(comparison, bounds, found)
    return {
        "goodput": goodput,
        "idle_share_of_a_core": round(comparison.idle_share, 5),
        "systems": {side.name: _facts(side) for side in comparison.sides},
    }


def _goodput(
    comparison: Comparison, bounds: Mapping[str, float], searched: Mapping[str, Sequence[int]]
) -> dict[str, Any]:
    """Goodput of each side at its bound, and the ratio of the first to the second."""
    found: dict[str, Any] = {}
    for side in comparison.sides:
        rung = comparison.goodput(side, bounds[side.name], searched[side.name])
        found[side.name] = {
            "bound_seconds": bounds[side.name],
            "per_second": _rate(rung),
            "per_second_by_round": [_rate(one) for one in searched[side.name]],
        }
    first, second = (found[side.name] for side in comparison.sides)
    rounds = zip(first["per_second_by_round"], second["per_second_by_round"], strict=False)
    found["ratio"] = _ratio(first["per_second"], second["per_second"])
    found["ratio_by_round"] = [_ratio(ours, theirs) for ours, theirs in rounds]
    return found


def _facts(side: Side) -> dict[str, Any]:
    """What was measured of one side."""
    return {
        "ready_line": side.server.ready_line,
        "ready_seconds": side.server.ready_seconds,
        "memory_bytes": memory_bytes(side.server.pid),
        "unloaded_p50_seconds": statistics.median(result.p50_seconds for result in side.alone),
        "unloaded_p95_seconds": side.unloaded_p95,
        "alone": [dataclasses.asdict(result) for result in side.alone],
        "bursts": [dataclasses.asdict(result) for result in side.bursts],
        "loads": [
            {"rung": rung, "repeats": [dataclasses.asdict(result) for _, result in sorted(results.items())]}
            for rung, results in sorted(side.loads.items())
        ],
    }


def _rate(rung: int) -> float:
    return rate_of(rung, lowest=LOWEST_RATE, step=STEP) if rung >= 0 else 0.0


def _ratio(ours: float, theirs: float) -> float | None:
    """None where the other side never holds the bound."""
    return ours / theirs if theirs else None


def same_translations(servers: Sequence[ServerProcess], workload: Workload, scenario: Scenario) -> float:
    """The share of sentences that both servers translate alike.

    Raises:
        RuntimeError: when it is too small for the two to hold the same model.
    """
    texts = [translations(server.address, workload.messages(scenario, 200, seed=7)) for server in servers]
    share = statistics.fmean(first == second for first, second in zip(*texts, strict=True))
    if share < AGREEMENT:
        raise RuntimeError(f"At least {AGREEMENT:.0%} of translations must be the same, but {share:.0%} are.")
    return share
