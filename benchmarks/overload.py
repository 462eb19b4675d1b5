"""Twice as many calls as a server can answer: how soon the rest is refused, and what it costs those that are taken.

    python -m benchmarks.overload --data ../shared/data              # some five minutes
    python -m benchmarks.overload --data ../shared/data --quick      # one minute

A server with the defaults, and one that is told to keep waits short. First the capacity of each: answers a second when
64 callers, who wait for their answers, keep it busy and nobody is refused. Then independent callers of single
sentences, at 80 % of that and at twice as many. Every call must come back, and the server must have counted the same.
Load generator and server share the cores. Writes OUTPUT.json and OUTPUT.md; fails where a
translation was not the one that the same text had before.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import math
import os
import sys
import threading
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from benchmarks.load import Call, closed_loop, open_loop, percentile, poisson_arrivals, run
from benchmarks.machine import machine_facts, use_cores
from benchmarks.online_workload import SCENARIOS, Workload
from benchmarks.server_process import NO_REFUSAL, ServerProcess, memory_bytes, running_server
from service.pb.translation.v1 import translation_pb2 as pb

ROOT = Path(__file__).parents[1]
CAPACITY_CALLERS = 64
WARM_CALLS = 200
SETTLE_SECONDS = 1.0
"""Calls due before are sent, but do not count in percentiles: until the server has seen that a delay stands."""
REJECTED = "RESOURCE_EXHAUSTED"


class Setting(NamedTuple):
    """How a server is started."""

    engine: tuple[str, ...]
    """Flags that its capacity depends on."""
    admission: tuple[str, ...]
    """Those that say who is refused."""


SETTINGS = {
    "defaults": Setting((), ()),
    "short waits": Setting(
        ("--num-workers", "1", "--num-threads", "1", "--niceness", "10"),
        ("--standing-delay-seconds", "0.05", "--standing-interval-seconds", "0.1"),
    ),
}
MOST_REJECTION_SECONDS = 0.020
MOST_RATIO = 2.0


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """What became of a load."""

    offered_per_second: float
    """Calls that came."""
    seconds: float
    """How long they came."""
    calls: int
    """All of them."""
    by_code: dict[str, int]
    """How they ended, by gRPC status code."""
    answered_per_second: float
    """Answers, from the first arrival to the last answer."""
    accepted_p50_seconds: float
    """Latency of answers from when the call was due; NaN where there are none."""
    accepted_p95_seconds: float
    """The same of 95 in 100."""
    rejected_p50_seconds: float
    """The same of calls that were refused because there was too much to do; NaN where there are none."""
    rejected_p99_seconds: float
    """The same of 99 in 100."""
    late_p99_seconds: float
    """How late the load generator itself sent, 99th percentile: part of all of these."""
    differing: int
    """Answers that are not the translation that the sentence had before."""


def outcome_of(
    calls: Sequence[Call],
    messages: Sequence[bytes],
    known: dict[bytes, str],
    *,
    offered_per_second: float,
    seconds: float,
) -> Outcome:
    """The outcome of a load.

    Args:
        calls: one for each of `messages`.
        messages: serialised requests.
        known: translations by message, which grow by those that are new.
        offered_per_second: rate of the arrivals.
        seconds: how long they came.
    """
    differing = 0
    for call, message in zip(calls, messages, strict=True):
        if call.code == "OK":
            text = pb.TranslateTextResponse.FromString(call.reply).translations[0].translated_text
            differing += known.setdefault(message, text) != text
    settled = [call for call in calls if call.due_seconds >= SETTLE_SECONDS]
    accepted = [call.latency_seconds for call in settled if call.code == "OK"]
    rejected = [call.latency_seconds for call in settled if call.code == REJECTED]
    answers = [call.ended_seconds for call in calls if call.code == "OK"]
    return Outcome(
        offered_per_second=offered_per_second,
        seconds=seconds,
        calls=len(calls),
        by_code=dict(Counter(call.code for call in calls)),
        answered_per_second=len(answers) / max(answers, default=math.inf),
        accepted_p50_seconds=_percentile(accepted, 50),
        accepted_p95_seconds=_percentile(accepted, 95),
        rejected_p50_seconds=_percentile(rejected, 50),
        rejected_p99_seconds=_percentile(rejected, 99),
        late_p99_seconds=_percentile([call.sent_seconds - call.due_seconds for call in settled], 99),
        differing=differing,
    )


def _percentile(values: Sequence[float], percent: float) -> float:
    return percentile(values, percent) if values else math.nan


@contextmanager
def sampled_memory(pid: int) -> Iterator[list[int]]:
    """Resident bytes of a process, once a second while entered, and at both ends."""
    samples = [memory_bytes(pid)["now"]]
    is_over = threading.Event()

    def sample() -> None:
        while not is_over.wait(1.0):
            samples.append(memory_bytes(pid)["now"])

    sampler = threading.Thread(target=sample, daemon=True)
    sampler.start()
    try:
        yield samples
    finally:
        is_over.set()
        sampler.join()
        samples.append(memory_bytes(pid)["now"])


def requests_by_code(server: ServerProcess) -> Counter[str]:
    """Calls that ended, as the server counts them."""
    name = 'dragoman_requests_total{code="'
    return Counter({
        key.removeprefix(name).removesuffix('"}'): round(value)
        for key, value in server.metrics().items()
        if key.startswith(name)
    })  # fmt: skip


def rejection_buckets(server: ServerProcess) -> dict[float, float]:
    """Refused calls by the most seconds that they took, as the server saw them, cumulative."""
    name = 'dragoman_rejection_seconds_bucket{le="'
    return {
        float(key.removeprefix(name).removesuffix('"}')): value
        for key, value in server.metrics().items()
        if key.startswith(name)
    }


def bucket_percentile(before: Mapping[float, float], after: Mapping[float, float], percent: float) -> float:
    """The bound of the bucket that so many of 100 do not exceed; NaN where nothing was counted in between."""
    counts = {bound: after[bound] - before[bound] for bound in sorted(after)}
    total = max(counts.values(), default=0.0)
    if not total:
        return math.nan
    return next(bound for bound, count in counts.items() if count >= total * percent / 100)


def loaded(
    server: ServerProcess, workload: Workload, known: dict[bytes, str], *, per_second: float, seconds: float
) -> dict[str, Any]:
    """Puts a load on a server.

    Returns:
        The outcome, the server's memory, and whether it counted as many calls of every kind.
    """
    arrivals = poisson_arrivals(per_second, seconds + SETTLE_SECONDS, seed=5)
    messages = workload.messages(SCENARIOS[0], len(arrivals), seed=6)
    before, refused_before = requests_by_code(server), rejection_buckets(server)
    with sampled_memory(server.pid) as memory:
        calls = run(open_loop(server.address, messages, arrivals))
    counted = requests_by_code(server) - before
    outcome = outcome_of(calls, messages, known, offered_per_second=per_second, seconds=seconds)
    first_quarter = memory[len(memory) // 4]
    return {
        **dataclasses.asdict(outcome),
        "server_rejected_p99_seconds": bucket_percentile(refused_before, rejection_buckets(server), 99),
        "memory_bytes": memory,
        "memory_growth_bytes": memory[-1] - first_quarter,
        "all_accounted": len(calls) == len(arrivals) and counted == Counter(outcome.by_code),
    }


def capacity_of(server: ServerProcess, workload: Workload, calls: int) -> float:
    """Answers a second when enough callers wait for theirs.

    Raises:
        RuntimeError: when a call failed.
    """
    answered = run(closed_loop(server.address, workload.messages(SCENARIOS[0], calls, seed=4), CAPACITY_CALLERS))
    if any(call.code != "OK" for call in answered):
        raise RuntimeError(f"Every call must be answered, but {Counter(call.code for call in answered)} were.")
    return calls / max(call.ended_seconds for call in answered)


def measured(models: Path, workload: Workload, *, seconds: float, capacity_calls: int) -> dict[str, Any]:
    """The capacity of each of `SETTINGS`, and what becomes of 80 % and of twice as much."""
    known: dict[bytes, str] = {}
    settings: dict[str, Any] = {}
    warm_up = workload.messages(SCENARIOS[0], WARM_CALLS, seed=99)
    for name, setting in SETTINGS.items():
        with running_server(models, *setting.engine, *NO_REFUSAL) as server:
            run(closed_loop(server.address, warm_up, 4))
            capacity = capacity_of(server, workload, capacity_calls)
        with running_server(models, *setting.engine, *setting.admission) as server:
            run(closed_loop(server.address, warm_up, 4))
            at_80 = loaded(server, workload, known, per_second=0.8 * capacity, seconds=min(seconds, 20.0))
            at_200 = loaded(server, workload, known, per_second=2.0 * capacity, seconds=seconds)
        settings[name] = {
            "flags": [*setting.engine, *setting.admission],
            "capacity_per_second": capacity,
            "at_80_percent": at_80,
            "at_twice": at_200,
        }
    return {"settings": settings}


def num_differing(result: dict[str, Any]) -> int:
    """Translations that were not what the same text was answered with before, under whatever load."""
    return sum(
        setting[load]["differing"] for setting in result["settings"].values() for load in ("at_80_percent", "at_twice")
    )


def markdown(result: dict[str, Any]) -> str:
    """The figures as a table, and what they were to be."""
    lines = [
        f"Load generator and server on the same {result['machine']['cores_used']} cores. Percentiles leave the first "
        f"{SETTLE_SECONDS:g} s out.",
        "",
        "| server | load | calls/s | calls | answered/s | accepted p50, ms | accepted p95, ms | refused "
        "| refused p50, ms | refused p99, ms | once the server saw it, ms | generator late p99, ms "
        "| memory, MB | its growth, MB | all accounted | other bytes |",
        "|" + " --- |" * 16,
    ]
    verdicts = []
    for name, setting in result["settings"].items():
        for label, load in (("80 %", setting["at_80_percent"]), ("200 %", setting["at_twice"])):
            cells = [
                name,
                label,
                f"{load['offered_per_second']:.0f}",
                load["calls"],
                f"{load['answered_per_second']:.0f}",
                _milliseconds(load["accepted_p50_seconds"]),
                _milliseconds(load["accepted_p95_seconds"]),
                load["by_code"].get(REJECTED, 0),
                _milliseconds(load["rejected_p50_seconds"]),
                _milliseconds(load["rejected_p99_seconds"]),
                _milliseconds(load["server_rejected_p99_seconds"]),
                _milliseconds(load["late_p99_seconds"]),
                f"{load['memory_bytes'][-1] / 1e6:.0f}",
                f"{load['memory_growth_bytes'] / 1e6:+.1f}",
                "yes" if load["all_accounted"] else f"no: {load['by_code']}",
                load["differing"],
            ]
            lines.append(f"| {' | '.join(map(str, cells))} |")
        ratio = setting["at_twice"]["accepted_p95_seconds"] / setting["at_80_percent"]["accepted_p95_seconds"]
        rejected = setting["at_twice"]["rejected_p99_seconds"]
        verdicts += [
            f"- {name} (`{' '.join(setting['flags'])}`), capacity {setting['capacity_per_second']:.0f} calls/s: p95 of "
            f"accepted calls at twice that is {ratio:.2f} times that at 80 % "
            f"(at most {MOST_RATIO:g} is wanted: {_verdict(ratio <= MOST_RATIO)}); p99 of a refusal is "
            f"{_milliseconds(rejected)} ms (at most {1000 * MOST_REJECTION_SECONDS:g}: "
            f"{_verdict(rejected <= MOST_REJECTION_SECONDS)})."
        ]
    return "\n".join([*lines, "", *verdicts]) + "\n"


def _milliseconds(seconds: float) -> str:
    return "" if math.isnan(seconds) else f"{1000 * seconds:.1f}"


def _verdict(is_met: bool) -> str:
    return "met" if is_met else "missed"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="directory with docs-enzh, tatoeba-enzh, flores-enzh")
    parser.add_argument("--models", type=Path, default=Path("models"), help="bundles to serve (default: models)")
    parser.add_argument("--bundle", default="en-zh", help="the one that is called (default: en-zh)")
    parser.add_argument("--quick", action="store_true", help="10 s at twice the capacity in place of 60")
    parser.add_argument("--cores", type=int, default=2, help="for server and load generator (default: 2)")
    parser.add_argument("--output", type=Path, default=Path("build/bench/overload"), help="files, less their suffix")
    arguments = parser.parse_args(sys.argv[1:])
    use_cores(arguments.cores)
    os.environ.pop("OMP_NUM_THREADS", None)  # the server sets its own threads
    workload = Workload(arguments.data, arguments.models / arguments.bundle)
    seconds, capacity_calls = (10.0, 1_000) if arguments.quick else (60.0, 3_000)
    result = {
        "machine": machine_facts(ROOT),
        **measured(arguments.models, workload, seconds=seconds, capacity_calls=capacity_calls),
    }
    table = markdown(result)
    output: Path = arguments.output
    output.parent.mkdir(parents=True, exist_ok=True)
    output.with_suffix(".json").write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    output.with_suffix(".md").write_text(table, encoding="utf-8")
    print(table)
    return 1 if num_differing(result) else 0


if __name__ == "__main__":
    raise SystemExit(main())
