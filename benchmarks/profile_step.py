"""Where the time of a step goes: each kernel of the decoder, the encoder, the choice of tokens, and Python.

    python -m benchmarks.profile_step models/en-zh --data ../shared/data

An engine in this process decodes real sentences, newcomers joining as others leave: one greedy sentence at a time, 64
of them, and 16 beams of 4. Steps of at least three quarters of the rows count; where several greedy steps are one
run, each is its share of the run. Each case runs twice in turns:

- as it is, with clocks around the step, the runs of encoder and decoder, and the choice of tokens; Python is what is
  left of the step. The clocks count the processor time of the one thread that does all of it, which other work on the
  machine hardly touches;
- with ONNX Runtime's own profiler on, which tells the time of every node (the median of its runs is taken), in whole
  microseconds and with a few of its own added to each. What it adds is found from the difference of the two, and taken
  off all nodes alike: small nodes are therefore rough where a step has one row.

Writes `profile.json`, `profile.md` and `profile.png` into build/profile/, and prints the table.
"""

from __future__ import annotations

import argparse
import json
import random
import statistics
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import onnx
import onnxruntime

from benchmarks.decoding import FULL, SEARCHES, new_engine
from benchmarks.machine import machine_facts
from benchmarks.step_parts import KINDS, PARTS, kind_of, parts_of
from benchmarks.test_sets import english_chinese
from service import model_runner
from service.bundle import Bundle, load_bundle
from service.graphs import Graphs, open_graphs, runtime_version
from service.model_runner import OnnxModelRunner
from service.options import DecodingOptions
from service.request import Sequence as Segment

ROOT = Path(__file__).parents[1]
CASES = {"1 greedy": ("greedy", 1), "64 greedy": ("greedy", 64), "16 beams of 4": ("beam 4", 16)}
"""Search and sentences in flight."""
SENTENCES = {1: 16, 16: 48, 64: 192}
"""Sentences of a round by how many are in flight."""
OUTSIDE = ("encoder", "choice", "Python")
"""What a step does besides the decoder's graph."""
MAX_SOURCE_TOKENS = 64
COLOURS = {
    "embedding": "#8c8c8c",
    "self-attention": "#1f77b4",
    "cross-attention": "#17a2b8",
    "feed-forward": "#2ca02c",
    "projection": "#ff9f1c",
    "log-softmax": "#d62728",
    "best token": "#bcbd22",
    "encoder": "#9467bd",
    "choice": "#e377c2",
    "Python": "#555555",
}


@dataclass(kw_only=True)
class Seconds:
    """What the full steps of a case took together."""

    steps: int = 0
    """How many."""
    runs: int = 0
    """Runs of the decoder that made them: several greedy steps are one."""
    rows: int = 0
    """Rows of all of them."""
    whole: float = 0.0
    """The steps."""
    inside: dict[str, float] = field(default_factory=lambda: defaultdict(float))
    """Of that: `encoder`, `decoder` and `choice`."""


@dataclass(kw_only=True)
class Timed:
    """A session, or a function, whose calls are timed. Everything else is the session's own."""

    target: Any
    name: str
    into: dict[str, float]

    def __getattr__(self, name: str) -> Any:
        return getattr(self.target, name)

    def run_with_iobinding(self, *arguments: Any) -> Any:
        """As the session's."""
        return self._call(self.target.run_with_iobinding, *arguments)

    def __call__(self, *arguments: Any) -> Any:
        return self._call(self.target, *arguments)

    def _call(self, function: Callable[..., Any], *arguments: Any) -> Any:
        started = time.thread_time()
        try:
            return function(*arguments)
        finally:
            self.into[self.name] += time.thread_time() - started


def decode(
    runner: OnnxModelRunner, sources: Sequence[tuple[int, ...]], case: str, running: dict[str, float], into: Seconds
) -> None:
    """One round of a case; `running` is what the clocks inside the runner write to.

    Raises:
        RuntimeError: when a sentence failed.
    """
    search, in_flight = CASES[case]
    options = DecodingOptions(**SEARCHES[search])
    engine = new_engine(runner, in_flight * options.num_rows)
    segments = [Segment(source_ids=source, options=options) for source in sources[: SENTENCES[in_flight]]]
    waiting = list(reversed(segments))
    while waiting or not engine.is_idle:
        while waiting and engine.scheduler.num_waiting < in_flight:
            engine.submit([waiting.pop()])
        running.clear()
        started = time.thread_time()
        report = engine.step()
        seconds = time.thread_time() - started
        if report.num_rows >= FULL * in_flight * options.num_rows:
            into.steps += report.num_steps
            into.runs += 1
            into.rows += report.num_rows * report.num_steps
            into.whole += seconds
            for name, value in running.items():
                into.inside[name] += value
    if any(segment.error for segment in segments):
        raise RuntimeError("Every sentence must be decoded.")


