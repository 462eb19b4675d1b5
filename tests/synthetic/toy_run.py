"""A prepared toy run and small configurations for it: what the tests of training share."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from training.config import (
    Config,
    CorpusConfig,
    DataConfig,
    FilterConfig,
    ModelConfig,
    TokenizerConfig,
    TrainConfig,
)
from training.prepare import prepare
from training.toy import write_toy_data

CONFIG = Config(
    name="toy",
    data=DataConfig(
        source_language="en",
        target_language="zh",
        corpora=(CorpusConfig(name="numbers", tsv=("train.tsv",)),),
        validation=(CorpusConfig(name="dev", tsv=("dev.tsv",)), CorpusConfig(name="other", tsv=("test.tsv",))),
        filters=FilterConfig(max_tokens=40),
    ),
    tokenizer=TokenizerConfig(vocab_size=330, character_coverage=1.0),
    model=ModelConfig(
        width=16,
        heads=2,
        feed_forward=32,
        encoder_layers=1,
        decoder_layers=1,
        dropout=0.1,
        max_positions=48,
    ),
    train=TrainConfig(
        max_updates=12,
        warmup_updates=4,
        peak_learning_rate=5e-3,
        batch_tokens=2048,
        threads=1,
        log_every_updates=1,
        checkpoint_every_seconds=0,
        validate_every_seconds=0,
        validation_sentences=0,
    ),
)


def train_config(**changes: object) -> Config:
    """The toy's configuration with `changes` in its section `[train]`."""
    return replace(CONFIG, train=replace(CONFIG.train, **changes))  # type: ignore[arg-type]


def prepare_toy_run(directory: Path) -> Path:
    """Writes the toy's data and prepares it in `directory`/run, which is returned."""
    write_toy_data(directory / "data")
    prepare(CONFIG, directory / "run", root=directory / "data", say=lambda _line: None)
    return directory / "run"


def new_run(prepared_run: Path, directory: Path) -> Path:
    """A run directory that shares what `prepare_toy_run` prepared."""
    directory.mkdir(parents=True)
    (directory / "prepared").symlink_to(prepared_run / "prepared")
    return directory
