"""A checkpoint of a toy model that was really trained, in a few seconds: numbers in words to Chinese digits.

    python -m tests.toy_checkpoint DIRECTORY

writes DIRECTORY/checkpoint, in the format of `training.checkpoint`, and DIRECTORY/dev.tsv, held-out sentences that its
training record names.
"""

from __future__ import annotations

import argparse
import random
from pathlib import Path

import torch
from torch.nn import functional

from service.tokenizer import PAD_ID, Tokenizer
from training.checkpoint import save_checkpoint
from training.config import (
    Config,
    CorpusConfig,
    DataConfig,
    EvaluateConfig,
    FilterConfig,
    ModelConfig,
    TokenizerConfig,
    TrainConfig,
)
from training.data import make_batch
from training.model import Transformer
from training.record import CorpusRecord, TrainingRecord
from training.toy import toy_pair
from training.train_tokenizer import train_tokenizer

NUM_PAIRS = 2000
NUM_DEV = 220
LICENCE = "CC0-1.0"
ATTRIBUTION = "Numbers read out digit by digit, made by the tests"


def toy_pairs(num_pairs: int, seed: int) -> list[tuple[str, str]]:
    """Sources such as "four two seven" with targets such as "四二七"."""
    generator = random.Random(seed)
    return [toy_pair(generator) for _ in range(num_pairs)]


def toy_config(model: ModelConfig) -> Config:
    """What the training record of the toy says."""
    corpus = CorpusConfig(name="numbers", tsv=("train.tsv",), licence=LICENCE, attributions=(ATTRIBUTION,))
    return Config(
        name="toy",
        data=DataConfig(
            source_language="en",
            target_language="zh",
            corpora=(corpus,),
            filters=FilterConfig(max_tokens=40),
            validation=(CorpusConfig(name="dev", tsv=("dev.tsv",)),),
        ),
        tokenizer=TokenizerConfig(vocab_size=310, character_coverage=1.0),
        model=model,
        train=TrainConfig(max_updates=1),
        evaluate=EvaluateConfig(),
    )


def make_toy_checkpoint(directory: Path, *, norm: str = "pre", updates: int = 250, width: int = 32) -> Path:
    """Trains and writes `directory`/checkpoint and `directory`/dev.tsv; returns the checkpoint's directory."""
    model_config = ModelConfig(
        width=width,
        heads=2,
        feed_forward=2 * width,
        encoder_layers=1,
        decoder_layers=1,
        norm=norm,  # type: ignore[arg-type]
        dropout=0.0,
        max_positions=48,
    )
    pairs = toy_pairs(NUM_PAIRS, seed=1)
    config = toy_config(model_config)
    tokenizer = train_tokenizer(
        config.tokenizer,
        directory / "tokenizer",
        source_language="en",
        target_language="zh",
        source_sentences=lambda: [source for source, _ in pairs],
        target_sentences=lambda: [target for _, target in pairs],
        num_threads=1,
    )
    rows = -(-tokenizer.target_vocab_size // 8) * 8
    model = train_toy(tokenizer, pairs, _with_vocabulary(model_config, rows), updates)
    dev = "".join(f"{source}\t{target}\n" for source, target in toy_pairs(NUM_DEV, seed=2))
    (directory / "dev.tsv").write_text(dev, encoding="utf-8")
    checkpoint = directory / "checkpoint"
    save_checkpoint(checkpoint, model, directory / "tokenizer", _record(config, updates, model))
    return checkpoint


def _with_vocabulary(config: ModelConfig, rows: int) -> ModelConfig:
    return ModelConfig(**{**vars(config), "source_vocab_size": rows, "target_vocab_size": rows})


def train_toy(tokenizer: Tokenizer, pairs: list[tuple[str, str]], config: ModelConfig, updates: int) -> Transformer:
    """A model after `updates` of AdamW with a linear warm-up and decay, from a fixed seed."""
    with torch.random.fork_rng():
        torch.manual_seed(1)
        model = Transformer(config)
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.0, betas=(0.9, 0.98))
    generator = random.Random(1)
    sources = [tokenizer.encode_source(source) for source, _ in pairs]
    targets = [tokenizer.encode_target(target) for _, target in pairs]
    for update in range(1, updates + 1):
        for group in optimizer.param_groups:
            group["lr"] = 8e-3 * min(update / 30, (updates - update + 1) / (updates - 30))
        chosen = generator.sample(range(len(pairs)), 96)
        batch = make_batch([sources[i] for i in chosen], [targets[i] for i in chosen])  # type: ignore[misc]
        hidden = model(batch.source_ids, batch.source_lengths, batch.target_input_ids)  # [B,T,D]
        logits = model.project(hidden).flatten(0, 1)  # [B*T,V]
        loss = functional.cross_entropy(logits, batch.target_output_ids.flatten(), ignore_index=PAD_ID)
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
    return model.eval()


def _record(config: Config, updates: int, model: Transformer) -> TrainingRecord:
    corpus = CorpusRecord(
        name="numbers",
        pairs=NUM_PAIRS,
        target_tokens=0,
        weight=1.0,
        licence=LICENCE,
        attributions=(ATTRIBUTION,),
    )
    return TrainingRecord(
        source_language="en",
        target_language="zh",
        corpora=(corpus,),
        update=updates,
        epoch=0,
        source_tokens=0,
        target_tokens=0,
        seconds=0.0,
        hardware="any",
        processes=1,
        parameters=sum(parameter.numel() for parameter in model.parameters()),
        config=config,
    )


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("directory", type=Path)
    print(make_toy_checkpoint(parser.parse_args().directory))
