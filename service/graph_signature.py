"""Names, axes and element types of a bundle's graphs: the one place where they are written down.

`export` builds its graphs to this signature, `service.model_runner` binds its buffers by it, and both check the
graphs they get against it. Axes: B rows, N lanes, Q query slots of a lane, P positions of a step's cross-attention,
C candidates, S source positions, M positions of a row's key/value slot, D width, H heads, K width per head, V target
vocabulary. B, N, Q, P, C, S and M are dynamic; every other axis is a number.

The encoder projects the keys and values of the decoder's cross-attention once for each source. The decoder makes one
step of one token for every row; its `present_*` outputs are bound to the buffers of the `past_*` and `cross_*` inputs.
The candidates' graph picks the best tokens of every row; it is apart so that greedy steps do not pay for it. A bundle
may have one graph more, that of several steps of greedy search in one run.

Both attentions of the decoder are `com.microsoft.GroupQueryAttention`, which appends keys and values to a past and
attends to everything up to them. In self-attention a row appends its own. In cross-attention the past is a lane's
source, and the rows that read it are its queries, one in each slot. There is nothing to append, so that the queries
themselves are appended after the source (hence `SPARE_POSITIONS`), and `source_bias` takes their weight to exactly 0:
each row attends to its own source and to nothing else.

A lane has at least 2 query slots (`LEAST_SLOTS`), in use or not: with one the runtime takes another path, whose sums
differ in the last bit, and then a row's bits would depend on how many rows the lanes beside it have. They do depend on
whether its own lane has one row or several, and on nothing else: not on how many, nor on its place.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Protocol

SOURCE_MULTIPLE = 8
"""Source positions are padded to a multiple of this, so that a sentence's bits do not depend on its neighbours."""

LEAST_SLOTS = 2
"""Least Q."""

SPARE_POSITIONS = 16
"""Positions of a lane's slot after its source, and so the most rows that read one lane."""

MASKED_SCORE = -1.0e30
"""`source_bias` where a position is none of the lane's source: its weight is exactly 0."""

VOCABULARY_MULTIPLE = 8
"""The target vocabulary of the graph is padded to a multiple of this."""

LOG_PROBABILITIES = "log_probabilities"
"""The decoder's output [B,V]."""

GREEDY_IDS = "greedy_ids"
"""The best tokens [B,T] of T steps, each found after those before it."""

GREEDY_LOG_PROBABILITIES = "greedy_log_probabilities"
"""Their log-probabilities [B,T]."""

CACHE_DTYPES = ("float32", "int8")
"""What cached keys and values may be: as they are, or as bytes of which the decoder's graph knows the scales."""


class NodeArgument(Protocol):
    """One input or output as an ONNX Runtime session describes it."""

    @property
    def name(self) -> str:
        """The tensor's name."""

    @property
    def type(self) -> str:
        """Element type, as in `tensor(float)`."""

    @property
    def shape(self) -> Sequence[int | str | None]:
        """An axis is a number, or the name of a dynamic axis."""


@dataclass(frozen=True, kw_only=True)
class Architecture:
    """The numbers that decide the shapes of a model's graphs."""

    width: int
    """D: width of embeddings and layers."""
    heads: int
    """H: attention heads of every layer."""
    feed_forward: int
    """F: inner width of the position-wise networks."""
    encoder_layers: int
    """Layers of the encoder."""
    decoder_layers: int
    """Layers of the decoder."""
    source_vocabulary: int
    """Rows of the source embedding."""
    target_vocabulary: int
    """V: log-probabilities of a step, a multiple of 8."""
    target_tokens: int
    """Tokens of the target side's vocabulary; the graph makes what lies from here up to V impossible to choose."""
    max_positions: int
    """Most positions of a source or a target."""

    @property
    def head_width(self) -> int:
        """K: width of one head."""
        return self.width // self.heads

    def problems(self) -> list[str]:
        """What is wrong with these numbers, one sentence each; empty when nothing is."""
        found = [
            f"`architecture.{name}` must be at least 1, but is {value}."
            for name, value in vars(self).items()
            if value < 1
        ]
        if self.heads >= 1 and self.width % self.heads:
            found.append(f"`architecture.width` must be a multiple of `heads` {self.heads}, but is {self.width}.")
        if self.target_vocabulary % VOCABULARY_MULTIPLE:
            found.append(
                f"`architecture.target_vocabulary` must be a multiple of {VOCABULARY_MULTIPLE}, "
                f"but is {self.target_vocabulary}."
            )
        if self.target_tokens > self.target_vocabulary:
            found.append(
                f"`architecture.target_tokens` must be at most `target_vocabulary` {self.target_vocabulary}, "
                f"but is {self.target_tokens}."
            )
        return found


