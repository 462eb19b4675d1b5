"""Whole training runs on a small model: killed and resumed; ended by clock, patience or NaN; and what they leave."""

from __future__ import annotations

import itertools
import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from tests.synthetic.toy_run import CONFIG, new_run, prepare_toy_run, train_config
from training import trainer as trainer_module
from training import validation
from training.checkpoint import CheckpointError, list_checkpoints, load_model, load_trainer_state
from training.config import Config
from training.config_file import load_config
from training.data import PreparedData
from training.distributed import join_processes
from training.model import Transformer
from training.prepare import prepare
from training.record import ValidationScore
from training.run_files import MetricsLog, RunPaths, read_metrics, save_config
from training.trainer import StopReason, Trainer, TrainingDivergedError, train

REPOSITORY = Path(__file__).parents[2]
CLOCKED = ("seconds", "tokens_per_second")

# Dropout, both optimizers, accumulation; of an epoch's 13 batches two make an update, so update 7 spans two epochs.
FULL = train_config(
    optimizer="muon", weight_decay=0.1, accumulation=2, batch_tokens=1800, checkpoint_every_updates=5, cooldown=0.5
)


@pytest.fixture(autouse=True)
def _same_threads() -> Iterator[None]:
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return prepare_toy_run(tmp_path_factory.mktemp("toy"))


@pytest.fixture(scope="module")
def straight(prepared: Path, tmp_path_factory: pytest.TempPathFactory) -> RunPaths:
    """A run of FULL from its first update to its last."""
    run = new_run(prepared, tmp_path_factory.mktemp("straight") / "run")
    assert train(FULL, run, show_progress=False) is StopReason.FINISHED
    return RunPaths(directory=run)


def same_end(left: RunPaths, right: RunPaths) -> None:
    """Both runs ended with the same bits in weights and optimizer, at the same place, after the same losses."""
    ends = [list_checkpoints(paths.checkpoints)[-1] for paths in (left, right)]
    assert ends[0].name == ends[1].name
    for name in ("model.safetensors", "optimizer.safetensors"):
        assert (ends[0] / name).read_bytes() == (ends[1] / name).read_bytes(), name
    states = [replace(load_trainer_state(end).state, seconds=0.0) for end in ends]
    assert states[0] == states[1]
    lines = [[{k: v for k, v in line.items() if k not in CLOCKED} for line in read_metrics(p)] for p in (left, right)]
    assert lines[0] == lines[1]


def kill_at(update: int, number: signal.Signals, patch: pytest.MonkeyPatch) -> None:
    """Sends this process a signal when the line of `update` has been logged."""
    write = MetricsLog.write

    def write_and_kill(self: MetricsLog, kind: str, at: int, values: dict[str, float]) -> None:
        write(self, kind, at, values)
        if at == update:
            signal.raise_signal(number)

    patch.setattr(MetricsLog, "write", write_and_kill)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_stopped_run_saves_and_goes_on_bit_for_bit(
    number: signal.Signals, prepared: Path, straight: RunPaths, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    paths = RunPaths(directory=new_run(prepared, tmp_path / "run"))
    handlers = [signal.getsignal(other) for other in (signal.SIGTERM, signal.SIGINT)]
    with monkeypatch.context() as patch:
        kill_at(7, number, patch)
        assert train(FULL, paths.directory, show_progress=False) is StopReason.INTERRUPTED
    assert [signal.getsignal(other) for other in (signal.SIGTERM, signal.SIGINT)] == handlers
    assert [path.name for path in list_checkpoints(paths.checkpoints)] == ["update_000005", "update_000007"]
    assert train(FULL, paths.directory, show_progress=False) is StopReason.FINISHED
    same_end(paths, straight)


def test_a_killed_process_goes_on_bit_for_bit_from_its_last_checkpoint(
    prepared: Path, straight: RunPaths, tmp_path: Path
) -> None:
    paths = RunPaths(directory=new_run(prepared, tmp_path / "run"))
    save_config(RunPaths(directory=tmp_path), FULL)
    program = """
import os, signal, sys
from training.__main__ import main
from training.run_files import MetricsLog
write = MetricsLog.write
def write_and_die(self, kind, update, values):
    write(self, kind, update, values)
    if update == 8:
        os.kill(os.getpid(), signal.SIGKILL)
MetricsLog.write = write_and_die
main(["train", sys.argv[1], "--run", sys.argv[2]])
"""
    command = [sys.executable, "-c", program, str(tmp_path / "config.toml"), str(paths.directory)]
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY), "OMP_NUM_THREADS": "1"}
    killed = subprocess.run(command, env=environment, capture_output=True, timeout=240, check=False)
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    assert [path.name for path in list_checkpoints(paths.checkpoints)] == ["update_000005"]
    assert read_metrics(paths)[-1]["update"] == 8  # three updates are made again
    assert train(FULL, paths.directory, show_progress=False) is StopReason.FINISHED
    same_end(paths, straight)


