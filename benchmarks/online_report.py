"""The online comparison as a table and as a picture, from its JSON."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

NAMES = {"dragoman": "Dragoman", "ctranslate2": "CTranslate2"}
COLOURS = {"dragoman": "tab:blue", "ctranslate2": "tab:orange"}
PERCENTILES = (("p50_seconds", "p50", ":"), ("p95_seconds", "p95", "-"), ("p99_seconds", "p99", "--"))


def markdown(result: dict[str, Any]) -> str:
    """All scenarios: goodput, calls alone, the burst, and latency at every load."""
    machine, workload = result["machine"], result["workload"]
    lines = [
        "# Online",
        "",
        f"{machine['cores_used']} cores of {machine['cpu']} ({', '.join(machine['flags'])}), "
        f"{machine['date']}, commit {machine['commit']}; load generator on the same cores. "
        f"{workload['sentences']} sentences of 5/50/95 % lengths {workload['source_tokens_p5_p50_p95']} source tokens.",
    ]
    for name, scenario in result["scenarios"].items():
        lines += ["", f"## {name}", "", *_goodput(scenario), "", *_alone(scenario), "", *_loads(scenario)]
    return "\n".join(lines) + "\n"


def _row(*cells: object) -> str:
    return f"| {' | '.join(map(str, cells))} |"


def _heading(*cells: str) -> list[str]:
    return [_row(*cells), _row(*("---" for _ in cells))]


def _milliseconds(seconds: float) -> str:
    return f"{1000 * seconds:.1f}" if seconds < 0.1 else f"{1000 * seconds:.0f}"


def _of(results: Iterable[dict[str, Any]], name: str) -> float:
    """The median of one figure."""
    return statistics.median(result[name] for result in results)


def _spread(values: Sequence[float | None], form: str) -> str:
    """The least and the greatest of one a round."""
    known = [value for value in values if value is not None]
    return f" ({min(known):{form}} to {max(known):{form}})" if len(known) > 1 else ""


def _goodput(scenario: dict[str, Any]) -> list[str]:
    """Calls a second within the bounds."""
    lines = _heading("goodput: calls/s with p95 within", *NAMES.values(), "ratio")
    for name, found in scenario["goodput"].items():
        cells = [
            f"{side['per_second']:.0f}{_spread(side['per_second_by_round'], '.0f')}, "
            f"bound {_milliseconds(side['bound_seconds'])} ms"
            for side in (found[system] for system in NAMES)
        ]
        what = "2 × its own unloaded p95 (headline)" if name == "own" else f"2 × {NAMES[name]}'s unloaded p95"
        ratio = "none" if found["ratio"] is None else f"{found['ratio']:.2f}{_spread(found['ratio_by_round'], '.2f')}"
        lines.append(_row(what, *cells, ratio))
    return lines


def _alone(scenario: dict[str, Any]) -> list[str]:
    """Calls one after another, bursts, memory."""
    lines = _heading("", *NAMES.values(), "CTranslate2 / Dragoman")
    systems = [scenario["systems"][system] for system in NAMES]

    def add(what: str, values: Sequence[float], cells: Sequence[str]) -> None:
        lines.append(_row(what, *cells, f"{values[1] / values[0]:.2f}" if values[0] else ""))

    for key, name, _ in PERCENTILES:
        values = [_of(system["alone"], key) for system in systems]
        add(f"one call at a time, {name}, ms", values, [_milliseconds(value) for value in values])
    for key, name in (
        ("first_seconds", "first answer"),
        ("p50_seconds", "p50"),
        ("p95_seconds", "p95"),
        ("last_seconds", "last answer"),
    ):
        values = [_of(system["bursts"], key) for system in systems]
        count = systems[0]["bursts"][0]["calls"]
        cells = [
            f"{_milliseconds(value)}{_spread([1000 * burst[key] for burst in system['bursts']], '.0f')}"
            for value, system in zip(values, systems, strict=True)
        ]
        add(f"burst of {count}, {name}, ms", values, cells)
    for kind in ("alone", "bursts"):
        for key, name in (("server_cpu_seconds", "server"), ("client_cpu_seconds", "load generator")):
            values = [_of(system[kind], key) for system in systems]
            what = "one call at a time" if kind == "alone" else "burst"
            add(f"{what}, processor time of the {name} a call, ms", values, [f"{1000 * value:.2f}" for value in values])
    values = [system["memory_bytes"]["peak"] / 1e6 for system in systems]
    add("peak resident memory of the server, MB", values, [f"{value:.0f}" for value in values])
    values = [system["ready_seconds"] for system in systems]
    add("start to ready, s", values, [f"{value:.1f}" for value in values])
    values = [_of(system["alone"], "num_target_tokens") for system in systems]
    add("target tokens of the calls one at a time", values, [f"{value:.0f}" for value in values])
    return [
        *lines,
        "",
        f"CTranslate2's server: {scenario['ctranslate2_batching']}. "
        f"{scenario['same_translations']:.0%} of translations are the same. "
        f"The server whose turn it was not took {scenario['idle_share_of_a_core']:.2%} of a core.",
    ]


def _loads(scenario: dict[str, Any]) -> list[str]:
    """Latency at every load, the median of its repeats."""
    lines = _heading(
        "calls/s", "server", "p50 ms", "p95 ms", "p99 ms", "answered/s", "failed", "server ms a call", "generator"
    )
    rungs = sorted({load["rung"] for system in scenario["systems"].values() for load in system["loads"]})
    for rung in rungs:
        for system, name in NAMES.items():
            for load in scenario["systems"][system]["loads"]:
                if load["rung"] == rung:
                    repeats = load["repeats"]
                    generator = _of(repeats, "client_cpu_seconds") * _of(repeats, "offered_per_second")
                    lines.append(
                        _row(
                            f"{repeats[0]['offered_per_second']:.0f}",
                            name,
                            *(_milliseconds(_of(repeats, key)) for key, _, _ in PERCENTILES),
                            f"{_of(repeats, 'answered_per_second'):.0f}",
                            sum(sum(repeat["failures"].values()) for repeat in repeats),
                            f"{1000 * _of(repeats, 'server_cpu_seconds'):.2f}",
                            f"{generator:.0%} of a core",
                        )
                    )
    return lines


def plot(result: dict[str, Any], path: Path) -> None:
    """Latency percentiles against offered load, a panel for each scenario; dots are the single repeats of p95."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    scenarios = result["scenarios"]
    figure, rows = pyplot.subplots(1, len(scenarios), figsize=(7 * len(scenarios), 5), squeeze=False)
    for axes, (name, scenario) in zip(rows[0], scenarios.items(), strict=True):
        for system, label in NAMES.items():
            loads = scenario["systems"][system]["loads"]
            rates = [load["repeats"][0]["offered_per_second"] for load in loads]
            for key, percentile, style in PERCENTILES:
                values = [1000 * _of(load["repeats"], key) for load in loads]
                axes.plot(rates, values, style, color=COLOURS[system], label=f"{label} {percentile}")
            dots = [
                (rate, 1000 * repeat["p95_seconds"])
                for rate, load in zip(rates, loads, strict=True)
                for repeat in load["repeats"]
            ]
            axes.scatter(*zip(*dots, strict=True), s=8, alpha=0.4, color=COLOURS[system])
            own = scenario["goodput"]["own"][system]
            axes.axhline(1000 * own["bound_seconds"], color=COLOURS[system], linewidth=0.6)
            if own["per_second"]:
                axes.axvline(own["per_second"], color=COLOURS[system], linewidth=0.6)
        axes.set(xscale="log", yscale="log", xlabel="offered calls/s", ylabel="latency, ms", title=name)
        axes.grid(visible=True, which="both", linewidth=0.2)
        axes.legend(fontsize=8)
    figure.suptitle("Latency under open-loop load; thin lines: the bound, and the goodput at it")
    figure.tight_layout()
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=120)
    pyplot.close(figure)
