"""How one scenario of the online comparison is searched, with servers whose latencies are known."""

import dataclasses
import math
from collections.abc import Sequence

import pytest

from benchmarks import online_comparison
from benchmarks.load import LoadResult
from benchmarks.online import batching_of
from benchmarks.online_calibration import BEST
from benchmarks.online_comparison import Comparison, Effort, Side, compare
from benchmarks.online_workload import SCENARIOS, Scenario
from benchmarks.server_process import ServerProcess

EFFORT = Effort(rounds=3, seconds=2.0, min_calls=10, max_seconds=3.0, alone_calls=5)
SERVERS = {1: (0.010, 100.0), 2: (0.020, 300.0)}
"""Process → latency when idle, and the calls a second at which it is doubled."""

LOADS_SENT: set[tuple[int, tuple[float, ...]]] = set()
"""Process and arrivals: none is to be sent twice."""


class NoTexts:
    """A workload whose messages are empty."""

    def messages(self, _: Scenario, count: int, *__: int, **___: int) -> list[bytes]:
        """So many."""
        return [b""] * count


def measured(
    _: str,
    pid: int,
    messages: Sequence[bytes],
    arrivals: Sequence[float] | None,
    *,
    offered_per_second: float,
    **__: float,
) -> LoadResult:
    """A latency that grows with the square of the load, the same for every call."""
    if arrivals is not None:
        assert (pid, tuple(arrivals)) not in LOADS_SENT or offered_per_second == math.inf
        LOADS_SENT.add((pid, tuple(arrivals)))
    idle, doubled_at = SERVERS[pid]
    is_load = arrivals is not None and offered_per_second < math.inf
    latency = idle * (1 + (offered_per_second / doubled_at) ** 2) if is_load else idle
    return LoadResult(
        offered_per_second=offered_per_second,
        calls=len(messages),
        failures={},
        p50_seconds=latency,
        p95_seconds=latency,
        p99_seconds=latency,
        first_seconds=latency,
        last_seconds=latency,
        answered_per_second=500.0,
        late_p99_seconds=0.0,
        num_source_tokens=1,
        num_target_tokens=1,
        client_cpu_seconds=0.0,
        server_cpu_seconds=0.0,
        wall_seconds=1.0,
    )


def side(name: str, pid: int) -> Side:
    """A side whose server does not run."""
    server = ServerProcess(address="", metrics_address="", pid=pid, ready_seconds=0.0, ready_line="")
    return Side(name=name, server=server)


def test_goodput_is_where_the_latency_doubles(monkeypatch: pytest.MonkeyPatch) -> None:
    LOADS_SENT.clear()
    monkeypatch.setattr(online_comparison, "measured", measured)
    monkeypatch.setattr(online_comparison, "processor_seconds", lambda _: 0.0)
    monkeypatch.setattr(online_comparison, "memory_bytes", lambda _: {"now": 1, "peak": 1})
    sides = [side("dragoman", 1), side("ctranslate2", 2)]
    # The comparison asks a workload for messages and nothing else.
    result = compare(Comparison(sides, NoTexts(), SCENARIOS[0], EFFORT), EFFORT)  # type: ignore[arg-type]
    own, by_first, by_second = (result["goodput"][name] for name in ("own", "dragoman", "ctranslate2"))

    def is_rung_below(found: float, rate: float) -> bool:
        return found <= rate < found * online_comparison.STEP

    assert is_rung_below(own["dragoman"]["per_second"], 100.0)
    assert is_rung_below(own["ctranslate2"]["per_second"], 300.0)
    assert own["dragoman"]["per_second_by_round"] == [own["dragoman"]["per_second"]] * 3
    assert own["ratio"] == own["dragoman"]["per_second"] / own["ctranslate2"]["per_second"]
    assert own["dragoman"]["bound_seconds"] == pytest.approx(0.020)
    assert is_rung_below(by_second["dragoman"]["per_second"], 100.0 * math.sqrt(3))
    assert is_rung_below(by_second["ctranslate2"]["per_second"], 300.0)
    assert by_first["ctranslate2"]["per_second"] <= online_comparison.LOWEST_RATE  # its idle latency is the bound
    assert len(result["systems"]["dragoman"]["alone"]) == EFFORT.rounds
    for system in result["systems"].values():
        assert all(repeat["p95_seconds"] > 0 for load in system["loads"] for repeat in load["repeats"])


def test_a_batching_is_the_best_with_changes() -> None:
    assert batching_of([]) == BEST
    assert batching_of(["max_wait_ms=5", "max_batch=8"]) == dataclasses.replace(BEST, max_wait_ms=5.0, max_batch=8)
    with pytest.raises(ValueError, match=r"must be one of inter_threads.*but is batch"):
        batching_of(["batch=8"])
