"""Dragoman's server and CTranslate2 behind a plain gRPC server under the same rising load of independent callers.

    python -m benchmarks.online CHECKPOINT --data ../shared/data                 # some ten minutes
    python -m benchmarks.online CHECKPOINT --data ../shared/data --quick         # two minutes, greedy only
    python -m benchmarks.online CHECKPOINT --data ../shared/data --calibrate-only full

Calls are single sentences of mixed lengths, due at Poisson times whatever became of the calls before.
docs/benchmarks-online.md defines what is measured. Writes OUTPUT.json, OUTPUT.md and OUTPUT.png.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.machine import machine_facts, use_cores
from benchmarks.online_calibration import BEST, FULL_GRID, SHORT_LIST, Trial, calibrate
from benchmarks.online_comparison import FULL, QUICK, Comparison, Effort, Side, compare, same_translations
from benchmarks.online_report import markdown, plot
from benchmarks.online_workload import SCENARIOS, Scenario, Workload
from benchmarks.peers import environments
from benchmarks.peers.ctranslate2_process import Batching, running_ctranslate2
from benchmarks.peers.models import ctranslate2_model
from benchmarks.server_process import NO_REFUSAL, running_server, write_json

GRIDS = {"short": SHORT_LIST, "full": FULL_GRID}
CALIBRATION_ROUNDS = 3
CALIBRATION_SECONDS = 2.0


def arguments_of(command_line: Sequence[str]) -> argparse.Namespace:
    """The command line, read."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoint", type=Path, help="what the served bundle was exported from")
    parser.add_argument("--data", type=Path, required=True, help="directory with docs-enzh, tatoeba-enzh, flores-enzh")
    parser.add_argument("--models", type=Path, default=Path("models"), help="bundles to serve (default: models)")
    parser.add_argument("--bundle", default="en-zh", help="the one of them that is compared (default: en-zh)")
    parser.add_argument(
        "--scenario", choices=[one.name for one in SCENARIOS], action="append", help="only this (repeatable)"
    )
    parser.add_argument("--quick", action="store_true", help="greedy only unless told, one round, shorter loads")
    parser.add_argument("--calibrate", choices=GRIDS, help="first find CTranslate2's best settings on this machine")
    parser.add_argument(
        "--batching",
        nargs="+",
        default=(),
        metavar="NAME=VALUE",
        help="CTranslate2's, as in max_batch=16 max_wait_ms=5",
    )
    parser.add_argument("--calibrate-only", choices=GRIDS, help="try CTranslate2's settings, and end")
    parser.add_argument("--cores", type=int, default=2, help="for the servers and the load generator (default: 2)")
    parser.add_argument("--output", type=Path, default=Path("build/bench/online"), help="files, less their suffix")
    return parser.parse_args(command_line)


def batching_of(settings: Sequence[str]) -> Batching:
    """The best that is known, with changes of the form NAME=VALUE.

    Raises:
        ValueError: naming what is no setting of a batching.
    """
    kinds = {one.name: type(getattr(BEST, one.name)) for one in dataclasses.fields(Batching)}
    pairs = [setting.partition("=") for setting in settings]
    unknown = [name for name, _, _ in pairs if name not in kinds]
    if unknown:
        raise ValueError(f"A setting must be one of {', '.join(kinds)}, but is {', '.join(unknown)}.")
    return dataclasses.replace(BEST, **{name: kinds[name](value) for name, _, value in pairs})


def trials(grid: str, model: Path, bundle: Path, workload: Workload, scenario: Scenario) -> list[Trial]:
    """CTranslate2's settings of a grid, best first; printed as they are found."""
    found = calibrate(
        GRIDS[grid],
        model=model,
        tokenizer=bundle / "tokenizer" / "source.model",
        workload=workload,
        scenario=scenario,
        rounds=CALIBRATION_ROUNDS,
        seconds=CALIBRATION_SECONDS,
    )
    for trial in found:
        at = ", ".join(
            f"{1000 * p95:.1f} ms at {rate:.0f}/s" for rate, p95 in zip(trial.rates, trial.p95_seconds, strict=True)
        )
        print(f"{scenario.name}: {trial.batching}: p95 {at}", file=sys.stderr)
    return found


def measured_scenario(
    scenario: Scenario,
    batching: Batching,
    *,
    model: Path,
    models: Path,
    bundle: Path,
    workload: Workload,
    effort: Effort,
) -> dict[str, Any]:
    """Both servers started, compared and stopped."""
    started = time.perf_counter()
    tokenizer = bundle / "tokenizer" / "source.model"
    with running_server(models, *NO_REFUSAL) as ours, running_ctranslate2(model, tokenizer, batching) as theirs:
        same = same_translations([ours, theirs], workload, scenario)
        sides = [Side(name="dragoman", server=ours), Side(name="ctranslate2", server=theirs)]
        result = compare(Comparison(sides, workload, scenario, effort), effort)
    return {
        **result,
        "ctranslate2_batching": str(batching),
        "same_translations": same,
        "seconds": round(time.perf_counter() - started, 1),
    }


def main() -> int:
    arguments = arguments_of(sys.argv[1:])
    use_cores(arguments.cores)
    os.environ.pop("OMP_NUM_THREADS", None)  # each server sets its own threads
    names = arguments.scenario or (["greedy"] if arguments.quick else [one.name for one in SCENARIOS])
    scenarios = [one for one in SCENARIOS if one.name in names]
    bundle = arguments.models / arguments.bundle
    workload = Workload(arguments.data, bundle)
    model = ctranslate2_model(arguments.checkpoint, "int8")
    grid = arguments.calibrate_only or arguments.calibrate
    calibration = {one.name: trials(grid, model, bundle, workload, one) for one in scenarios} if grid else {}
    result: dict[str, Any] = {
        "machine": machine_facts(environments.ROOT),
        "workload": {
            "sentences": len(workload.sentences),
            "left_out": workload.num_left_out,
            "source_tokens_p5_p50_p95": [workload.lengths[len(workload.lengths) * part // 100] for part in (5, 50, 95)],
        },
        "effort": dataclasses.asdict(QUICK if arguments.quick else FULL),
        "calibration": {
            name: [{**dataclasses.asdict(trial), "batching": str(trial.batching)} for trial in found]
            for name, found in calibration.items()
        },
    }
    if arguments.calibrate_only:
        write_json(result, arguments.output.with_name(arguments.output.name + "-calibration.json"))
        return 0
    result["scenarios"] = {
        one.name: measured_scenario(
            one,
            calibration[one.name][0].batching if calibration else batching_of(arguments.batching),
            model=model,
            models=arguments.models,
            bundle=bundle,
            workload=workload,
            effort=QUICK if arguments.quick else FULL,
        )
        for one in scenarios
    }
    table = markdown(result)
    output: Path = arguments.output
    output.parent.mkdir(parents=True, exist_ok=True)
    output.with_suffix(".json").write_text(json.dumps(result, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    output.with_suffix(".md").write_text(table, encoding="utf-8")
    plot(result, output.with_suffix(".png"))
    print(table)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
