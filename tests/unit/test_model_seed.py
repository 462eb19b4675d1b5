"""One seed, one model: the initial weights depend on nothing else."""

from __future__ import annotations

import itertools

import pytest
import torch

from training.config import ModelConfig
from training.model import Transformer

SEPARATE = ModelConfig(
    width=4,
    heads=1,
    feed_forward=4,
    encoder_layers=1,
    decoder_layers=1,
    source_vocab_size=8,
    target_vocab_size=8,
    shared_embeddings=False,
)


def test_the_seed_alone_decides_the_initial_weights(monkeypatch: pytest.MonkeyPatch) -> None:
    models = []
    for step in (1, -1):  # objects hash by their place in memory, which differs from run to run: here up, then down
        places: dict[int, int] = {}
        counter = itertools.count(4, step)
        monkeypatch.setattr(
            torch.nn.Embedding, "__hash__", lambda self, p=places, c=counter: p.setdefault(id(self), next(c))
        )
        torch.manual_seed(1)
        models.append(Transformer(SEPARATE))
        monkeypatch.undo()
    first, second = (model.state_dict() for model in models)
    assert all(torch.equal(first[name], second[name]) for name in first)