def open_runner(bundle: Bundle, graphs: Graphs, running: dict[str, float]) -> OnnxModelRunner:
    """A runner whose graphs are timed."""
    return OnnxModelRunner(
        bundle,
        max_rows=64,
        max_source_tokens=MAX_SOURCE_TOKENS,
        max_target_tokens=160,
        graphs=Graphs(
            encoder=Timed(target=graphs.encoder, name="encoder", into=running),
            decoder=Timed(target=graphs.decoder, name="decoder", into=running),
            candidates=Timed(target=graphs.candidates, name="choice", into=running),
            greedy=graphs.greedy and Timed(target=graphs.greedy, name="decoder", into=running),
        ),
    )


def profiled_decoder(path: Path, directory: Path) -> tuple[Any, onnx.GraphProto]:
    """A decoder with the runtime's profiler on, and the graph that it runs."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.log_severity_level = 3  # it warns that the graph it writes is for this machine
    options.enable_profiling = True
    options.profile_file_prefix = str(directory / "profile")
    options.optimized_model_filepath = str(directory / "optimized.onnx")
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    return session, onnx.load(directory / "optimized.onnx", load_external_data=False).graph


def node_seconds(events: Sequence[dict[str, Any]], graph: onnx.GraphProto) -> dict[str, float]:
    """The median time of every node in a run, by its name, from the profiler's events.

    Raises:
        ValueError: when there is no run of every node.
    """
    found: dict[str, list[float]] = {node.name: [] for node in graph.node}
    ending = "_kernel_time"
    for event in events:
        name = event.get("name", "").removesuffix(ending)
        if event.get("cat") == "Node" and name != event["name"] and name in found:
            found[name].append(event["dur"] * 1e-6)
    missing = [name for name, values in found.items() if not values]
    if missing:
        raise ValueError(f"The profile must tell the time of every node, but not of {', '.join(missing)}.")
    return {name: statistics.median(values) for name, values in found.items()}


def without_overhead(nodes: dict[str, float], whole: float) -> dict[str, float]:
    """The nodes' times with the same amount taken off each, none below 0, so that together they are `whole`.

    Where they come to less than that they are all made longer by one factor.
    """
    low, high = 0.0, max(nodes.values())
    for _ in range(60):
        middle = (low + high) / 2
        if sum(max(value - middle, 0.0) for value in nodes.values()) > whole:
            low = middle
        else:
            high = middle
    left = {name: max(value - high, 0.0) for name, value in nodes.items()}
    return {name: value * whole / sum(left.values()) for name, value in left.items()}


def summary(seconds: Seconds, nodes: dict[str, float], graph: onnx.GraphProto) -> dict[str, Any]:
    """Microseconds of a step by part and kind of work."""
    parts = parts_of(graph)
    kinds = {node.name: kind_of(node.op_type) for node in graph.node}
    decoder: dict[str, dict[str, float]] = {part: dict.fromkeys(KINDS, 0.0) for part in PARTS}
    for name, value in without_overhead(nodes, seconds.inside["decoder"] / seconds.runs).items():
        decoder[parts[name]][kinds[name]] += 1e6 * value * seconds.runs / seconds.steps
    encoder, choice = (1e6 * seconds.inside[name] / seconds.steps for name in ("encoder", "choice"))
    whole = 1e6 * seconds.whole / seconds.steps
    python = whole - 1e6 * sum(seconds.inside.values()) / seconds.steps
    return {
        "steps": seconds.steps,
        "rows_a_step": seconds.rows / seconds.steps,
        "step_microseconds": whole,
        "decoder": decoder,
        "outside": {"encoder": encoder, "choice": choice, "Python": python},
    }


def markdown(result: dict[str, Any]) -> str:
    """The cases side by side: microseconds of a step, and shares."""
    cases = result["cases"]
    machine = result["machine"]
    lines = [
        "# Where the time of a step goes",
        "",
        f"{result['precision']}, one thread of {machine['cpu']} ({', '.join(machine['flags'])}), ONNX Runtime "
        f"{result['runtime']}, {machine['date']}, commit {machine['commit']}. Microseconds of processor time of a mean "
        "step, and their share.",
        "",
        "| part | work | " + " | ".join(cases) + " |",
        "| --- | --- |" + " --- |" * len(cases),
        "| all | | " + " | ".join(f"{case['step_microseconds']:.0f}" for case in cases.values()) + " |",
    ]

    def line(part: str, work: str, values: list[float]) -> str:
        shares = (f"{v:.0f} ({v / c['step_microseconds']:.1%})" for v, c in zip(values, cases.values(), strict=True))
        return f"| {part} | {work} | {' | '.join(shares)} |"

    for part in PARTS:
        lines.append(line(f"**{part}**", "", [sum(case["decoder"][part].values()) for case in cases.values()]))
        for kind in KINDS:
            values = [case["decoder"][part][kind] for case in cases.values()]
            if any(value >= 0.5 for value in values):
                lines.append(line("", kind, values))
    lines += [line(f"**{name}**", "", [case["outside"][name] for case in cases.values()]) for name in OUTSIDE]
    lines += ["", "Rows of a step: " + ", ".join(f"{case['rows_a_step']:.1f} ({name})" for name, case in cases.items())]
    return "\n".join(lines) + ".\n"


def plot(result: dict[str, Any], path: Path) -> None:
    """A bar of a step for each case; a part's products are filled, the rest of its work is hatched."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(11, 1.1 + 1.05 * len(result["cases"])), layout="constrained")
    labels = []
    for row, (name, case) in enumerate(result["cases"].items()):
        labels.append(f"{name}\n{case['step_microseconds'] / 1000:.3g} ms")
        pieces = [
            (part, kind, case["decoder"][part][kind], "" if kind in ("products", "attention") else "////")
            for part in PARTS
            for kind in KINDS
        ]
        pieces += [(each, "", case["outside"][each], "") for each in OUTSIDE]
        left = 0.0
        for part, kind, value, hatch in pieces:
            share = 100 * value / case["step_microseconds"]
            axes.barh(
                row, share, left=left, height=0.7, color=COLOURS[part], hatch=hatch, edgecolor="white", linewidth=0.6
            )
            if share > 3.5:
                text = f"{kind or part}\n{share:.0f}%"
                axes.text(left + share / 2, row, text, ha="center", va="center", fontsize=7, color="white")
            left += share
    axes.set_yticks(range(len(labels)), labels)
    axes.invert_yaxis()
    axes.set_xlim(0, 100)
    axes.set_xlabel("% of a step; hatched: norms, bytes, sums and gathers of a part")
    handles = [pyplot.Rectangle((0, 0), 1, 1, color=colour) for colour in COLOURS.values()]
    figure.legend(handles, list(COLOURS), loc="outside upper center", ncols=len(COLOURS), fontsize=8, frameon=False)
    figure.savefig(path, dpi=150)