def test_a_run_leaves_everything_about_itself(straight: RunPaths, prepared: Path) -> None:
    data = PreparedData.open(prepared)
    config = replace(
        FULL,
        model=replace(FULL.model, source_vocab_size=data.source_vocab_size, target_vocab_size=data.target_vocab_size),
    )
    assert load_config(straight.config) == config
    assert straight.curves.read_bytes().startswith(b"\x89PNG")
    assert list(straight.tensorboard.iterdir())
    _, tokenizer, record = load_model(list_checkpoints(straight.checkpoints)[-1])
    assert tokenizer.digest == data.tokenizer.digest
    assert record.config == config
    assert (record.update, record.source_language, record.target_language) == (12, "en", "zh")
    assert [corpus.name for corpus in record.corpora] == ["numbers"]
    assert [(score.name, score.update) for score in record.validation] == [("dev", 12), ("other", 12)]
    epochs = [list(data.train_batches(epoch, FULL.train.seed, FULL.train.batch_tokens)) for epoch in (0, 1)]
    assert len(epochs[0]) % 2 == 1  # an update spans the two
    seen = [*epochs[0], *epochs[1]][:24]
    assert len(seen) == 24
    assert record.target_tokens == sum(batch.num_target_tokens for batch in seen)
    assert record.source_tokens == sum(int(batch.source_lengths.sum()) for batch in seen)


def test_resuming_a_finished_run_changes_nothing(straight: RunPaths, tmp_path: Path) -> None:
    copy = RunPaths(directory=tmp_path / "run")
    shutil.copytree(straight.directory, copy.directory, symlinks=True)
    assert train(FULL, copy.directory, show_progress=False) is StopReason.FINISHED
    same_end(copy, straight)


