"""A bundle whose translations are known beforehand, made without training: it copies the source, or turns it round.

The graphs are real (GroupQueryAttention on a slab, the signature of the newest format version) and so is the
arithmetic: soft attention, layer norms, a feed-forward network and noise from random matrices. Only the weights are
arranged. Each target position asks, by its position vector, for the source position that it copies; the value found
there is that token's embedding. All else (the self-attention over the past, the sentence's mean, the noise) is too
small to change a token and large enough to change a score's bits, so what is mixed up shows.

    python -m tests.synthetic.bundle DIRECTORY [--reverse] [--feed-forward 8192]
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
from onnx import TensorProto, helper, numpy_helper

from export.bundle_writer import new_directory, seal
from export.candidates_graph import candidates_to_onnx
from export.greedy_graph import greedy_to_onnx
from service import graph_signature as names
from service.bundle import CANDIDATES_NAME, DECODER_NAME, ENCODER_NAME, GREEDY_NAME, TOKENIZER_DIRECTORY
from service.graph_signature import VOCABULARY_MULTIPLE, Architecture, GraphSignature, TensorSignature
from service.manifest import FORMAT_VERSION, CreatedBy, Manifest, Recipe
from service.tokenizer import Tokenizer
from training.config import TokenizerConfig
from training.train_tokenizer import train_tokenizer

ONNX_OPSET = 21
ONNX_IR_VERSION = 10
_TYPES = {"int64": TensorProto.INT64, "int32": TensorProto.INT32, "float32": TensorProto.FLOAT}
_SHARPNESS = 200.0  # of attention: high enough that the right position wins, low enough that the others still count
_NOISE = 0.05
_LOGIT_SCALE = 4.0


@dataclass(frozen=True, kw_only=True)
class SyntheticOptions:
    """What to build."""

    name: str = "synthetic"
    """Of the model."""
    source_language: str = "en"
    """What it says it reads."""
    target_language: str = "zh"
    """What it says it writes."""
    reverse: bool = False
    """Turn the source round (its end of sentence stays last) instead of copying it."""
    layers: int = 2
    """Decoder layers."""
    heads: int = 2
    """H: attention heads."""
    head_width: int = 64
    """K: width of a head."""
    greedy_steps: int = 3
    """T: steps of greedy search in one run; 1: the bundle has no graph for it."""
    feed_forward: int = 64
    """F: width of the feed-forward network; thousands make each step slow."""
    max_positions: int = 512
    """Most positions of a source or a target."""
    vocabulary: int = 500
    """Pieces of the tokenizer."""
    seed: int = 0
    """Of all random numbers."""


def expected_tokens(source_ids: Sequence[int], *, reverse: bool = False) -> list[int]:
    """What the bundle makes of a source that ends with the end of sentence."""
    body, end = list(source_ids[:-1]), source_ids[-1]
    return [*(body[::-1] if reverse else body), end]


def sentences(num_sentences: int, *, seed: int = 0) -> list[str]:
    """Generated sentences of syllables, digits and marks, for training the tokenizer and for tests."""
    rng = np.random.default_rng(seed)
    syllables = [a + b for a in "bdfgklmnprstvz" for b in "aeiou"]
    words = ["".join(rng.choice(syllables, size=rng.integers(1, 4))) for _ in range(300)]
    made = []
    for _ in range(num_sentences):
        chosen = [str(word) for word in rng.choice(words, size=rng.integers(2, 14))]
        if rng.random() < 0.3:
            chosen.insert(int(rng.integers(0, len(chosen))), str(rng.integers(0, 1000)))
        made.append(" ".join(chosen).capitalize() + str(rng.choice([".", "?", "!"])))
    return made


def build_synthetic_bundle(directory: Path, options: SyntheticOptions | None = None) -> Path:
    """Writes a bundle and returns its directory, which must not exist yet."""
    options = options or SyntheticOptions()
    with new_directory(directory) as building:
        tokenizer = _train_tokenizer(building / TOKENIZER_DIRECTORY, options)
        num_tokens = tokenizer.target_vocab_size
        vocabulary = -(-num_tokens // VOCABULARY_MULTIPLE) * VOCABULARY_MULTIPLE
        architecture = Architecture(
            width=options.heads * options.head_width,
            heads=options.heads,
            feed_forward=options.feed_forward,
            encoder_layers=1,
            decoder_layers=options.layers,
            source_vocabulary=vocabulary,
            target_vocabulary=vocabulary,
            target_tokens=num_tokens,
            max_positions=options.max_positions,
        )
        encoder, decoder = _Graphs(architecture, options).build()
        (building / ENCODER_NAME).write_bytes(encoder.SerializeToString())
        (building / DECODER_NAME).write_bytes(decoder.SerializeToString())
        if options.greedy_steps > 1:
            greedy = greedy_to_onnx(decoder, options.greedy_steps, options.max_positions)
            (building / GREEDY_NAME).write_bytes(greedy.SerializeToString())
        candidates = candidates_to_onnx(GraphSignature.of(architecture), ONNX_OPSET)
        (building / CANDIDATES_NAME).write_bytes(candidates.SerializeToString())
        seal(building, _manifest(architecture, options))
    return directory


def _train_tokenizer(directory: Path, options: SyntheticOptions) -> Tokenizer:
    text = sentences(400, seed=options.seed)
    return train_tokenizer(
        TokenizerConfig(vocab_size=options.vocabulary, character_coverage=1.0),
        directory,
        source_language=options.source_language,
        target_language=options.target_language,
        source_sentences=lambda: text,
        target_sentences=lambda: text,
        num_threads=1,
    )


def _manifest(architecture: Architecture, options: SyntheticOptions) -> Manifest:
    nothing = "none"
    return Manifest(
        format_version=FORMAT_VERSION,
        name=options.name,
        source_language=options.source_language,
        target_language=options.target_language,
        precision="fp32",
        recipe=Recipe(operator="MatMul", bits=32, activations="float32", embedding="float32", opset=ONNX_OPSET),
        architecture=architecture,
        signature=GraphSignature.of(architecture, greedy_steps=options.greedy_steps),
        greedy_steps=options.greedy_steps,
        alignment_layer=architecture.decoder_layers - 1,
        files={},
        parity=None,
        quality=(),
        same_bytes=None,
        training_record={"synthetic": {"reverse": options.reverse, "seed": options.seed}},
        licence="Apache-2.0",
        attributions=(),
        created_by=CreatedBy(
            python=nothing, torch=nothing, onnx=onnx.__version__, onnxruntime=nothing, processor=nothing
        ),
    )


class _Graphs:
    """Both graphs over one set of embeddings. Axes as in `service.graph_signature`."""

    def __init__(self, architecture: Architecture, options: SyntheticOptions) -> None:
        self._architecture = architecture
        self._options = options
        self._signature = GraphSignature.of(architecture)
        self._rng = np.random.default_rng(options.seed + 1)
        width, heads, head_width = architecture.width, architecture.heads, architecture.head_width
        embeddings = self._rng.standard_normal((architecture.target_vocabulary, width)).astype(np.float32)  # [V,D]
        self._embeddings = embeddings / np.linalg.norm(embeddings, axis=1, keepdims=True)
        positions = self._rng.standard_normal((architecture.max_positions, heads, head_width)).astype(np.float32)
        positions /= np.linalg.norm(positions, axis=2, keepdims=True)
        self._positions = positions.reshape(-1, width)  # [positions,D] each head's part has length 1

    def build(self) -> tuple[onnx.ModelProto, onnx.ModelProto]:
        """Encoder and decoder."""
        return self._encoder(), self._decoder()

    def _encoder(self) -> onnx.ModelProto:
        a, s = self._architecture, self._signature
        g = _GraphBuilder(self._rng)
        embedded = g.op("Gather", [g.const(self._embeddings), "source_ids"])  # [B,S,D]
        length = g.op("Unsqueeze", [g.op("Cast", ["source_lengths"], to=TensorProto.INT64), g.ints(1)])  # [B,1]
        num_positions = g.op("Squeeze", [g.op("Shape", ["source_ids"], start=1, end=2)])
        position = g.op("Range", [g.const(np.int64(0)), num_positions, g.const(np.int64(1))])  # [S]
        is_real = g.op("Cast", [g.op("Less", [position, length])], to=TensorProto.FLOAT)  # [B,S]
        share = g.op("Div", [is_real, g.op("Cast", [length], to=TensorProto.FLOAT)])  # [B,S]
        # A product, as attention is: ReduceSum over S adds up a single row in another order than the rows of a batch.
        mean = g.op("MatMul", [g.op("Unsqueeze", [share, g.ints(1)]), embedded])  # [B,1,D]
        hidden = g.norm(g.op("Add", [embedded, mean]), a.width)  # [B,S,D]
        asked_at = g.op("Add", [position, g.op("Mul", [length, g.const(np.int64(0))])])  # [B,S]
        if self._options.reverse:
            last = g.op("Sub", [length, g.const(np.int64(1))])  # [B,1]
            turned = g.op("Max", [g.op("Sub", [g.op("Sub", [last, position]), g.ints(1)]), g.ints(0)])
            asked_at = g.op("Where", [g.op("Less", [position, last]), turned, asked_at])  # [B,S]
        asked_at = g.op("Gather", [g.const(self._positions), asked_at])  # [B,S,D]
        for i in range(a.decoder_layers):
            key = g.add_noise(g.op("Mul", [asked_at, g.const(np.float32(_SHARPNESS))]), hidden, a.width)
            value = g.add_noise(embedded, hidden, a.width)
            for name, flat in ((names.cross_key(i), key), (names.cross_value(i), value)):
                heads = g.op("Reshape", [flat, g.ints(0, 0, a.heads, a.head_width)])  # [B,S,H,K]
                g.op_named("Transpose", [heads], name, perm=[0, 2, 1, 3])  # [B,H,S,K]
        return g.model("encoder", s.encoder_inputs, s.encoder_outputs)

    def _decoder(self) -> onnx.ModelProto:
        a, s = self._architecture, self._signature
        g = _GraphBuilder(self._rng)
        embeddings = g.const(self._embeddings)
        asked = g.op("Gather", [g.const(self._positions), "past_lengths"])  # [B,1,D]
        asked = g.op("Mul", [asked, g.const(np.float32(np.sqrt(a.head_width)))])  # undoes attention's own scale
        x = g.op("Mul", [g.op("Gather", [embeddings, "target_ids"]), g.const(np.float32(0.1))])  # [B,1,D]
        for i in range(a.decoder_layers):
            y = g.norm(x, a.width)
            qkv = [g.linear(y, a.width, a.width) for _ in range(3)]
            past = g.attention(
                a.heads,
                [*qkv, names.past_key_self(i), names.past_value_self(i), "past_lengths", "num_target_positions"],
                [names.present_key_self(i), names.present_value_self(i)],
            )  # [B,1,D]
            x = g.op("Add", [x, g.op("Mul", [past, g.const(np.float32(_NOISE))])])
            query = g.op("GatherND", [g.add_noise(asked, g.norm(x, a.width), a.width), "slot_rows"])  # [N,Q,D]
            found = g.attention(
                a.heads,
                [
                    *(query, query, query, names.cross_key(i), names.cross_value(i), "last_positions", "num_positions"),
                    *("", "", "", "source_bias", "", "", "", "", "", "queries_per_lane"),
                ],
                [names.present_cross_key(i), names.present_cross_value(i)],
                weights="attention" if i == a.decoder_layers - 1 else None,
            )  # [N,Q,D]
            found = g.op("GatherND", [found, "row_slots"])  # [B,1,D]
            x = g.op("Add", [x, found])
            inner = g.op("Relu", [g.linear(g.norm(x, a.width), a.width, a.feed_forward)])  # [B,1,F]
            x = g.op("Add", [x, g.op("Mul", [g.linear(inner, a.feed_forward, a.width), g.const(np.float32(0.01))])])
        flat = g.op("Reshape", [x, g.ints(-1, a.width)])  # [B,D]
        logits = g.op("MatMul", [flat, g.const(np.ascontiguousarray(self._embeddings.T) * _LOGIT_SCALE)])  # [B,V]
        bias = np.zeros(a.target_vocabulary, np.float32)
        bias[a.target_tokens :] = -1e9
        g.op_named("LogSoftmax", [g.op("Add", [logits, g.const(bias)])], "log_probabilities")
        return g.model("decoder", s.decoder_inputs, s.decoder_outputs)


class _GraphBuilder:
    """Collects nodes and constants of one graph."""

    def __init__(self, rng: np.random.Generator) -> None:
        self._rng = rng
        self._nodes: list[onnx.NodeProto] = []
        self._constants: list[onnx.TensorProto] = []
        self._names: Iterator[str] = (f"t{i}" for i in range(10**6))

    def const(self, value: Any) -> str:
        """The name of a constant."""
        name = next(self._names)
        self._constants.append(numpy_helper.from_array(np.asarray(value), name))
        return name

    def ints(self, *values: int) -> str:
        """The name of a constant of whole numbers, as axes and shapes are."""
        return self.const(np.array(values, np.int64))

    def op(self, operator: str, inputs: list[str], **attributes: Any) -> str:
        """Adds a node and gives its output a name."""
        return self.op_named(operator, inputs, next(self._names), **attributes)

    def op_named(self, operator: str, inputs: list[str], output: str, **attributes: Any) -> str:
        """Adds a node with a named output."""
        self._nodes.append(helper.make_node(operator, inputs, [output], **attributes))
        return output

    def attention(self, heads: int, inputs: list[str], presents: list[str], weights: str | None = None) -> str:
        """Adds attention over a past and returns its output; `weights` names its weights where they are wanted."""
        output = next(self._names)
        self._nodes.append(
            helper.make_node(
                "GroupQueryAttention",
                inputs,
                [output, *presents, *([weights] if weights else [])],
                domain="com.microsoft",
                num_heads=heads,
                kv_num_heads=heads,
                qk_output=2 if weights else 0,
            )
        )
        return output

    def random(self, *shape: int) -> npt.NDArray[np.float32]:
        """Random weights that keep the size of what they multiply."""
        weights = self._rng.standard_normal(shape).astype(np.float32)
        return weights / np.float32(np.sqrt(shape[0]))

    def linear(self, x: str, width_in: int, width_out: int) -> str:
        """A random linear layer."""
        return self.op("MatMul", [x, self.const(self.random(width_in, width_out))])

    def add_noise(self, x: str, hidden: str, width: int) -> str:
        """x and a little of a random linear layer of `hidden`."""
        return self.op(
            "Add", [x, self.op("Mul", [self.linear(hidden, width, width), self.const(np.float32(_NOISE / 4))])]
        )

    def norm(self, x: str, width: int) -> str:
        """A layer norm without learned weights."""
        weight, bias = self.const(np.ones(width, np.float32)), self.const(np.zeros(width, np.float32))
        return self.op("LayerNormalization", [x, weight, bias], axis=-1)

    def model(
        self, name: str, inputs: Sequence[TensorSignature], outputs: Sequence[TensorSignature]
    ) -> onnx.ModelProto:
        """The finished graph with inputs and outputs of the signature."""
        graph = helper.make_graph(
            self._nodes, name, [_value(t) for t in inputs], [_value(t) for t in outputs], self._constants
        )
        opsets = [helper.make_opsetid("", ONNX_OPSET), helper.make_opsetid("com.microsoft", 1)]
        return helper.make_model(graph, opset_imports=opsets, ir_version=ONNX_IR_VERSION)


def _value(tensor: TensorSignature) -> onnx.ValueInfoProto:
    return helper.make_tensor_value_info(tensor.name, _TYPES[tensor.dtype], list(tensor.axes))


def main() -> None:
    """Builds a bundle to play with."""
    parser = argparse.ArgumentParser(description="Writes a bundle that copies its source, or turns it round.")
    parser.add_argument("directory", type=Path, help="created; must not exist")
    parser.add_argument("--reverse", action="store_true", help="turn the source round")
    parser.add_argument("--feed-forward", type=int, default=64, help="thousands make each step slow")
    arguments = parser.parse_args()
    options = SyntheticOptions(reverse=arguments.reverse, feed_forward=arguments.feed_forward)
    print(build_synthetic_bundle(arguments.directory, options))


if __name__ == "__main__":
    main()
