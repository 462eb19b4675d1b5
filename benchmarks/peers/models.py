"""A checkpoint in the form each peer reads, made once and kept in build/peers/models."""

from __future__ import annotations

import hashlib
import os
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Literal

from benchmarks.peers import environments

MODELS = environments.PEERS / "models"

Precision = Literal["float32", "int8"]


def ctranslate2_model(checkpoint: Path, precision: Precision, *, directory: Path = MODELS) -> Path:
    """The checkpoint as a CTranslate2 model directory. Tokens are named as in `ctranslate2_convert.token`.

    Args:
        checkpoint: as `training` writes it.
        precision: of the stored weights; open the model with the same as its `compute_type`.
        directory: holds the models, by the digest of their weights.
    """

    def fill(output: Path) -> None:
        weights = weights_of(checkpoint, directory=directory)
        python = environments.ctranslate2()
        environments.run(python, "benchmarks.peers.ctranslate2_convert", str(weights), str(output), precision)

    return kept(directory / digest(checkpoint) / f"ctranslate2-{precision}", fill)


def optimum_model(checkpoint: Path, *, directory: Path = MODELS) -> Path:
    """The checkpoint as Optimum exports it to ONNX, fp32; see `optimum_convert`."""

    def fill(output: Path) -> None:
        weights = weights_of(checkpoint, directory=directory)
        environments.run(environments.optimum(), "benchmarks.peers.optimum_convert", str(weights), str(output))

    return kept(directory / digest(checkpoint) / "optimum", fill)


def weights_of(checkpoint: Path, *, directory: Path = MODELS) -> Path:
    """The directory `benchmarks.peers.weights` writes."""

    def fill(output: Path) -> None:
        from benchmarks.peers.weights import write_weights
        from training.checkpoint import load_model

        model, tokenizer, _ = load_model(checkpoint)
        write_weights(model, tokenizer.target_vocab_size, output)

    return kept(directory / digest(checkpoint) / "weights", fill)


def digest(checkpoint: Path) -> str:
    """What tells one checkpoint's weights from another's."""
    with (checkpoint / "model.safetensors").open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()[:16]


def kept(path: Path, fill: Callable[[Path], None]) -> Path:
    """`path`, which `fill` makes when it is missing: in a directory beside it that is renamed once it is complete."""
    if path.is_dir():
        return path
    path.parent.mkdir(parents=True, exist_ok=True)
    building = Path(tempfile.mkdtemp(prefix=f".{path.name}.", dir=path.parent))
    try:
        fill(building)
        building.chmod(0o755)
        os.rename(building, path)
    finally:
        shutil.rmtree(building, ignore_errors=True)
    return path
