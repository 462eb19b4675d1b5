"""What a step's profile is made of: the part of every node, and times without what the profiler adds."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import onnx
import pytest
from onnx import TensorProto, helper

from benchmarks.profile_step import Seconds, markdown, node_seconds, plot, summary, without_overhead
from benchmarks.step_parts import KINDS, PARTS, parts_of


def graph(nodes: list[tuple[str, list[str], str]]) -> onnx.GraphProto:
    """Nodes of an operator, inputs and one output, after which they are named."""
    made = [helper.make_node(operator, inputs, [output], name=output) for operator, inputs, output in nodes]
    return helper.make_graph(made, "step", [], [helper.make_tensor_value_info("last", TensorProto.FLOAT, None)])


STEP = graph(
    [
        ("Gather", ["embedding.weight", "target_ids"], "token"),
        ("Cast", ["token"], "float"),
        ("Gather", ["positions", "past_lengths"], "embedding"),
        ("Add", ["float", "embedding"], "states"),
        ("RMSNormalization", ["states", "factors"], "norm"),
        ("QuantizeLinear", ["norm"], "bytes"),
        ("MatMulIntegerToFloat", ["bytes", "layers.0.self_output.weight"], "self"),
        ("Add", ["states", "self"], "sum"),
        ("RMSNormalization", ["sum", "factors"], "norm2"),
        ("MatMulIntegerToFloat", ["norm2", "layers.0.cross_query.weight"], "query"),
        ("GatherND", ["query", "slot_rows"], "queries"),
        ("GroupQueryAttention", ["queries", "cross_key_0"], "cross"),
        ("Add", ["sum", "cross"], "sum2"),
        ("MatMul", ["sum2", "layers.0.feed_forward.inner.weight"], "inner"),
        ("Add", ["inner", "sum2"], "sum3"),
        ("Squeeze", ["sum3"], "flat"),
        ("Gemm", ["flat", "embedding.weight"], "logits"),
        ("LogSoftmax", ["logits"], "last"),
    ]
)


def test_every_node_belongs_to_the_part_that_it_serves() -> None:
    assert parts_of(STEP) == {
        **dict.fromkeys(("token", "float", "embedding", "states"), "embedding"),
        **dict.fromkeys(("norm", "bytes", "self", "sum"), "self-attention"),
        **dict.fromkeys(("norm2", "query", "queries", "cross", "sum2"), "cross-attention"),
        **dict.fromkeys(("inner", "sum3"), "feed-forward"),
        **dict.fromkeys(("flat", "logits"), "projection"),
        "last": "log-softmax",
    }


def test_a_node_that_belongs_nowhere_is_named() -> None:
    lost = graph([("Neg", ["x"], "y")])
    with pytest.raises(ValueError, match="do not: Neg `y`"):
        parts_of(lost)


def event(name: str, microseconds: int, cat: str = "Node") -> dict[str, Any]:
    return {"cat": cat, "name": name, "dur": microseconds}


def test_a_nodes_time_is_the_median_of_its_kernels_times() -> None:
    events = [event(f"{node.name}_kernel_time", 5) for node in STEP.node]
    events += [event("self_kernel_time", value) for value in (7, 900)]
    events += [event("self_fence_before", 50), event("model_run", 1000, "Session")]
    found = node_seconds(events, STEP)
    assert found["self"] == pytest.approx(7e-6)
    assert found["last"] == pytest.approx(5e-6)
    with pytest.raises(ValueError, match="but not of last"):
        node_seconds(events[: len(STEP.node) - 1], STEP)


def test_what_the_profiler_adds_is_taken_off_every_node() -> None:
    found = without_overhead({"a": 12.0, "b": 5.0, "c": 2.5}, 11.0)  # 3 of each, but c has no more than 2.5
    assert found == pytest.approx({"a": 9.0, "b": 2.0, "c": 0.0})
    assert without_overhead({"a": 3.0, "b": 1.0}, 8.0) == pytest.approx({"a": 6.0, "b": 2.0})


def test_a_summary_comes_to_the_whole_step(tmp_path: Path) -> None:
    seconds = Seconds(steps=10, runs=5, rows=640, whole=10e-3)
    seconds.inside.update(encoder=1e-3, decoder=6e-3, choice=1e-3)
    case = summary(seconds, {node.name: 50e-6 for node in STEP.node}, STEP)
    assert set(case["decoder"]) == set(PARTS)
    assert all(set(kinds) == set(KINDS) for kinds in case["decoder"].values())
    assert sum(sum(kinds.values()) for kinds in case["decoder"].values()) == pytest.approx(600)
    assert case["outside"] == pytest.approx({"encoder": 100, "choice": 100, "Python": 200})
    assert case["decoder"]["cross-attention"]["attention"] == pytest.approx(600 / 18)
    assert case["rows_a_step"] == 64
    machine = {"cpu": "CPU", "flags": ["avx2"], "date": "today", "commit": "abc"}
    result = {"machine": machine, "runtime": "1.32", "precision": "int8", "cases": {"64 greedy": case}}
    table = markdown(result)
    assert "| **log-softmax** |  | 33 (3.3%) |" in table
    assert "| **Python** |  | 200 (20.0%) |" in table
    plot(result, tmp_path / "profile.png")
    assert (tmp_path / "profile.png").stat().st_size > 10_000
