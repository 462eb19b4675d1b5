"""What a run leaves beside its checkpoints: configuration, metrics, TensorBoard, curves."""

from __future__ import annotations

import tomllib
from pathlib import Path

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

import training
from training.config_file import config_from_dict, load_config
from training.record import ValidationScore
from training.run_files import MetricsLog, RunPaths, draw_curves, read_metrics, rewind_metrics, save_config

SHIPPED = sorted((Path(training.__file__).parent / "configs").glob("*.toml"))


@pytest.fixture
def paths(tmp_path: Path) -> RunPaths:
    return RunPaths(directory=tmp_path / "run")


def train_line(update: int) -> dict[str, float]:
    return {"nll": 9.0 / update, "learning_rate": 1e-3, "tokens_per_second": 100.0 + update}


@pytest.mark.parametrize("path", SHIPPED, ids=[path.name for path in SHIPPED])
def test_saved_configuration_reads_back_the_same(path: Path, paths: RunPaths) -> None:
    config = load_config(path)
    save_config(paths, config)
    assert load_config(paths.config) == config


def test_awkward_texts_survive_the_configuration_file(paths: RunPaths) -> None:
    awkward = 'quote " backslash \\ tab \t newline \n delete \x7f 引号 “” emoji 🙂'
    corpus = {"name": "a", "tsv": ["a.tsv"], "licence": awkward, "attributions": [awkward, ""]}
    data = {"source_language": "en", "target_language": "zh", "corpora": [corpus], "validation": [corpus]}
    config = config_from_dict({"name": "run", "data": data, "train": {"max_updates": 1, "peak_learning_rate": 1e-7}})
    save_config(paths, config)
    assert config_from_dict(tomllib.loads(paths.config.read_text(encoding="utf-8"))) == config


def test_metrics_are_lines_and_tensorboard_curves(paths: RunPaths) -> None:
    with MetricsLog(paths) as log:
        for update in (10, 20):
            log.write("train", update, train_line(update))
        log.write_scores(
            20,
            5.0,
            [
                ValidationScore(name="dev", update=20, loss=2.0, sentences=3, bleu=12.0, chrf=11.0),
                ValidationScore(name="other", update=20, loss=3.0, sentences=0, bleu=0.0, chrf=0.0),
            ],
        )
    lines = read_metrics(paths)
    assert [(line["kind"], line["update"]) for line in lines] == [("train", 10), ("train", 20), ("validation", 20)]
    assert lines[2]["dev/bleu"] == 12.0
    assert "other/bleu" not in lines[2]  # nothing was translated
    events = EventAccumulator(str(paths.tensorboard)).Reload()
    losses = events.Scalars("train/nll")
    assert [event.step for event in losses] == [10, 20]
    assert [event.value for event in losses] == pytest.approx([0.9, 0.45])
    assert [event.value for event in events.Scalars("validation/dev/bleu")] == [12.0]


def test_rewinding_drops_what_came_after_and_a_line_cut_off(paths: RunPaths) -> None:
    with MetricsLog(paths) as log:
        for update in (10, 20, 30):
            log.write("train", update, train_line(update))
    with paths.metrics.open("a", encoding="utf-8") as file:
        file.write('{"kind": "train", "upd')
    rewind_metrics(paths, 20)
    assert [line["update"] for line in read_metrics(paths)] == [10, 20]


def test_curves_are_a_picture_with_each_held_out_set(paths: RunPaths) -> None:
    with MetricsLog(paths) as log:
        for update in (10, 20):
            log.write("train", update, train_line(update))
    draw_curves(paths)  # before the first validation
    before = paths.curves.read_bytes()
    with MetricsLog(paths) as log:
        for update in (10, 20):
            score = ValidationScore(name="dev", update=update, loss=2.0, sentences=3, bleu=12.0, chrf=11.0)
            log.write_scores(update, 1.0, [score])
    draw_curves(paths)
    after = paths.curves.read_bytes()
    assert before.startswith(b"\x89PNG\r\n")
    assert after.startswith(b"\x89PNG\r\n")
    assert before != after
