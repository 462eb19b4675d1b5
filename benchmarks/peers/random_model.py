"""A checkpoint and a bundle of the shape of "transformer-base" with random weights, to compare speeds by.

Vaswani et al. 2017, table 3: width 512, feed-forward 2,048, 8 heads, 6 + 6 layers; 32,000 tokens. The words of its
vocabulary mean nothing. No gate on quality can judge it, so its bundle is put together by the functions of `export`
that make graphs and files, without the verification that `python -m export` never leaves out; its manifest says so by
having no figures.
"""

from __future__ import annotations

import hashlib
import random
from pathlib import Path

import torch

from benchmarks.peers import environments
from benchmarks.peers.models import MODELS, digest, kept
from export.build import fp32_graphs, int8_graphs, load_checkpoint, write_bundle
from export.config import ExportConfig
from service.tokenizer import BOS_ID, EOS_ID
from training.checkpoint import save_checkpoint
from training.config import Config, CorpusConfig, DataConfig, ModelConfig, TokenizerConfig, TrainConfig
from training.model import Transformer
from training.record import TrainingRecord, hardware, package_versions
from training.train_tokenizer import reserved_symbols, train_tokenizer

NAME = "transformer-base"
VOCABULARY = 32_000
SEED = 1
NUM_SPECIAL = 4
SOURCE_TOKENS = 25
"""Of each source, end of sentence included."""
TARGET_TOKENS = 40
"""Of each target."""
CALIBRATION_SENTENCES = 64
NO_CORPUS = CorpusConfig(name="none: the weights are random", tsv=("none.tsv",))
"""A configuration must name a corpus."""


def checkpoint(*, directory: Path = MODELS) -> Path:
    """The checkpoint, made when it is missing."""

    def fill(output: Path) -> None:
        tokenizer_config = TokenizerConfig(kind="whitespace", vocab_size=VOCABULARY)
        num_words = VOCABULARY - NUM_SPECIAL - len(reserved_symbols(tokenizer_config))
        words = [f"w{number}" for number in range(num_words)]
        tokenizer = train_tokenizer(
            tokenizer_config,
            output / "made",
            source_language="en",
            target_language="zh",
            source_sentences=lambda: words,
            target_sentences=lambda: (),
            num_threads=1,
        )
        shape = ModelConfig(
            source_vocab_size=tokenizer.source_vocab_size, target_vocab_size=tokenizer.target_vocab_size
        )
        if shape.target_vocab_size != VOCABULARY:
            raise RuntimeError(f"The vocabulary must have {VOCABULARY} tokens, but has {shape.target_vocab_size}.")
        torch.manual_seed(SEED)
        model = Transformer(shape).eval()
        config = Config(
            name=NAME,
            data=DataConfig(source_language="en", target_language="zh", corpora=(NO_CORPUS,)),
            tokenizer=tokenizer_config,
            model=shape,
            train=TrainConfig(max_updates=1),
        )
        record = TrainingRecord(
            source_language="en",
            target_language="zh",
            corpora=(),
            update=0,
            epoch=0,
            source_tokens=0,
            target_tokens=0,
            seconds=0.0,
            hardware=hardware(torch.device("cpu")),
            processes=1,
            parameters=sum(parameter.numel() for parameter in model.parameters()),
            config=config,
            packages=package_versions(),
        )
        save_checkpoint(output / "checkpoint", model, output / "made", record)

    return kept(directory / f"{NAME}-{SEED}", fill) / "checkpoint"


def bundle(source: Path, *, directory: Path = MODELS) -> Path:
    """The int8 bundle of the checkpoint `source`, made anew whenever the code that makes bundles has changed."""

    def fill(output: Path) -> None:
        loaded = load_checkpoint(source)
        config = ExportConfig(checkpoint=source, output=output, precision="int8", name=NAME, licence="Apache-2.0")
        texts = sources(CALIBRATION_SENTENCES, seed=SEED)
        targets = [[BOS_ID, *source[:-1]] for source in sources(CALIBRATION_SENTENCES, seed=SEED + 1)]
        graphs = int8_graphs(fp32_graphs(loaded), list(zip(texts, targets, strict=True)))
        write_bundle(output, config, loaded, graphs, precision="int8")

    return kept(directory / digest(source) / f"bundle-int8-{_digest_of_export()}", fill)


def sources(count: int, *, seed: int) -> list[list[int]]:
    """Random sentences of `SOURCE_TOKENS` tokens, end of sentence included."""
    generator = random.Random(seed)
    first = NUM_SPECIAL + len(reserved_symbols(TokenizerConfig()))
    return [[*(generator.randrange(first, VOCABULARY) for _ in range(SOURCE_TOKENS - 1)), EOS_ID] for _ in range(count)]


def _digest_of_export() -> str:
    """What tells one state of the code that makes bundles from another."""
    found = hashlib.sha256()
    for path in sorted([*environments.ROOT.glob("export/*.py"), environments.ROOT / "service" / "graph_signature.py"]):
        found.update(path.read_bytes())
    return found.hexdigest()[:12]