@dataclass(frozen=True, kw_only=True)
class TensorSignature:
    """One input or output of a graph."""

    name: str
    """The tensor's name."""
    dtype: str
    """NumPy's name of the element type: int64, int32, int8 or float32."""
    axes: tuple[int | str, ...]
    """An axis is a number, or the letter of a dynamic one."""

    def problems(self, argument: NodeArgument, where: str) -> list[str]:
        """How `argument`, which has this name, differs from what it must be."""
        found = []
        wanted_type = f"tensor({_ONNX_TYPES.get(self.dtype, self.dtype)})"
        if argument.type != wanted_type:
            found.append(f"`{self.name}` {where} must be {wanted_type}, but is {argument.type}.")
        if tuple(argument.shape) != self.axes:
            found.append(f"`{self.name}` {where} must have axes {list(self.axes)}, but has {list(argument.shape)}.")
        return found


_ONNX_TYPES = {"int64": "int64", "int32": "int32", "int8": "int8", "float32": "float"}

LANE_INPUTS = (
    TensorSignature(name="slot_rows", dtype="int64", axes=("N", "Q", 2)),
    TensorSignature(name="row_slots", dtype="int64", axes=("B", 1, 2)),
    TensorSignature(name="queries_per_lane", dtype="int32", axes=("N",)),
    TensorSignature(name="last_positions", dtype="int32", axes=("N",)),
    TensorSignature(name="num_positions", dtype="int32", axes=(1,)),
    TensorSignature(name="source_bias", dtype="float32", axes=("N", 1, "Q", "P")),
)
"""Which rows read which lane. `service.lane_layout` makes them:

- `slot_rows`: (row, 0) of the row in each slot; slots to spare hold another row of their lane;
- `row_slots`: (lane, slot) of each row;
- `queries_per_lane`: slots in use, the first ones;
- `last_positions`: source_length + queries_per_lane - 1;
- `num_positions`: P, more than every `last_positions` and at most the length of the lanes' slots;
- `source_bias`: 0 at positions of the lane's source, `MASKED_SCORE` at others.
"""


