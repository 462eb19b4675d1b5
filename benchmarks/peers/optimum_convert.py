"""Lays the weights of a checkpoint out as a model of Transformers and has Optimum export it to ONNX.

    python -m benchmarks.peers.optimum_convert WEIGHTS OUTPUT    # in Optimum's environment, by benchmarks.peers.models

WEIGHTS is what `benchmarks.peers.weights` wrote. The class is M2M100's: an encoder-decoder Transformer with layer norms
before the sub-layers and after the stacks, embeddings × √D and sinusoidal positions, whose table is replaced by ours,
and with ReLU in place of GELU it is our model. The export is of the object as it stands, table included.
"""

import argparse
import json
from pathlib import Path

import numpy as np
import torch
from optimum.exporters.onnx import onnx_export_from_model
from torch import nn
from transformers import GenerationConfig, M2M100Config, M2M100ForConditionalGeneration

PAD_ID, UNK_ID, BOS_ID, EOS_ID = range(4)
OURS = {
    "self_attention.query": "self_attn.q_proj",
    "self_attention.key": "self_attn.k_proj",
    "self_attention.value": "self_attn.v_proj",
    "self_attention.output": "self_attn.out_proj",
    "self_attention_norm": "self_attn_layer_norm",
    "cross_attention.query": "encoder_attn.q_proj",
    "cross_attention.key": "encoder_attn.k_proj",
    "cross_attention.value": "encoder_attn.v_proj",
    "cross_attention.output": "encoder_attn.out_proj",
    "cross_attention_norm": "encoder_attn_layer_norm",
    "feed_forward.inner": "fc1",
    "feed_forward.outer": "fc2",
    "feed_forward_norm": "final_layer_norm",
}
"""Parts of a layer by `training.model`'s names, and by M2M100's."""


def lay_out(shape: dict, weights: dict[str, np.ndarray]) -> M2M100ForConditionalGeneration:
    """The model.

    Raises:
        ValueError: when the class cannot hold it.
    """
    if shape["norm"] != "pre" or not shape["shared_embeddings"]:
        raise ValueError("M2M100 has its norms before the sub-layers and shares its embeddings; the model must too.")
    config = M2M100Config(
        vocab_size=shape["target_vocab_size"],
        d_model=shape["width"],
        encoder_layers=shape["encoder_layers"],
        decoder_layers=shape["decoder_layers"],
        encoder_attention_heads=shape["heads"],
        decoder_attention_heads=shape["heads"],
        encoder_ffn_dim=shape["feed_forward"],
        decoder_ffn_dim=shape["feed_forward"],
        max_position_embeddings=shape["max_positions"],
        activation_function="relu",
        scale_embedding=True,
        use_cache=True,
        pad_token_id=PAD_ID,
        bos_token_id=BOS_ID,
        eos_token_id=EOS_ID,
        decoder_start_token_id=BOS_ID,
    )
    model = M2M100ForConditionalGeneration(config).eval()
    named = {"model.shared.weight": weights["target_embedding.weight"]}
    for side in ("encoder", "decoder"):
        for part in ("weight", "bias"):
            named[f"model.{side}.layer_norm.{part}"] = weights[f"{side}.norm.{part}"]
            for layer in range(shape[f"{side}_layers"]):
                for ours, theirs in OURS.items():
                    if side == "decoder" or not ours.startswith("cross"):
                        name = f"{side}.layers.{layer}.{ours}.{part}"
                        named[f"model.{side}.layers.{layer}.{theirs}.{part}"] = weights[name]
    missing, unknown = model.load_state_dict({name: torch.tensor(value) for name, value in named.items()}, strict=False)
    tied = {"model.encoder.embed_tokens.weight", "model.decoder.embed_tokens.weight", "lm_head.weight"}
    if set(missing) - tied or unknown:
        raise ValueError(f"Every weight must have its place, but {set(missing) - tied} and {unknown} have none.")
    table = torch.tensor(weights["positions"])  # [P,D]
    for stack in (model.model.encoder, model.model.decoder):
        first = stack.embed_positions.padding_idx + 1
        stack.embed_positions.weights[first : first + len(table)] = table[: len(stack.embed_positions.weights) - first]
    projection = nn.Linear(shape["width"], shape["target_vocab_size"])
    projection.weight = nn.Parameter(torch.tensor(weights["projection.weight"]))
    projection.bias = nn.Parameter(torch.tensor(weights["projection_bias"]))
    model.lm_head = projection
    model.generation_config = GenerationConfig(
        pad_token_id=PAD_ID, bos_token_id=BOS_ID, eos_token_id=EOS_ID, decoder_start_token_id=BOS_ID
    )
    return model


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("weights", type=Path)
    parser.add_argument("output", type=Path)
    arguments = parser.parse_args()
    with np.load(arguments.weights / "weights.npz") as weights:
        model = lay_out(json.loads((arguments.weights / "model.json").read_text(encoding="utf-8")), dict(weights))
    onnx_export_from_model(model, arguments.output, task="text2text-generation-with-past", do_validation=False)


if __name__ == "__main__":
    main()
