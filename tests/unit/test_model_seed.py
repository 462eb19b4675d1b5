"""One seed, one model: the initial weights depend on nothing else."""

from __future__ import annotations

import torch

from training.config import ModelConfig
from training.model import Transformer


def test_the_seed_alone_decides_the_initial_weights() -> None:
    config = ModelConfig(
        width=4,
        heads=1,
        feed_forward=4,
        encoder_layers=1,
        decoder_layers=1,
        source_vocab_size=8,
        target_vocab_size=8,
        shared_embeddings=False,
    )
    models = []  # all are kept, so that each lies elsewhere in memory
    for _ in range(20):
        torch.manual_seed(1)
        models.append(Transformer(config))
    first = models[0].state_dict()
    for model in models[1:]:
        assert all(torch.equal(first[name], value) for name, value in model.state_dict().items())
