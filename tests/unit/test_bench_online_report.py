"""The online comparison's figures as a table."""

from typing import Any

from benchmarks.online_report import markdown


def load_result(**changes: float) -> dict[str, Any]:
    """What a load came to."""
    return {
        "offered_per_second": 50.0,
        "calls": 500,
        "failures": {},
        "p50_seconds": 0.010,
        "p95_seconds": 0.020,
        "p99_seconds": 0.150,
        "first_seconds": 0.005,
        "last_seconds": 0.5,
        "answered_per_second": 49.0,
        "num_target_tokens": 4000,
        "client_cpu_seconds": 0.001,
        "server_cpu_seconds": 0.004,
        **changes,
    }


def system(factor: float, failures: dict[str, int]) -> dict[str, Any]:
    """What was measured of one side: three repeats at one load."""
    repeats = [load_result(p95_seconds=factor * p95) for p95 in (0.5, 0.02, 0.03)]
    repeats[0]["failures"] = failures
    return {
        "alone": [load_result(p50_seconds=factor * 0.01)],
        "bursts": [load_result(last_seconds=factor), load_result(last_seconds=3 * factor)],
        "memory_bytes": {"now": 100_000_000, "peak": 150_000_000},
        "ready_seconds": 1.0,
        "loads": [{"rung": 7, "repeats": repeats}],
    }


def test_the_table_has_medians_spreads_ratios_and_failures() -> None:
    own = {
        "dragoman": {"bound_seconds": 0.04, "per_second": 300.0, "per_second_by_round": [280.0, 300.0, 320.0]},
        "ctranslate2": {"bound_seconds": 0.05, "per_second": 100.0, "per_second_by_round": [100.0, 100.0, 80.0]},
        "ratio": 3.0,
        "ratio_by_round": [2.8, 3.0, 4.0],
    }
    never = {
        **own,
        "ctranslate2": {"bound_seconds": 0.04, "per_second": 0.0, "per_second_by_round": [0.0]},
        "ratio": None,
        "ratio_by_round": [None],
    }
    scenario = {
        "goodput": {"own": own, "dragoman": never},
        "systems": {"dragoman": system(1.0, {}), "ctranslate2": system(2.0, {"UNAVAILABLE": 3})},
        "ctranslate2_batching": "some",
        "same_translations": 0.7,
        "idle_share_of_a_core": 0.0001,
    }
    table = markdown(
        {
            "machine": {"cores_used": 2, "cpu": "x", "flags": ["avx2"], "date": "today", "commit": "c"},
            "workload": {"sentences": 9, "source_tokens_p5_p50_p95": [1, 2, 3]},
            "scenarios": {"greedy": scenario},
        }
    )
    assert "| 300 (280 to 320), bound 40.0 ms | 100 (80 to 100), bound 50.0 ms | 3.00 (2.80 to 4.00) |" in table
    assert "| 0, bound 40.0 ms | none |" in table
    assert "| one call at a time, p50, ms | 10.0 | 20.0 | 2.00 |" in table
    assert "| burst of 500, last answer, ms | 2000 (1000 to 3000) | 4000 (2000 to 6000) | 2.00 |" in table
    assert "| 50 | Dragoman | 10.0 | 30.0 | 150 | 49 | 0 | 4.00 | 5% of a core |" in table
    assert "| 50 | CTranslate2 | 10.0 | 60.0 | 150 | 49 | 3 | 4.00 | 5% of a core |" in table