def test_another_tokenizer_or_shape_is_refused_before_anything_is_written(
    straight: RunPaths, prepared: Path, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    shutil.copytree(straight.directory, run, symlinks=True)
    before = (run / "config.toml").read_bytes()
    wider = replace(FULL, model=replace(FULL.model, feed_forward=64))
    with pytest.raises(CheckpointError, match=r"feed_forward\.inner\.weight must have shape \[64, 16\]"):
        train(wider, run, show_progress=False)
    (run / "prepared").unlink()
    other = replace(CONFIG, tokenizer=replace(CONFIG.tokenizer, vocab_size=CONFIG.tokenizer.vocab_size + 1))
    prepare(other, run, root=prepared.parent / "data", say=lambda _line: None)
    with pytest.raises(CheckpointError, match="`prepare` was run again"):
        train(FULL, run, show_progress=False)
    assert (run / "config.toml").read_bytes() == before


def test_another_place_in_the_data_is_refused_with_every_difference(straight: RunPaths, tmp_path: Path) -> None:
    run = tmp_path / "run"
    shutil.copytree(straight.directory, run, symlinks=True)
    before = (run / "config.toml").read_bytes()
    other = replace(FULL, train=replace(FULL.train, seed=2, batch_tokens=900, accumulation=3))
    with pytest.raises(CheckpointError) as caught:
        train(other, run, show_progress=False)
    for part in (
        "update_000012 must go on at its place in the data",
        "`train.seed` must be 1, but is 2; `train.batch_tokens` must be 1800, but is 900; "
        "`train.accumulation` must be 2, but is 3.",
    ):
        assert part in str(caught.value)
    assert "processes" not in str(caught.value)
    assert (run / "config.toml").read_bytes() == before
    record = run / "checkpoints" / "update_000012" / "training_record.json"
    values = json.loads(record.read_text(encoding="utf-8"))
    record.write_text(json.dumps({**values, "processes": 2}), encoding="utf-8")
    with pytest.raises(CheckpointError, match=r"but cannot: the number of processes must be 2, but is 1\."):
        train(FULL, run, show_progress=False)


def test_a_run_begins_by_clearing_what_a_killed_one_left(straight: RunPaths, tmp_path: Path) -> None:
    copy = RunPaths(directory=tmp_path / "run")
    shutil.copytree(straight.directory, copy.directory, symlinks=True)
    (copy.checkpoints / ".update_000013.abcd").mkdir()
    aside = copy.checkpoints / ".update_000012.old.abcd"
    aside.mkdir()
    (copy.checkpoints / "update_000012").rename(aside / "update_000012")
    assert train(FULL, copy.directory, show_progress=False) is StopReason.FINISHED
    assert [path.name for path in copy.checkpoints.iterdir() if path.name.startswith(".")] == []
    same_end(copy, straight)
    assert not [line for line in read_metrics(copy) if line["update"] > 12]


def test_a_clocked_run_ends_by_the_clock_and_cools_down(
    prepared: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ticks = itertools.count()
    monkeypatch.setattr(trainer_module.time, "monotonic", lambda: float(next(ticks)))  # a second an update
    config = train_config(
        max_updates=0, max_seconds=8.0, warmup_updates=1, schedule="constant", cooldown=1.0, peak_learning_rate=0.008
    )
    paths = RunPaths(directory=new_run(prepared, tmp_path / "run"))
    assert train(config, paths.directory, show_progress=False) is StopReason.FINISHED
    rates = [line["learning_rate"] for line in read_metrics(paths) if line["kind"] == "train"]
    assert rates == pytest.approx([0.007, 0.006, 0.005, 0.004, 0.003, 0.002, 0.001])
    assert load_trainer_state(list_checkpoints(paths.checkpoints)[-1]).state.seconds == 7.0


def scores_of(values: list[float], patch: pytest.MonkeyPatch) -> None:
    """Validations give these BLEU figures, in turn."""
    figures = iter(values)

    def validate(*arguments: object) -> list[ValidationScore]:
        update = arguments[3]
        assert isinstance(update, int)
        return [ValidationScore(name="dev", update=update, loss=1.0, sentences=1, bleu=next(figures), chrf=0.0)]

    patch.setattr(trainer_module, "validate", validate)


def test_patience_ends_a_run_and_the_best_checkpoint_is_kept(
    prepared: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    scores_of([3.0, 7.0, 5.0, 6.0, 6.5, 9.0], monkeypatch)
    config = train_config(validate_every_updates=2, checkpoint_every_updates=1, keep_last=2, patience=3)
    run = new_run(prepared, tmp_path / "run")
    assert train(config, run, show_progress=False) is StopReason.EARLY
    names = [path.name for path in list_checkpoints(run / "checkpoints")]
    assert names == ["update_000004", "update_000009", "update_000010"]
    saved = load_trainer_state(run / "checkpoints" / names[-1])
    assert (saved.state.best_update, saved.state.best_score, saved.state.validations_without_gain) == (4, 7.0, 3)
    assert [score.bleu for score in saved.record.validation] == [3.0, 7.0, 5.0, 6.0, 6.5]


def test_patience_counts_on_over_a_pause(prepared: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    scores_of([7.0, 6.0, 5.0, 4.0], monkeypatch)
    config = train_config(validate_every_updates=2, patience=2)
    run = new_run(prepared, tmp_path / "run")
    with monkeypatch.context() as patch:
        kill_at(5, signal.SIGTERM, patch)
        assert train(config, run, show_progress=False) is StopReason.INTERRUPTED
    assert train(config, run, show_progress=False) is StopReason.EARLY
    assert load_trainer_state(list_checkpoints(run / "checkpoints")[-1]).state.update == 6


def test_nan_stops_with_the_update_and_what_to_try(
    prepared: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = train_config(checkpoint_every_updates=2)
    run = new_run(prepared, tmp_path / "run")
    trainer = Trainer(config, run, PreparedData.open(run), join_processes())
    step = trainer.updater.optimizer.step

    def spoil(learning_rate: float) -> None:
        step(learning_rate)
        if trainer.state.update == 2:  # the third update's step
            with torch.no_grad():
                trainer.model.decoder.norm.weight.fill_(float("nan"))

    monkeypatch.setattr(type(trainer.updater.optimizer), "step", lambda _self, rate: spoil(rate))
    with pytest.raises(TrainingDivergedError) as caught:
        trainer.run(show_progress=False)
    for part in ("at update 4", "nan", "update_000002 is from before", "peak_learning_rate", "fp32", "clip_norm"):
        assert part in str(caught.value)
    assert [path.name for path in list_checkpoints(run / "checkpoints")] == ["update_000002"]


def test_validation_measures_loss_and_real_translations(prepared: Path, tmp_path: Path) -> None:
    config = train_config(max_updates=2, validate_every_updates=2, validation_sentences=4)
    paths = RunPaths(directory=new_run(prepared, tmp_path / "run"))
    assert train(config, paths.directory, show_progress=False) is StopReason.FINISHED
    line = read_metrics(paths)[-1]
    assert {"dev/loss", "dev/bleu", "dev/chrf", "other/loss", "other/bleu", "other/chrf"} <= line.keys()
    model, _, record = load_model(list_checkpoints(paths.checkpoints)[-1])
    assert [score.sentences for score in record.validation] == [4, 4]
    total = positions = 0.0
    for batch in PreparedData.open(prepared).validation_batches("dev", 512):
        with torch.no_grad():
            logits = model.project(model(batch.source_ids, batch.source_lengths, batch.target_input_ids))
        shares = logits.log_softmax(-1).gather(-1, batch.target_output_ids[..., None]).squeeze(-1)
        total -= shares[batch.target_output_ids != 0].sum().item()
        positions += batch.num_target_tokens
    assert line["dev/loss"] == pytest.approx(total / positions, rel=1e-4)


@pytest.mark.parametrize("tokenized", [False, True])
def test_validation_scores_tokens_as_the_evaluation_does(
    tokenized: bool, prepared: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = PreparedData.open(prepared)
    marked = {pair.source: "@@ ".join(pair.target) for name in ("dev", "other") for pair in data.validation_texts(name)}
    monkeypatch.setattr(validation, "translate", lambda _model, _tokenizer, texts: [marked[text] for text in texts])
    monkeypatch.setattr(validation, "validation_loss", lambda *_arguments: 1.0)
    config = train_config(validation_sentences=20)
    config = replace(config, evaluate=replace(config.evaluate, tokenized=tokenized))
    shape = replace(CONFIG.model, source_vocab_size=data.source_vocab_size, target_vocab_size=data.target_vocab_size)
    scores = validation.validate(Transformer(shape), data, config, 1, torch.device("cpu"))
    assert [score.sentences for score in scores] == [20, 20]
    assert all((score.chrf == 100) == tokenized for score in scores)


def test_an_epoch_without_a_batch_for_each_process_is_refused(prepared: Path, tmp_path: Path) -> None:
    run = new_run(prepared, tmp_path / "run")
    data = PreparedData.open(run)
    trainer = Trainer(CONFIG, run, data, replace(join_processes(), rank=0))
    trainer.processes = replace(trainer.processes, world_size=10_000)
    with pytest.raises(ValueError, match="at least one batch for each of 10000 processes"):
        next(trainer._places())


def test_progress_goes_to_the_terminal(prepared: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = new_run(prepared, tmp_path / "run")
    config: Config = train_config(max_updates=3, validate_every_updates=2)
    assert train(config, run) is StopReason.FINISHED
    captured = capsys.readouterr()
    assert "3/3" in captured.err
    assert "tok/s" in captured.err
    assert "update 2: dev loss" in captured.out
