"""The growths as tables and as a picture, from their JSON."""

from __future__ import annotations

from pathlib import Path
from typing import Any

FLAT = 1.15
"""Within this factor of its first step a cost or a memory is called flat."""
WHAT = {
    "sentences": "sentences one after another, 64 a call, 8 callers",
    "callers": "callers, a sentence a call",
    "source tokens": "source tokens of one segment, as many target tokens, 32 callers",
}


def cost_of(step: dict[str, Any]) -> float:
    """Processor seconds of the server for a target token."""
    cost: float = step["server_cpu_seconds"] / step["num_target_tokens"]
    return cost


def verdict(values: list[float]) -> str:
    """How the last of some values stands to the first, and whether that is flat."""
    factor = values[-1] / values[0]
    return f"{'flat' if 1 / FLAT <= factor <= FLAT else 'falls' if factor < 1 else 'grows'}: {factor:.2f} times"


def markdown(result: dict[str, Any]) -> str:
    """A table for each growth, with how cost and memory end beside how they began."""
    machine = result["machine"]
    lines = [
        "# Growth",
        "",
        f"{machine['cores_used']} cores of {machine['cpu']} ({', '.join(machine['flags'])}), {machine['date']}, "
        f"commit {machine['commit']}; load generator on the same cores.",
    ]
    for name, steps in result["growths"].items():
        cells = [
            name,
            "calls",
            "target tokens",
            "tokens/s",
            "server CPU µs a target token",
            "of it the event loop's µs",
            "encoder's share of the steps' time",
            "rows a step",
            "p50 / p95 of a call, ms",
            "RSS, peak MB",
        ]
        lines += ["", f"## {WHAT[name]}", "", f"| {' | '.join(cells)} |", f"|{' --- |' * len(cells)}"]
        lines += [_line(step) for step in steps]
        costs, memory = [cost_of(step) for step in steps], [float(step["memory_bytes"]["now"]) for step in steps]
        lines += ["", f"Cost {verdict(costs)}; resident memory {verdict(memory)}."]
    return "\n".join(lines) + "\n"


def _line(step: dict[str, Any]) -> str:
    tokens = step["num_target_tokens"]
    cells = [
        f"{step['size']:,}",
        f"{step['calls']:,}",
        f"{tokens:,}",
        f"{tokens / step['wall_seconds']:,.0f}",
        f"{1e6 * cost_of(step):.0f}",
        f"{1e6 * step['event_loop_cpu_seconds'] / tokens:.0f}",
        f"{step['encode_seconds'] / step['step_seconds']:.0%}",
        f"{step['rows_a_step']:.1f}",
        f"{1000 * step['p50_seconds']:.0f} / {1000 * step['p95_seconds']:.0f}",
        f"{step['memory_bytes']['now'] / 1e6:.0f}, {step['memory_bytes']['peak'] / 1e6:.0f}",
    ]
    return f"| {' | '.join(cells)} |"


def plot(result: dict[str, Any], path: Path) -> None:
    """Cost of a token and memory against size, a panel for each growth."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    growths = result["growths"]
    figure, rows = pyplot.subplots(1, len(growths), figsize=(5 * len(growths), 4), squeeze=False)
    for axes, (name, steps) in zip(rows[0], growths.items(), strict=True):
        sizes = [step["size"] for step in steps]
        costs = [1e6 * cost_of(step) for step in steps]
        axes.plot(sizes, costs, "o-", color="tab:blue")
        axes.set(xscale="log", xlabel=name, ylabel="server's processor time, µs a target token")
        axes.set_ylim(0, 1.2 * max(costs))
        memory = axes.twinx()
        megabytes = [step["memory_bytes"]["now"] / 1e6 for step in steps]
        memory.plot(sizes, megabytes, "s--", color="tab:orange")
        memory.set_ylabel("resident memory, MB")
        memory.set_ylim(0, 1.1 * max(megabytes))
        axes.set_title(WHAT[name], fontsize=8)
        axes.grid(visible=True, linewidth=0.2)
    figure.suptitle("Blue: cost of a token. Orange: memory.", fontsize=9)
    figure.tight_layout()
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=120)
    pyplot.close(figure)