@dataclass(frozen=True, kw_only=True)
class GraphSignature:
    """Inputs and outputs of the graphs, in order. Made by `GraphSignature.of`; a manifest carries a copy."""

    encoder_inputs: tuple[TensorSignature, ...]
    """`source_ids` [B,S] padded with pad, `source_lengths` [B]."""
    encoder_outputs: tuple[TensorSignature, ...]
    """For each decoder layer `cross_key_{i}`, `cross_value_{i}` [B,H,S,K]."""
    decoder_inputs: tuple[TensorSignature, ...]
    """`target_ids` [B,1], `past_lengths` [B,1] (positions already cached), `num_target_positions` [1], which is M, the
    six of `LANE_INPUTS`, then caches by layer."""
    decoder_outputs: tuple[TensorSignature, ...]
    """`log_probabilities` [B,V] (natural logarithms), `attention` [N,H,Q,P] (weights of one layer's cross-attention, by
    query slot), then the caches by layer, in the buffers they came in."""
    candidates_inputs: tuple[TensorSignature, ...]
    """`log_probabilities` [B,V], `num_candidates` [1], which is C."""
    candidates_outputs: tuple[TensorSignature, ...]
    """`candidate_ids`, `candidate_log_probabilities` [B,C], best first, equal ones in the order of their ids."""
    greedy_inputs: tuple[TensorSignature, ...] = ()
    """Those of the decoder; none where the bundle has no graph of several greedy steps."""
    greedy_outputs: tuple[TensorSignature, ...] = ()
    """`greedy_ids` [B,T], `greedy_log_probabilities` [B,T], and for each of the T steps the caches by layer."""

    @classmethod
    def of(cls, architecture: Architecture, cache_dtype: str = "float32", greedy_steps: int = 1) -> GraphSignature:
        """The signature that graphs of this architecture must have.

        Args:
            architecture: the model's numbers.
            cache_dtype: one of `CACHE_DTYPES`.
            greedy_steps: T of the graph of several greedy steps; 1: there is none.
        """
        heads, head_width = architecture.heads, architecture.head_width
        layers = range(architecture.decoder_layers)

        def self_cache(name: str) -> TensorSignature:
            return TensorSignature(name=name, dtype=cache_dtype, axes=("B", heads, "M", head_width))

        def cross_cache(name: str, rows: str = "N") -> TensorSignature:
            return TensorSignature(name=name, dtype=cache_dtype, axes=(rows, heads, "S", head_width))

        log_probabilities = TensorSignature(
            name=LOG_PROBABILITIES, dtype="float32", axes=("B", architecture.target_vocabulary)
        )
        decoder_inputs = [
            TensorSignature(name="target_ids", dtype="int64", axes=("B", 1)),
            TensorSignature(name="past_lengths", dtype="int32", axes=("B", 1)),
            TensorSignature(name="num_target_positions", dtype="int32", axes=(1,)),
            *LANE_INPUTS,
        ]
        decoder_outputs = [
            log_probabilities,
            TensorSignature(name="attention", dtype="float32", axes=("N", heads, "Q", "P")),
        ]
        for i in layers:
            decoder_inputs += [self_cache(past_key_self(i)), self_cache(past_value_self(i))]
            decoder_inputs += [cross_cache(cross_key(i)), cross_cache(cross_value(i))]
            decoder_outputs += [self_cache(present_key_self(i)), self_cache(present_value_self(i))]
            decoder_outputs += [cross_cache(present_cross_key(i)), cross_cache(present_cross_value(i))]
        greedy_outputs: list[TensorSignature] = []
        if greedy_steps > 1:
            greedy_outputs = [
                TensorSignature(name=GREEDY_IDS, dtype="int64", axes=("B", greedy_steps)),
                TensorSignature(name=GREEDY_LOG_PROBABILITIES, dtype="float32", axes=("B", greedy_steps)),
            ]
            for step in range(greedy_steps):
                greedy_outputs += [replace(each, name=at_step(each.name, step)) for each in decoder_outputs[2:]]
        return cls(
            encoder_inputs=(
                TensorSignature(name="source_ids", dtype="int64", axes=("B", "S")),
                TensorSignature(name="source_lengths", dtype="int32", axes=("B",)),
            ),
            encoder_outputs=tuple(cross_cache(name, "B") for i in layers for name in (cross_key(i), cross_value(i))),
            decoder_inputs=tuple(decoder_inputs),
            decoder_outputs=tuple(decoder_outputs),
            candidates_inputs=(
                log_probabilities,
                TensorSignature(name="num_candidates", dtype="int64", axes=(1,)),
            ),
            candidates_outputs=(
                TensorSignature(name="candidate_ids", dtype="int64", axes=("B", "C")),
                TensorSignature(name="candidate_log_probabilities", dtype="float32", axes=("B", "C")),
            ),
            greedy_inputs=tuple(decoder_inputs) if greedy_steps > 1 else (),
            greedy_outputs=tuple(greedy_outputs),
        )

    @property
    def cache_dtype(self) -> str:
        """What the cached keys and values are, one of `CACHE_DTYPES`."""
        return self.encoder_outputs[0].dtype

    def check_encoder(self, inputs: Sequence[NodeArgument], outputs: Sequence[NodeArgument]) -> list[str]:
        """How an encoder session's inputs and outputs differ from this signature, one sentence each."""
        return [
            *_check(self.encoder_inputs, inputs, "among the encoder's inputs"),
            *_check(self.encoder_outputs, outputs, "among the encoder's outputs"),
        ]

    def check_decoder(self, inputs: Sequence[NodeArgument], outputs: Sequence[NodeArgument]) -> list[str]:
        """How a decoder session's inputs and outputs differ from this signature, one sentence each."""
        return [
            *_check(self.decoder_inputs, inputs, "among the decoder's inputs"),
            *_check(self.decoder_outputs, outputs, "among the decoder's outputs"),
        ]

    def check_candidates(self, inputs: Sequence[NodeArgument], outputs: Sequence[NodeArgument]) -> list[str]:
        """How the inputs and outputs of a session of the candidates' graph differ from this signature."""
        return [
            *_check(self.candidates_inputs, inputs, "among the inputs of the candidates' graph"),
            *_check(self.candidates_outputs, outputs, "among the outputs of the candidates' graph"),
        ]

    def check_greedy(self, inputs: Sequence[NodeArgument], outputs: Sequence[NodeArgument]) -> list[str]:
        """How a session of the graph of several greedy steps differs from this signature."""
        return [
            *_check(self.greedy_inputs, inputs, "among the inputs of the greedy graph"),
            *_check(self.greedy_outputs, outputs, "among the outputs of the greedy graph"),
        ]


