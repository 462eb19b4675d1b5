"""A checkpoint's weights in a form that needs no torch, for the converters of the peers."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import numpy as np

from service.tokenizer import BOS_ID, PAD_ID
from training.model import Transformer


def write_weights(model: Transformer, target_tokens: int, directory: Path) -> None:
    """The model as NumPy's files: `model.json`, its shape, and `weights.npz`, its weights by `training.model`'s names.

    Pad, bos and what is no token get a bias, `projection_bias`, that takes their probability to 0, as in the exported
    graph.
    """
    weights = {name: value.detach().numpy() for name, value in model.named_parameters(remove_duplicate=False)}
    bias = np.zeros(model.config.target_vocab_size, np.float32)
    bias[[PAD_ID, BOS_ID]] = -1e9
    bias[target_tokens:] = -1e9
    directory.mkdir(parents=True, exist_ok=True)
    np.savez(directory / "weights.npz", positions=model.positions.numpy(), projection_bias=bias, **weights)
    (directory / "model.json").write_text(json.dumps(dataclasses.asdict(model.config)), encoding="utf-8")
