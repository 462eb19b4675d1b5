"""A checkpoint comes back as it was written, is complete or absent, and is refused when its parts do not fit."""

from __future__ import annotations

import dataclasses
import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import safetensors.torch
import torch
from torch import Tensor

from tests.synthetic.toy_language import make_tokenizer
from training.checkpoint import (
    CheckpointError,
    TrainerState,
    average_checkpoints,
    checkpoint_name,
    clear_unfinished,
    list_checkpoints,
    load_model,
    load_trainer_state,
    prune_checkpoints,
    save_checkpoint,
    weights,
    write_directory,
)
from training.config import Config, CorpusConfig, DataConfig, ModelConfig, TrainConfig
from training.model import Transformer
from training.record import CorpusRecord, TrainingRecord, ValidationScore

SHAPE = ModelConfig(
    width=8,
    heads=2,
    feed_forward=16,
    encoder_layers=1,
    decoder_layers=1,
    source_vocab_size=384,
    target_vocab_size=384,
    max_positions=64,
)


@pytest.fixture(scope="module")
def tokenizer_directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("tokenizer") / "tokenizer"
    make_tokenizer(directory)
    return directory


def make_model(seed: int, config: ModelConfig = SHAPE) -> Transformer:
    torch.manual_seed(seed)
    return Transformer(config)


def make_record(update: int = 3) -> TrainingRecord:
    data = DataConfig(source_language="en", target_language="zh", corpora=(CorpusConfig(name="a", tsv=("a.tsv",)),))
    return TrainingRecord(
        source_language="en",
        target_language="zh",
        corpora=(
            CorpusRecord(name="a", pairs=7, target_tokens=70, weight=1.5, licence="MIT", attributions=("somebody",)),
        ),
        update=update,
        epoch=1,
        source_tokens=100,
        target_tokens=90,
        seconds=1.5,
        hardware="a machine",
        processes=1,
        parameters=1234,
        validation=(ValidationScore(name="dev", update=2, loss=1.25, sentences=5, bleu=30.5, chrf=28.0),),
        config=Config(name="run", data=data, train=TrainConfig(max_updates=5)),
        packages={"torch": "1"},
    )


def same(left: dict[str, Tensor], right: dict[str, Tensor]) -> bool:
    return left.keys() == right.keys() and all(torch.equal(left[name], right[name]) for name in left)


def test_model_tokenizer_and_record_come_back(tmp_path: Path, tokenizer_directory: Path) -> None:
    model, record = make_model(1), make_record()
    save_checkpoint(tmp_path / "c", model, tokenizer_directory, record)
    loaded, tokenizer, loaded_record = load_model(tmp_path / "c")
    assert same(weights(loaded), weights(model))
    assert loaded.config == SHAPE
    assert not loaded.training
    assert loaded.projection.weight is loaded.target_embedding.weight
    assert loaded_record == record
    assert tokenizer.encode_source("The file opens.")
    assert {path.name for path in (tmp_path / "c").iterdir()} == {
        "model.safetensors",
        "model_config.json",
        "tokenizer",
        "training_record.json",
    }


def test_tied_weights_are_written_once_and_in_fp32(tmp_path: Path, tokenizer_directory: Path) -> None:
    model = make_model(1).bfloat16()
    save_checkpoint(tmp_path / "c", model, tokenizer_directory, make_record())
    tensors = safetensors.torch.load_file(tmp_path / "c" / "model.safetensors")
    assert len(tensors) == len(list(model.parameters()))
    assert sum(tensor.shape == (384, 8) for tensor in tensors.values()) == 1
    assert all(tensor.dtype == torch.float32 for tensor in tensors.values())


def test_state_to_resume_from_comes_back(tmp_path: Path, tokenizer_directory: Path) -> None:
    state = TrainerState(update=3, epoch=1, next_batch=4, seconds=0.1 + 0.2, best_score=0.1, best_update=2)
    optimizer_tensors = {"adamw/x/step": torch.tensor(3.0), "adamw/x/exp_avg": torch.randn(3, 2)}
    save_checkpoint(
        tmp_path / "c",
        make_model(1),
        tokenizer_directory,
        make_record(),
        optimizer_tensors=optimizer_tensors,
        state=state,
    )
    saved = load_trainer_state(tmp_path / "c")
    assert saved.state == state
    assert same(saved.optimizer_tensors, optimizer_tensors)
    assert same(saved.weights, weights(make_model(1)))
    assert saved.record == make_record()


def test_a_write_that_fails_leaves_the_old_directory_and_nothing_else(tmp_path: Path) -> None:
    def fill_and_fail(directory: Path) -> None:
        (directory / "new").write_text("half", encoding="utf-8")
        raise OSError("disk full")

    target = tmp_path / "c"
    write_directory(target, lambda directory: (directory / "old").touch())
    with pytest.raises(OSError, match="disk full"):
        write_directory(target, fill_and_fail)
    assert [path.name for path in tmp_path.iterdir()] == ["c"]
    assert [path.name for path in target.iterdir()] == ["old"]


def test_a_directory_of_the_same_name_is_replaced_whole(tmp_path: Path) -> None:
    target = tmp_path / "c"
    for name in ("old", "new"):
        write_directory(target, lambda directory, name=name: (directory / name).touch())
    assert [path.name for path in tmp_path.iterdir()] == ["c"]
    assert [path.name for path in target.iterdir()] == ["new"]


class Killed(BaseException):
    """Stands for a process that ends amid a write: nothing is tidied up after it."""


