"""Which part of the decoder each node of its graph belongs to, and what kind of work it does."""

from __future__ import annotations

import onnx

PARTS = ("embedding", "self-attention", "cross-attention", "feed-forward", "projection", "log-softmax", "best token")
"""In the order of the step; the last only where several greedy steps are one run."""
KINDS = ("products", "attention", "bytes", "norms", "other")
"""Products with weights; attention over keys and values; floats made bytes; norms; and the rest: sums, gathers, …"""
_KIND_OF_OPERATOR = {
    "MatMul": "products",
    "Gemm": "products",
    "FusedMatMul": "products",
    "MatMulIntegerToFloat": "products",
    "GroupQueryAttention": "attention",
    "QuantizeLinear": "bytes",
    "RMSNormalization": "norms",
    "SimplifiedLayerNormalization": "norms",
    "LayerNormalization": "norms",
    "SkipLayerNormalization": "norms",
}
_PART_OF_INPUT = (
    ("key_self", "self-attention"),
    (".self_", "self-attention"),
    ("cross_key", "cross-attention"),
    ("slot_rows", "cross-attention"),
    ("row_slots", "cross-attention"),
    (".cross_", "cross-attention"),
    ("feed_forward", "feed-forward"),
    ("projection", "projection"),
    ("embedding", "embedding"),
    ("greedy.", "best token"),
)
"""What a graph's weights and inputs are called, by part; `export.decoder_graph` names them."""


def kind_of(operator: str) -> str:
    """The kind of work an operator does."""
    return _KIND_OF_OPERATOR.get(operator, "other")


def parts_of(graph: onnx.GraphProto) -> dict[str, str]:
    """The part of every node, by its name.

    A node that reads weights, caches or lane inputs of a part belongs to it. Of the others, a sum belongs to the last
    thing that it adds, and everything else to what reads it: a norm to its product, bytes to theirs.

    Raises:
        ValueError: naming the nodes that belong nowhere.
    """
    producers = {name: index for index, node in enumerate(graph.node) for name in node.output if name}
    readers: dict[str, list[int]] = {}
    for index, node in enumerate(graph.node):
        for name in node.input:
            readers.setdefault(name, []).append(index)
    found: dict[int, str] = {}
    for index, node in enumerate(graph.node):
        part = _own_part(node)
        if part is None and node.op_type == "Add":
            part = found.get(max((producers[name] for name in node.input if name in producers), default=-1))
        if part is not None:
            found[index] = part
    for index in reversed(range(len(graph.node))):
        after = [found[reader] for name in graph.node[index].output for reader in readers.get(name, ())]
        if index not in found and after:
            found[index] = after[0]
    lost = [f"{node.op_type} `{node.name}`" for index, node in enumerate(graph.node) if index not in found]
    if lost:
        raise ValueError(f"Every node must belong to a part, but these do not: {', '.join(lost)}.")
    return {node.name: found[index] for index, node in enumerate(graph.node)}


def _own_part(node: onnx.NodeProto) -> str | None:
    """The part that a node's operator or the names of its inputs tell."""
    if node.op_type == "LogSoftmax":
        return "log-softmax"
    named = (part for name in node.input for beginning, part in _PART_OF_INPUT if beginning in name)
    part = next(named, None)
    # a projection that is tied to the embedding
    return "projection" if part == "embedding" and kind_of(node.op_type) == "products" else part