def _check(wanted: Sequence[TensorSignature], arguments: Sequence[NodeArgument], where: str) -> list[str]:
    found = {argument.name: argument for argument in arguments}
    known = {tensor.name for tensor in wanted}
    problems = [f"`{name}` {where} is not known." for name in found if name not in known]
    for tensor in wanted:
        if tensor.name in found:
            problems += tensor.problems(found[tensor.name], where)
        else:
            problems.append(f"`{tensor.name}` must be {where}, but is missing.")
    return problems


PRESENT = "present_"
"""Begins the name of an updated cache."""


def cache_input(present: str) -> str:
    """The decoder's input that is updated as the output `present`."""
    name = present.removeprefix(PRESENT)
    return name if name.startswith("cross_") else f"past_{name}"


def at_step(name: str, step: int) -> str:
    """The name of what step 0, 1, ... of several makes."""
    return f"{name}_step_{step}"


def past_key_self(layer: int) -> str:
    """Self-attention keys of the target so far, [B,H,M,K]."""
    return f"past_key_self_{layer}"


def past_value_self(layer: int) -> str:
    """Self-attention values of the target so far, [B,H,M,K]."""
    return f"past_value_self_{layer}"


def present_key_self(layer: int) -> str:
    """`past_key_self` with this step's position written, [B,H,M,K]."""
    return f"present_key_self_{layer}"


def present_value_self(layer: int) -> str:
    """`past_value_self` with this step's position written, [B,H,M,K]."""
    return f"present_value_self_{layer}"


def cross_key(layer: int) -> str:
    """Cross-attention keys of a source, [N,H,S,K]."""
    return f"cross_key_{layer}"


def cross_value(layer: int) -> str:
    """Cross-attention values of a source, [N,H,S,K]."""
    return f"cross_value_{layer}"


def present_cross_key(layer: int) -> str:
    """`cross_key` with the step's queries after the source, [N,H,S,K]."""
    return f"present_cross_key_{layer}"


def present_cross_value(layer: int) -> str:
    """`cross_value` with the step's queries after the source, [N,H,S,K]."""
    return f"present_cross_value_{layer}"