@pytest.mark.parametrize("num_renames", [0, 1, 2])
def test_what_a_killed_process_left_is_cleared_and_a_lone_old_checkpoint_put_back(
    num_renames: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    target = tmp_path / checkpoint_name(500)
    (tmp_path / ".other.abc").mkdir()
    write_directory(target, lambda directory: (directory / "old").touch())
    rename = Path.rename
    made: list[Path] = []

    def rename_and_die(self: Path, to: Path) -> Path:
        if len(made) == num_renames:
            raise Killed
        made.append(to)
        return rename(self, to)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "rename", rename_and_die)
        patch.setattr(shutil, "rmtree", lambda *_arguments, **_options: None)
        try:
            write_directory(target, lambda directory: (directory / "new").touch())
        except Killed:
            assert num_renames < 2
    assert target.exists() == (num_renames != 1)
    assert len(list(tmp_path.glob(".update_000500.*"))) == (1 if num_renames == 2 else 2)
    clear_unfinished(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == [".other.abc", "update_000500"]
    assert [path.name for path in target.iterdir()] == ["new" if num_renames == 2 else "old"]


def test_clearing_where_no_run_has_written_yet_does_nothing(tmp_path: Path) -> None:
    clear_unfinished(tmp_path / "checkpoints")
    assert not list(tmp_path.iterdir())


def test_average_is_the_mean_and_says_of_what(tmp_path: Path, tokenizer_directory: Path) -> None:
    models = [make_model(seed) for seed in (1, 2, 3)]
    paths = [tmp_path / checkpoint_name(update) for update in (10, 20, 30)]
    for model, path, update in zip(models, paths, (10, 20, 30), strict=True):
        save_checkpoint(path, model, tokenizer_directory, make_record(update))
    average_checkpoints(paths, tmp_path / "averaged")
    averaged, _, record = load_model(tmp_path / "averaged")
    for name, value in weights(averaged).items():
        expected = sum(weights(model)[name].double() for model in models) / 3
        torch.testing.assert_close(value.double(), expected, rtol=1e-6, atol=1e-9)
    assert (record.update, record.averaged_updates) == (30, (10, 20, 30))


def test_average_of_different_shapes_or_of_nothing_is_refused(tmp_path: Path, tokenizer_directory: Path) -> None:
    save_checkpoint(tmp_path / "a", make_model(1), tokenizer_directory, make_record())
    wide = make_model(1, replace(SHAPE, feed_forward=32))
    save_checkpoint(tmp_path / "b", wide, tokenizer_directory, make_record())
    with pytest.raises(CheckpointError, match="must have the shape of"):
        average_checkpoints([tmp_path / "a", tmp_path / "b"], tmp_path / "averaged")
    with pytest.raises(CheckpointError, match="At least one checkpoint"):
        average_checkpoints([], tmp_path / "averaged")
    assert not (tmp_path / "averaged").exists()


def test_checkpoints_are_listed_by_update_and_pruned_but_for_the_best(tmp_path: Path) -> None:
    for update in (5, 20, 100, 1_000_000, 300):
        (tmp_path / checkpoint_name(update)).mkdir()
    assert [path.name for path in list_checkpoints(tmp_path)][-2:] == ["update_000300", "update_1000000"]
    prune_checkpoints(tmp_path, keep_last=0, best_update=5)
    assert len(list_checkpoints(tmp_path)) == 5
    prune_checkpoints(tmp_path, keep_last=2, best_update=20)
    assert [path.name for path in list_checkpoints(tmp_path)] == ["update_000020", "update_000300", "update_1000000"]


def test_weights_that_do_not_fit_are_all_named(tmp_path: Path, tokenizer_directory: Path) -> None:
    save_checkpoint(tmp_path / "c", make_model(1), tokenizer_directory, make_record())
    path = tmp_path / "c" / "model.safetensors"
    tensors = safetensors.torch.load_file(path)
    del tensors["encoder.norm.weight"]
    tensors["decoder.norm.bias"] = torch.zeros(9)
    tensors["stranger"] = torch.zeros(1)
    safetensors.torch.save_file(tensors, path)
    with pytest.raises(CheckpointError) as caught:
        load_model(tmp_path / "c")
    for part in (
        str(path),
        "encoder.norm.weight must be there",
        "decoder.norm.bias must have shape [8], but has [9]",
        "stranger is not known",
    ):
        assert part in str(caught.value)


def test_a_directory_that_is_no_checkpoint_is_refused(tmp_path: Path, tokenizer_directory: Path) -> None:
    with pytest.raises(CheckpointError, match=r"must be a checkpoint with model\.safetensors"):
        load_model(tmp_path)
    save_checkpoint(tmp_path / "c", make_model(1), tokenizer_directory, make_record())
    with pytest.raises(CheckpointError, match=r"must hold optimizer\.safetensors to be resumed from"):
        load_trainer_state(tmp_path / "c")
    (tmp_path / "c" / "model_config.json").write_text("{", encoding="utf-8")
    with pytest.raises(CheckpointError, match=r"model_config\.json must be JSON"):
        load_model(tmp_path / "c")
    (tmp_path / "c" / "model.safetensors").write_bytes(b"damaged")
    (tmp_path / "c" / "model_config.json").write_text(json.dumps(dataclasses.asdict(SHAPE)), encoding="utf-8")
    with pytest.raises(CheckpointError, match="must be a safetensors file"):
        load_model(tmp_path / "c")
