"""The graph that picks the best tokens of every row: exact, and quicker than TopK over the vocabulary.

The vocabulary is cut into groups. The C best tokens lie in the C groups with the greatest maxima: of any other group
there are C tokens that come before all of its own. So only those groups are searched, in the order of the vocabulary:
equal tokens come out in the order of their ids, as TopK takes the first of equals. For [64, 8000] and C = 8, one
thread, TopK alone takes 0.38 ms and this 0.12.
Axes: B rows, V vocabulary, G groups, W tokens of a group, C candidates, c groups searched.
"""

from __future__ import annotations

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from service.graph_signature import GraphSignature, TensorSignature

LARGEST_GROUP = 64
"""Groups of 40 to 64 tokens were the quickest for 4 to 32 candidates of 8,000."""
IR_VERSION = 10
_TYPES = {"int64": TensorProto.INT64, "float32": TensorProto.FLOAT}


def group_size(vocabulary_size: int) -> int:
    """W: the largest divisor of the vocabulary up to `LARGEST_GROUP`."""
    return max(size for size in range(1, LARGEST_GROUP + 1) if vocabulary_size % size == 0)


def candidates_to_onnx(signature: GraphSignature, opset: int) -> onnx.ModelProto:
    """The graph for a signature's vocabulary."""
    vocabulary_size = signature.candidates_inputs[0].axes[1]
    assert isinstance(vocabulary_size, int)
    size = group_size(vocabulary_size)
    groups = vocabulary_size // size
    node = helper.make_node
    constants = {
        "grouped_shape": [0, groups, size],
        "rows_shape": [0, -1],
        "last_axis": [2],
        "num_groups": [groups],
        "group_size": [size],
    }
    nodes = [
        node("Reshape", ["log_probabilities", "grouped_shape"], ["grouped"]),  # [B,V] -> [B,G,W]
        node("ReduceMax", ["grouped", "last_axis"], ["maxima"], keepdims=0),  # [B,G]
        node("Min", ["num_candidates", "num_groups"], ["num_searched"]),  # [1], which is c
        node("TopK", ["maxima", "num_searched"], ["greatest", "best_groups"]),  # [B,c] of equal groups the first
        node("TopK", ["best_groups", "num_searched"], ["searched", "order"], largest=0),  # [B,c] ascending
        node("Unsqueeze", ["searched", "last_axis"], ["indices"]),  # [B,c,1]
        node("GatherND", ["grouped", "indices"], ["found"], batch_dims=1),  # [B,c,W]
        node("Reshape", ["found", "rows_shape"], ["tokens"]),  # [B,c*W]
        node("TopK", ["tokens", "num_candidates"], ["candidate_log_probabilities", "places"]),  # [B,C]
        node("Div", ["places", "group_size"], ["searched_places"]),  # [B,C] among the groups searched
        node("GatherElements", ["searched", "searched_places"], ["groups"], axis=1),  # [B,C]
        node("Mod", ["places", "group_size"], ["within"]),  # [B,C]
        node("Mul", ["groups", "group_size"], ["first_ids"]),  # [B,C]
        node("Add", ["first_ids", "within"], ["candidate_ids"]),  # [B,C]
    ]
    graph = helper.make_graph(
        nodes,
        "candidates",
        [_value(tensor) for tensor in signature.candidates_inputs],
        [_value(tensor) for tensor in signature.candidates_outputs],
        [numpy_helper.from_array(np.array(value, np.int64), name) for name, value in constants.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=IR_VERSION)
    onnx.checker.check_model(model)
    return model


def _value(tensor: TensorSignature) -> onnx.ValueInfoProto:
    return helper.make_tensor_value_info(tensor.name, _TYPES[tensor.dtype], list(tensor.axes))
