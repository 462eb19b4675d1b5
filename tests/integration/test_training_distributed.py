"""Two processes under torchrun make the updates that one process makes from the same batches."""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from tests.synthetic.toy_run import new_run, prepare_toy_run, train_config
from training.checkpoint import list_checkpoints, load_trainer_state
from training.run_files import RunPaths, read_metrics, save_config
from training.trainer import StopReason, train

UPDATES = 6  # validated every third, so the last was validated before the run ends
REPOSITORY = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return prepare_toy_run(tmp_path_factory.mktemp("toy"))


def torchrun(run: Path, config_path: Path, num_processes: int) -> None:
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(num_processes)]
    command += ["-m", "--", "training", "train", str(config_path), "--run", str(run)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    done = subprocess.run(
        command, cwd=REPOSITORY, env=environment, capture_output=True, text=True, timeout=240, check=False
    )
    assert done.returncode == 0, done.stderr


def test_two_processes_equal_one_that_accumulates_their_batches(prepared: Path, tmp_path: Path) -> None:
    # Two processes take two batches of an epoch at a time, as does one that accumulates two. No dropout: its draws
    # differ from process to process.
    shared = train_config(max_updates=UPDATES, checkpoint_every_updates=2, validate_every_updates=3)
    config = replace(shared, model=replace(shared.model, dropout=0.0))
    alone_config = replace(config, train=replace(config.train, accumulation=2))
    alone, together = new_run(prepared, tmp_path / "alone"), new_run(prepared, tmp_path / "together")
    assert train(alone_config, alone, show_progress=False) is StopReason.FINISHED
    settings = RunPaths(directory=tmp_path / "settings")
    save_config(settings, config)
    torchrun(together, settings.config, num_processes=2)

    paths = [RunPaths(directory=run) for run in (alone, together)]
    one, two = (load_trainer_state(list_checkpoints(path.checkpoints)[-1]) for path in paths)
    for name, value in one.weights.items():
        torch.testing.assert_close(two.weights[name], value, rtol=1e-3, atol=2e-5)
    assert (one.state.update, one.state.next_batch, one.state.target_tokens) == (
        UPDATES,
        2 * two.state.next_batch,
        two.state.target_tokens,
    )
    assert (one.record.processes, two.record.processes) == (1, 2)
    one_lines, two_lines = (read_metrics(path) for path in paths)
    kinds = [[(line["kind"], line["update"]) for line in lines] for lines in (one_lines, two_lines)]
    assert kinds[0] == kinds[1]
    for one_line, two_line in zip(one_lines, two_lines, strict=True):
        for name in ("loss", "nll", "gradient_norm", "learning_rate", "dev/loss"):
            if name in one_line:
                assert two_line[name] == pytest.approx(one_line[name], rel=1e-3), name