def measure(bundle: Bundle, sources: Sequence[tuple[int, ...]], rounds: int) -> dict[str, Any]:
    """Every case, by its name: see `summary`."""
    running: dict[str, float] = defaultdict(float)
    graphs = open_graphs(bundle, num_threads=1)
    plain = open_runner(bundle, graphs, running)
    cases = {}
    best_tokens = model_runner.best_tokens
    # A function's place is taken by something that is called like it, for as long as the block lasts.
    model_runner.best_tokens = Timed(target=best_tokens, name="choice", into=running)  # type: ignore[assignment]
    try:
        for case in CASES:
            with tempfile.TemporaryDirectory() as scratch:
                is_greedy = CASES[case][0] == "greedy" and bundle.greedy_path is not None
                path = (is_greedy and bundle.greedy_path) or bundle.decoder_path
                decoder, graph = profiled_decoder(path, Path(scratch))
                watched = replace(graphs, **{"greedy" if is_greedy else "decoder": decoder})
                profiled = open_runner(bundle, watched, running)
                seconds = Seconds()
                for number in range(rounds + 1):
                    decode(plain, sources, case, running, seconds if number else Seconds())  # the first warms up
                    if number <= 2:  # the profiler keeps all events in memory
                        decode(profiled, sources, case, running, Seconds())
                events = json.loads(Path(decoder.end_profiling()).read_text(encoding="utf-8"))
                cases[case] = summary(seconds, node_seconds(events, graph), graph)
    finally:
        model_runner.best_tokens = best_tokens
    return cases


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bundle", type=Path)
    parser.add_argument("--data", type=Path, required=True, help="directory with docs-enzh, tatoeba-enzh, flores-enzh")
    parser.add_argument("--rounds", type=int, default=4)
    parser.add_argument("--output", type=Path, default=ROOT / "build" / "profile")
    arguments = parser.parse_args()

    bundle = load_bundle(arguments.bundle)
    texts = [text for test_set in english_chinese(arguments.data) for text in test_set.sources]
    sources = [tuple(bundle.tokenizer.encode_source(text)) for text in random.Random(1).sample(texts, 400)]
    sources = [source for source in sources if len(source) <= MAX_SOURCE_TOKENS]
    result = {
        "machine": machine_facts(ROOT),
        "runtime": runtime_version(),
        "precision": bundle.manifest.precision,
        "cases": measure(bundle, sources, arguments.rounds),
    }
    arguments.output.mkdir(parents=True, exist_ok=True)
    (arguments.output / "profile.json").write_text(json.dumps(result, indent=2), encoding="utf-8")
    table = markdown(result)
    (arguments.output / "profile.md").write_text(table, encoding="utf-8")
    plot(result, arguments.output / "profile.png")
    print(table)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
