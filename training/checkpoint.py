"""A checkpoint: a directory that is complete or absent, and what training and export read from it.

update_000500/
    model.safetensors        weights in fp32, tied ones once
    model_config.json        ModelConfig
    tokenizer/               as `prepare` made it
    training_record.json     TrainingRecord
    optimizer.safetensors    ┐ for resuming only; an averaged checkpoint has neither
    trainer_state.json       ┘
"""

import dataclasses
import json
import os
import shutil
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from torch import Tensor

from service.tokenizer import Tokenizer
from training.config import ModelConfig
from training.config_file import config_to_dict
from training.model import Transformer
from training.record import TrainingRecord

MODEL_NAME = "model.safetensors"
MODEL_CONFIG_NAME = "model_config.json"
TOKENIZER_NAME = "tokenizer"
RECORD_NAME = "training_record.json"
OPTIMIZER_NAME = "optimizer.safetensors"
STATE_NAME = "trainer_state.json"


class CheckpointError(ValueError):
    """A checkpoint cannot be used; the message says what must hold, what was found, and where."""


@dataclass(frozen=True, kw_only=True)
class TrainerState:
    """Where a run stands, beyond weights and optimizer."""

    update: int = 0
    """Updates made."""
    epoch: int = 0
    """Epoch the next batch belongs to, counted from 0."""
    next_batch: int = 0
    """Batch of that epoch that comes next on each process."""
    source_tokens: int = 0
    """Source tokens seen by all processes."""
    target_tokens: int = 0
    """Target tokens seen by all processes."""
    seconds: float = 0.0
    """Wall-clock seconds of training."""
    best_score: float | None = None
    """Best validation so far, higher is better; None before the first."""
    best_update: int = 0
    """Update of the best validation."""
    validations_without_gain: int = 0
    """Validations since the best."""


def weights(model: Transformer) -> dict[str, Tensor]:
    """The weights by name, in fp32 on the CPU, each tied one once (under its first name)."""
    tensors: dict[str, Tensor] = {}
    seen: set[int] = set()
    for name, parameter in model.named_parameters(remove_duplicate=False):
        if id(parameter) not in seen:
            seen.add(id(parameter))
            tensors[name] = parameter.detach().to("cpu", torch.float32).contiguous()
    return tensors


def load_weights(model: Transformer, tensors: dict[str, Tensor], where: Path) -> None:
    """Puts what `weights` gave into `model`. Raises CheckpointError listing every tensor that does not fit."""
    own = weights(model)
    problems = [f"{name} must be there, but is missing" for name in sorted(own.keys() - tensors.keys())]
    problems += [f"{name} is not known to this model" for name in sorted(tensors.keys() - own.keys())]
    problems += [
        f"{name} must have shape {list(own[name].shape)}, but has {list(tensors[name].shape)}"
        for name in sorted(own.keys() & tensors.keys())
        if own[name].shape != tensors[name].shape
    ]
    if problems:
        raise CheckpointError(f"{where}: " + "; ".join(problems) + ".")
    named = dict(model.named_parameters(remove_duplicate=False))
    with torch.no_grad():
        for name, tensor in tensors.items():
            named[name].copy_(tensor)


def write_directory(directory: Path, fill: Callable[[Path], None]) -> None:
    """Makes `directory` at once: `fill` writes into a temporary one beside it, which is flushed to disk and renamed.

    An older directory of the same name is replaced. After a crash there is either the whole directory or none.
    """
    directory.parent.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(prefix=f".{directory.name}.", dir=directory.parent))
    try:
        fill(temporary)
        temporary.chmod(0o755)
        for path in [*sorted(temporary.rglob("*")), temporary]:
            _flush(path)
        if directory.exists():
            old = Path(tempfile.mkdtemp(prefix=f".{directory.name}.old.", dir=directory.parent))
            directory.rename(old / directory.name)
            temporary.rename(directory)
            shutil.rmtree(old)
        else:
            temporary.rename(directory)
        _flush(directory.parent)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise


def clear_unfinished(directory: Path) -> None:
    """Removes what processes killed amid `write_directory` left of checkpoints in `directory`.

    A checkpoint that was moved aside for a new one that never came is put back first. Nobody else may be writing.
    """
    for aside in sorted(directory.glob(".update_*.old.*")):
        for old in aside.iterdir():
            if not (directory / old.name).exists():
                old.rename(directory / old.name)
    for path in directory.glob(".update_*.*"):
        shutil.rmtree(path)


def _flush(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def save_checkpoint(
    directory: Path,
    model: Transformer,
    tokenizer_directory: Path,
    record: TrainingRecord,
    *,
    optimizer_tensors: dict[str, Tensor] | None = None,
    state: TrainerState | None = None,
) -> None:
    """Writes a checkpoint atomically; with `optimizer_tensors` and `state` it can be resumed from."""

    def fill(temporary: Path) -> None:
        safetensors.torch.save_file(weights(model), temporary / MODEL_NAME)
        _write_json(temporary / MODEL_CONFIG_NAME, config_to_dict(model.config))
        shutil.copytree(tokenizer_directory, temporary / TOKENIZER_NAME)
        _write_json(temporary / RECORD_NAME, record.to_dict())
        if optimizer_tensors is not None and state is not None:
            tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in optimizer_tensors.items()}
            safetensors.torch.save_file(tensors, temporary / OPTIMIZER_NAME)
            _write_json(temporary / STATE_NAME, dataclasses.asdict(state))

    write_directory(directory, fill)


