"""Writes a CTranslate2 model from the weights of a checkpoint: runs in CTranslate2's own environment.

    python -m benchmarks.peers.ctranslate2_convert WEIGHTS OUTPUT {float32,int8}   # by benchmarks.peers.models

WEIGHTS holds `model.json` (shape) and `weights.npz` (names as in `training.model`, `positions` and `projection_bias`
beside them). The converter's specification of a Transformer is filled layer by layer; `int8` is CTranslate2's own
quantization of it. Tokens are named by their ids; 0..3 are pad, unk, bos and eos.
"""

import argparse
import json
from pathlib import Path
from typing import Any

import numpy as np
from ctranslate2.specs import transformer_spec

SPECIAL = ("<pad>", "<unk>", "<s>", "</s>")


def token(token_id: int) -> str:
    """What CTranslate2 knows a token by."""
    return SPECIAL[token_id] if token_id < len(SPECIAL) else str(token_id)


def token_id(name: str) -> int:
    """The inverse of `token`."""
    return SPECIAL.index(name) if name in SPECIAL else int(name)


def read_weights(directory: Path) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """The shape and the weights, by name."""
    with np.load(directory / "weights.npz") as weights:
        return json.loads((directory / "model.json").read_text(encoding="utf-8")), dict(weights)


def convert(
    shape: dict[str, Any], weights: dict[str, np.ndarray], directory: Path, quantization: str = "float32"
) -> None:
    """Writes the weights as a CTranslate2 model; `quantization` is "float32" or "int8"."""
    spec = transformer_spec.TransformerSpec.from_config(
        (shape["encoder_layers"], shape["decoder_layers"]), shape["heads"], pre_norm=shape["norm"] == "pre"
    )

    def linear(target: Any, *names: str) -> None:
        """One linear layer, or several of one input joined."""
        target.weight = np.concatenate([weights[f"{name}.weight"] for name in names])
        target.bias = np.concatenate([weights[f"{name}.bias"] for name in names])

    def norm(target: Any, name: str) -> None:
        target.gamma, target.beta = weights[f"{name}.weight"], weights[f"{name}.bias"]

    def common(target: Any, name: str) -> None:
        """What encoder and decoder layers share."""
        own = f"{name}.self_attention"
        linear(target.self_attention.linear[0], f"{own}.query", f"{own}.key", f"{own}.value")
        linear(target.self_attention.linear[1], f"{own}.output")
        norm(target.self_attention.layer_norm, f"{own}_norm")
        linear(target.ffn.linear_0, f"{name}.feed_forward.inner")
        linear(target.ffn.linear_1, f"{name}.feed_forward.outer")
        norm(target.ffn.layer_norm, f"{name}.feed_forward_norm")

    for index, layer in enumerate(spec.encoder.layer):
        common(layer, f"encoder.layers.{index}")
    for index, layer in enumerate(spec.decoder.layer):
        common(layer, f"decoder.layers.{index}")
        cross = f"decoder.layers.{index}.cross_attention"
        linear(layer.attention.linear[0], f"{cross}.query")
        linear(layer.attention.linear[1], f"{cross}.key", f"{cross}.value")
        linear(layer.attention.linear[2], f"{cross}.output")
        norm(layer.attention.layer_norm, f"{cross}_norm")
    if shape["norm"] == "pre":
        norm(spec.encoder.layer_norm, "encoder.norm")
        norm(spec.decoder.layer_norm, "decoder.norm")
    spec.encoder.embeddings[0].weight = weights["source_embedding.weight"]
    spec.decoder.embeddings.weight = weights["target_embedding.weight"]
    # CTranslate2's own sinusoids stand in another order, at positions that count from 1.
    spec.encoder.position_encodings.encodings = weights["positions"]
    spec.decoder.position_encodings.encodings = weights["positions"]
    spec.decoder.projection.weight = weights["projection.weight"]
    spec.decoder.projection.bias = weights["projection_bias"]
    spec.register_source_vocabulary([token(i) for i in range(len(weights["source_embedding.weight"]))])
    spec.register_target_vocabulary([token(i) for i in range(len(weights["projection.weight"]))])
    spec.validate()
    spec.optimize(quantization=quantization)
    directory.mkdir(parents=True, exist_ok=True)
    spec.save(str(directory))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("weights", type=Path)
    parser.add_argument("output", type=Path)
    parser.add_argument("quantization", choices=("float32", "int8"))
    arguments = parser.parse_args()
    shape, weights = read_weights(arguments.weights)
    convert(shape, weights, arguments.output, arguments.quantization)


if __name__ == "__main__":
    main()
