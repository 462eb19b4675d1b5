"""Random models turned into bundles, for comparisons that need no training."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import onnx
import torch

from export.build import Checkpoint, fp32_graphs, int8_graphs, load_checkpoint, write_bundle
from export.config import ExportConfig
from export.validation import Sentence
from service.bundle import Bundle
from service.tokenizer import BOS_ID, EOS_ID
from tests.toy_checkpoint import toy_config, toy_pairs
from training.checkpoint import save_checkpoint
from training.config import ModelConfig, TokenizerConfig
from training.model import Transformer
from training.record import TrainingRecord
from training.train_tokenizer import train_tokenizer


@dataclass(frozen=True, kw_only=True)
class Exported:
    """A random model and its graphs."""

    checkpoint: Checkpoint
    graphs: dict[str, onnx.ModelProto]
    fp32: Bundle
    int8: Bundle


def random_checkpoint(directory: Path, *, is_joint: bool = True, **shape: object) -> Checkpoint:
    """A checkpoint of random weights: biases and norms random too, so that a mix-up of any of them shows."""
    pairs = toy_pairs(300, seed=1)
    tokenizer = train_tokenizer(
        TokenizerConfig(vocab_size=310 if is_joint else 303, character_coverage=1.0, joint=is_joint),
        directory / "tokenizer",
        source_language="en",
        target_language="zh",
        source_sentences=lambda: [source for source, _ in pairs],
        target_sentences=lambda: [target for _, target in pairs],
        num_threads=1,
    )
    values = {
        "width": 64,
        "heads": 2,
        "feed_forward": 96,
        "encoder_layers": 2,
        "decoder_layers": 2,
        "max_positions": 48,
        "source_vocab_size": -(-tokenizer.source_vocab_size // 8) * 8,
        "target_vocab_size": -(-tokenizer.target_vocab_size // 8) * 8,
        **shape,
    }
    config = ModelConfig(**values)  # type: ignore[arg-type]
    with torch.random.fork_rng():
        torch.manual_seed(7)
        model = Transformer(config)
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                if parameter.dim() == 1:
                    parameter.normal_(1.0 if name.endswith("norm.weight") else 0.0, 0.3)
    record = TrainingRecord(
        source_language="en",
        target_language="zh",
        corpora=(),
        update=0,
        epoch=0,
        source_tokens=0,
        target_tokens=0,
        seconds=0.0,
        hardware="any",
        processes=1,
        parameters=0,
        config=toy_config(config),
    )
    save_checkpoint(directory / "checkpoint", model, directory / "tokenizer", record)
    return load_checkpoint(directory / "checkpoint")


def export_random(directory: Path, checkpoint: Checkpoint) -> Exported:
    """Both precisions of a checkpoint, without verification."""
    config = ExportConfig(checkpoint=checkpoint.directory, output=directory / "unused", precision="fp32")
    graphs = fp32_graphs(checkpoint)
    targets = random_sentences(checkpoint, 60, seed=4)  # target ids end where the smaller vocabulary does
    most = checkpoint.architecture.target_tokens
    pairs = [
        (sentence.source_ids, [BOS_ID, *(id_ % most for id_ in target.source_ids)])
        for sentence, target in zip(random_sentences(checkpoint, 60, seed=3), targets, strict=True)
    ]
    for name in ("fp32", "int8"):
        (directory / name).mkdir()
    return Exported(
        checkpoint=checkpoint,
        graphs=graphs,
        fp32=write_bundle(directory / "fp32", config, checkpoint, graphs, precision="fp32"),
        int8=write_bundle(directory / "int8", config, checkpoint, int8_graphs(graphs, pairs), precision="int8"),
    )


def random_sentences(checkpoint: Checkpoint, num_sentences: int, seed: int = 0) -> list[Sentence]:
    """Sources of random tokens, 1 to 30 long."""
    generator = torch.Generator().manual_seed(seed)
    most = checkpoint.architecture.max_positions
    sentences = []
    for line in range(1, num_sentences + 1):
        length = int(torch.randint(0, 30, (), generator=generator))
        ids = torch.randint(EOS_ID + 1, checkpoint.tokenizer.source_vocab_size, (length,), generator=generator)
        sentences.append(
            Sentence(
                line=line, source_ids=(*ids.tolist(), EOS_ID), reference="", max_target_tokens=min(2 * length + 2, most)
            )
        )
    return sentences
