"""The graph that makes several steps of greedy search in one run: the decoder's graph, one copy of its nodes a step.

Between two steps the host has next to nothing to do in greedy search, but to do it costs as much as a third of a small
model's step of one row, and needs the interpreter. Here a step's best token goes straight into the next. Weights
are stored once. Each step's caches are outputs of their own, so that all of them can be bound to the slab's buffers.

A row computes the same numbers as by single steps, to the bit: the same operators on the same shapes. That is why the
attention that nobody reads is put out all the same: without it the runtime takes another path in fp32. The best token
is found as in `export.candidates_graph`, group by group; of equal ones it is the one with the lowest id.
Axes: B rows, V vocabulary, G groups, W tokens of a group, T steps.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from export.candidates_graph import group_size
from service import graph_signature as names

SHAPE, LAST_AXIS, GROUP_SIZE, LAST_POSITION = "greedy.shape", "greedy.last_axis", "greedy.size", "greedy.last_position"
ONE = "greedy.one"
"""Constants of all steps."""
LAST_SLOT = "greedy.last_slot"
"""The last position of a row's cache."""


def greedy_to_onnx(decoder: onnx.ModelProto, num_steps: int, max_positions: int) -> onnx.ModelProto:
    """`num_steps` steps of greedy search by the decoder's graph.

    A row that has reached the end of its cache, or the last of `max_positions`, stays there: what comes out for it from
    then on is of no use.

    Raises:
        ValueError: when the decoder puts out no log-probabilities.
    """
    graph = decoder.graph
    log_probabilities = [value for value in graph.output if value.name == names.LOG_PROBABILITIES]
    if not log_probabilities:
        raise ValueError(f"`{names.LOG_PROBABILITIES}` must be among the decoder's outputs, but is missing.")
    vocabulary_size = log_probabilities[0].type.tensor_type.shape.dim[1].dim_value
    size = group_size(vocabulary_size)
    constants = [
        numpy_helper.from_array(np.array([0, vocabulary_size // size, size]), SHAPE),
        numpy_helper.from_array(np.array([2]), LAST_AXIS),
        numpy_helper.from_array(np.array(size), GROUP_SIZE),
        numpy_helper.from_array(np.array([[max_positions - 1]], np.int32), LAST_POSITION),
        numpy_helper.from_array(np.array([1], np.int32), ONE),
    ]
    caches = {value.name: value for value in graph.output if value.name.startswith(names.PRESENT)}
    nodes = [_node("Sub", ["num_target_positions", ONE], LAST_SLOT)]  # [1]
    outputs = [
        helper.make_tensor_value_info(names.GREEDY_IDS, TensorProto.INT64, ["B", num_steps]),
        helper.make_tensor_value_info(names.GREEDY_LOG_PROBABILITIES, TensorProto.FLOAT, ["B", num_steps]),
    ]
    shared = {tensor.name for tensor in graph.initializer} | {value.name for value in graph.input} | {""}
    for step in range(num_steps):
        renamed: dict[str, str] = {}
        if step:
            constants.append(numpy_helper.from_array(np.array([[step]], np.int32), f"greedy.{step}"))
            renamed = {names.cache_input(name): names.at_step(name, step - 1) for name in caches}
            renamed["target_ids"] = f"greedy.id.{step - 1}"
            renamed["past_lengths"] = f"greedy.past.{step}"
            nodes += [
                _node("Add", ["past_lengths", f"greedy.{step}"], f"greedy.next.{step}"),
                _node("Min", [f"greedy.next.{step}", LAST_POSITION, LAST_SLOT], renamed["past_lengths"]),
            ]
        nodes += [_renamed(node, step, renamed, shared) for node in graph.node]
        nodes += _best_token(step)
        for name, value in caches.items():
            output = onnx.ValueInfoProto()
            output.CopyFrom(value)
            output.name = names.at_step(name, step)
            outputs.append(output)
    for kind, name in (("id", names.GREEDY_IDS), ("value", names.GREEDY_LOG_PROBABILITIES)):
        nodes.append(_node("Concat", [f"greedy.{kind}.{i}" for i in range(num_steps)], name, axis=1))
    made = onnx.ModelProto()
    made.CopyFrom(decoder)
    made.graph.CopyFrom(
        helper.make_graph(nodes, "greedy", list(graph.input), outputs, [*graph.initializer, *constants])
    )
    onnx.checker.check_model(made)
    return made


def _node(operator: str, inputs: list[str], output: str, **attributes: Any) -> onnx.NodeProto:
    """A node called like its output."""
    return helper.make_node(operator, inputs, [output], name=output, **attributes)


def _renamed(node: onnx.NodeProto, step: int, renamed: dict[str, str], shared: set[str]) -> onnx.NodeProto:
    """A node of one step: weights and the run's own inputs are those of all, everything else has names of its own."""
    copy = onnx.NodeProto()
    copy.CopyFrom(node)
    copy.name = names.at_step(node.name, step) if node.name else ""
    for i, name in enumerate(node.input):
        copy.input[i] = renamed.get(name, name if name in shared else names.at_step(name, step))
    for i, name in enumerate(node.output):
        copy.output[i] = names.at_step(name, step) if name else ""
    return copy


def _best_token(step: int) -> list[onnx.NodeProto]:
    """The best token [B,1] of a step and its log-probability [B,1]."""

    def name(what: str) -> str:
        return f"greedy.{what}.{step}"

    return [
        _node("Reshape", [names.at_step(names.LOG_PROBABILITIES, step), SHAPE], name("grouped")),  # [B,V] -> [B,G,W]
        _node("ReduceMax", [name("grouped"), LAST_AXIS], name("maxima"), keepdims=0),  # [B,G]
        _node("ArgMax", [name("maxima")], name("group"), axis=1, keepdims=1),  # [B,1] of equal ones the first
        _node("GatherND", [name("grouped"), name("group")], name("tokens"), batch_dims=1),  # [B,W]
        _node("ArgMax", [name("tokens")], name("within"), axis=1, keepdims=1),  # [B,1] of equal ones the first
        # Gathered and not the maximum: that of numbers that are none need not be one of them.
        _node("GatherElements", [name("tokens"), name("within")], name("value"), axis=1),  # [B,1]
        _node("Mul", [name("group"), GROUP_SIZE], name("first")),  # [B,1]
        _node("Add", [name("first"), name("within")], name("id")),  # [B,1]
    ]
