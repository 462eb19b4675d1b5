"""CTranslate2's side of the comparison: runs in a virtual environment of its own, with NumPy and ctranslate2 alone.

    python ctranslate2_side.py DIRECTORY    # started by benchmarks.ctranslate2_beam

DIRECTORY holds `model.json` (shape), `weights.npz` (names as in `training.model`, `positions` and `projection_bias`
beside them) and `request.json` (sources, targets to score, options). `response.json` is written beside them. Tokens are
named by their ids; 0..3 are pad, unk, bos and eos.
"""

import json
import sys
from pathlib import Path
from typing import Any

import ctranslate2
import numpy as np
from ctranslate2.specs import transformer_spec

SPECIAL = ("<pad>", "<unk>", "<s>", "</s>")


def token(token_id: int) -> str:
    """What CTranslate2 knows a token by."""
    return SPECIAL[token_id] if token_id < len(SPECIAL) else str(token_id)


def token_id(name: str) -> int:
    """The inverse of `token`."""
    return SPECIAL.index(name) if name in SPECIAL else int(name)


def convert(shape: dict, weights: dict, directory: Path) -> None:
    """Writes the weights as a CTranslate2 model."""
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
    spec.save(str(directory))


def main() -> None:
    directory = Path(sys.argv[1])
    request = json.loads((directory / "request.json").read_text(encoding="utf-8"))
    converted = directory / "ctranslate2"
    converted.mkdir(exist_ok=True)
    with np.load(directory / "weights.npz") as weights:
        convert(json.loads((directory / "model.json").read_text(encoding="utf-8")), dict(weights), converted)
    translator = ctranslate2.Translator(str(converted), compute_type="float32", intra_threads=request["threads"])
    sources = [[token(i) for i in source] for source in request["sources"]]

    scored = request["scored"]
    scores = translator.score_batch(
        [[token(i) for i in source] for source, _ in scored],
        [[token(i) for i in target] for _, target in scored],
        max_batch_size=16,
    )
    results = translator.translate_batch(sources, max_batch_size=16, return_scores=True, **request["options"])
    response = {
        "version": ctranslate2.__version__,
        "token_log_probabilities": [list(result.log_probs) for result in scores],
        "hypotheses": [[[token_id(name) for name in tokens] for tokens in result.hypotheses] for result in results],
        "scores": [list(result.scores) for result in results],
    }
    (directory / "response.json").write_text(json.dumps(response), encoding="utf-8")


if __name__ == "__main__":
    main()