def load_model(directory: Path | str) -> tuple[Transformer, Tokenizer, TrainingRecord]:
    """The model (on the CPU, in evaluation mode), its tokenizer and its record.

    Raises:
        CheckpointError: if the directory is no checkpoint or its parts do not fit together.
    """
    directory = Path(directory)
    for name in (MODEL_NAME, MODEL_CONFIG_NAME, TOKENIZER_NAME, RECORD_NAME):
        if not (directory / name).exists():
            raise CheckpointError(f"{directory} must be a checkpoint with {name}, but there is none.")
    model = Transformer(ModelConfig(**_read_json(directory / MODEL_CONFIG_NAME)))
    load_weights(model, _load_tensors(directory / MODEL_NAME), directory / MODEL_NAME)
    record = TrainingRecord.from_dict(_read_json(directory / RECORD_NAME))
    return model.eval(), Tokenizer.load(directory / TOKENIZER_NAME), record


@dataclass(frozen=True, kw_only=True)
class SavedRun:
    """What a run is resumed from."""

    weights: dict[str, Tensor]
    """Weights by name."""
    optimizer_tensors: dict[str, Tensor]
    """What `Optimizer.load_state_tensors` takes."""
    state: TrainerState
    """Where the run stood."""
    record: TrainingRecord
    """Its record."""
    tokenizer_digest: str
    """Digest of the tokenizer it was trained with."""


def load_trainer_state(directory: Path) -> SavedRun:
    """What is needed to go on from a checkpoint. Raises CheckpointError when it is not all there."""
    for name in (MODEL_NAME, OPTIMIZER_NAME, STATE_NAME, RECORD_NAME):
        if not (directory / name).exists():
            raise CheckpointError(f"{directory} must hold {name} to be resumed from, but does not.")
    return SavedRun(
        weights=_load_tensors(directory / MODEL_NAME),
        optimizer_tensors=_load_tensors(directory / OPTIMIZER_NAME),
        state=TrainerState(**_read_json(directory / STATE_NAME)),
        record=TrainingRecord.from_dict(_read_json(directory / RECORD_NAME)),
        tokenizer_digest=Tokenizer.load(directory / TOKENIZER_NAME).digest,
    )


def checkpoint_name(update: int) -> str:
    """Name of the directory of an update's checkpoint."""
    return f"update_{update:06d}"


def list_checkpoints(directory: Path) -> list[Path]:
    """The checkpoints in `directory`, oldest update first."""
    found = [path for path in directory.glob("update_*") if path.is_dir()]
    return sorted(found, key=lambda path: int(path.name.removeprefix("update_")))


def prune_checkpoints(directory: Path, keep_last: int, best_update: int) -> None:
    """Deletes all but the newest `keep_last` checkpoints and the best; `keep_last` 0 deletes none."""
    checkpoints = list_checkpoints(directory)
    for path in checkpoints[:-keep_last] if keep_last else []:
        if path.name != checkpoint_name(best_update):
            shutil.rmtree(path)


def average_checkpoints(checkpoints: Sequence[Path], output: Path) -> None:
    """Writes the mean of the weights of `checkpoints` as a checkpoint of its own (section 6.1 of the paper).

    Raises CheckpointError when there is none or their weights do not fit together.
    """
    if not checkpoints:
        raise CheckpointError("At least one checkpoint must be given to average, but there is none.")
    model, _, record = load_model(checkpoints[-1])
    total = {name: torch.zeros_like(value, dtype=torch.float64) for name, value in weights(model).items()}
    updates = []
    for path in checkpoints:
        member, _, member_record = load_model(path)
        if member.config != model.config:
            raise CheckpointError(
                f"{path} must have the shape of {checkpoints[-1]}, but their {MODEL_CONFIG_NAME} differ."
            )
        for name, value in weights(member).items():
            total[name] += value
        updates.append(member_record.update)
    load_weights(model, {name: (value / len(checkpoints)).float() for name, value in total.items()}, output)
    averaged = dataclasses.replace(record, averaged_updates=tuple(updates))
    save_checkpoint(output, model, checkpoints[-1] / TOKENIZER_NAME, averaged)


def _load_tensors(path: Path) -> dict[str, Tensor]:
    try:
        return safetensors.torch.load_file(path)
    except safetensors.SafetensorError as error:
        raise CheckpointError(f"{path} must be a safetensors file, but cannot be read: {error}") from error


def _read_json(path: Path) -> dict[str, Any]:
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except json.JSONDecodeError as error:
        raise CheckpointError(f"{path} must be JSON, but is not: {error}") from error
    if not isinstance(values, dict):
        raise CheckpointError(f"{path} must hold a JSON object, but holds {type(values).__name__}.")
    return values


def _write_json(path: Path, values: dict[str, Any]) -> None:
    path.write_text(json.dumps(values, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
