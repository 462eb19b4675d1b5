"""A configuration is read whole, checked whole, and written back so that it reads the same."""

from __future__ import annotations

import dataclasses
import typing
from pathlib import Path
from typing import Any

import pytest

import training
from training import config as config_module
from training.config import Config, ConfigError, TrainConfig
from training.config_file import config_from_dict, config_to_dict, load_config

SHIPPED = sorted((Path(training.__file__).parent / "configs").glob("*.toml"))


def minimal() -> dict[str, Any]:
    return {
        "name": "run",
        "data": {"source_language": "en", "target_language": "zh", "corpora": [{"name": "a", "tsv": ["a.tsv"]}]},
        "train": {"max_updates": 10},
    }


def problems_of(values: dict[str, Any]) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        config_from_dict(values)
    for problem in caught.value.problems:
        assert problem in str(caught.value)
    return caught.value.problems


@pytest.mark.parametrize("path", SHIPPED, ids=[path.name for path in SHIPPED])
def test_shipped_configurations_are_valid_and_survive_a_round_trip(path: Path) -> None:
    config = load_config(path)
    assert config_from_dict(config_to_dict(config)) == config


def test_minimal_configuration_takes_the_defaults() -> None:
    config = config_from_dict(minimal())
    assert config.train == TrainConfig(max_updates=10)
    assert config.data.corpora[0].tsv == ("a.tsv",)


def test_whole_numbers_serve_where_fractions_are_meant() -> None:
    values = minimal()
    values["train"]["label_smoothing"] = 0
    smoothing = config_from_dict(values).train.label_smoothing
    assert smoothing == 0.0
    assert isinstance(smoothing, float)


def test_problems_of_form_are_reported_together() -> None:
    values = minimal()
    values["train"] |= {"optimiser": "adamw", "seed": "one", "precision": "fp8", "compile": 1}
    values["data"]["corpora"].append({"tsv": ["b.tsv"]})
    del values["data"]["target_language"]
    values["model"] = 3
    problems = problems_of(values)
    assert len(problems) == 7
    for part in (
        "`train.optimiser` is not known",
        "`train.seed` must be of type int, but is 'one'",
        "`train.precision` must be one of 'bf16', 'fp32', but is 'fp8'",
        "`train.compile` must be of type bool, but is 1",
        "`data.corpora[1].name` must be given",
        "`data.target_language` must be given",
        "`model` must be a table, but is 3",
    ):
        assert any(part in problem for problem in problems), part


def test_problems_of_value_are_reported_together() -> None:
    values = minimal()
    values["name"] = "../run"
    values["model"] = {"width": 10, "heads": 3}
    values["tokenizer"] = {"joint": False}
    values["train"] = {"clip_norm": -1, "cooldown": 1.5, "batch_tokens": 0, "peak_learning_rate": 0}
    values["data"]["filters"] = {"max_tokens": 5000}
    values["data"]["corpora"] = [
        {"name": "a", "tsv": ["a.tsv"], "weight": 0},
        {"name": "a", "source": ["a.en"], "target": ["a.zh", "b.zh"]},
        {"name": "b", "tsv": ["a.tsv"], "filter_column": 2},
        {"name": "c"},
    ]
    problems = problems_of(values)
    for part in (
        "`name` must be usable",
        "multiple of `model.heads`, but is 10 with 3",
        "`model.shared_embeddings` must be false",
        "`train.max_updates` or `train.max_seconds`",
        "`train.clip_norm` must be at least 0.0, but is -1",
        "`train.cooldown` must be between 0.0 and 1.0, but is 1.5",
        "`train.batch_tokens` must be at least 1, but is 0",
        "`train.peak_learning_rate` must be more than 0",
        "`data.filters.max_tokens` must be between 1 and 1023, but is 5000",
        "`data.corpora[0].weight` must be more than 0",
        "`data.corpora[1].source` must list as many files",
        "`data.corpora[2].filter_values` must not be empty",
        "`data.corpora[3]` must have either `tsv` or",
        "`data.corpora` must have distinct names",
    ):
        assert any(part in problem for problem in problems), part


def test_broken_toml_is_named_with_its_file(tmp_path: Path) -> None:
    path = tmp_path / "broken.toml"
    path.write_text("name = ", encoding="utf-8")
    with pytest.raises(ConfigError, match=r"broken\.toml.*\n.*not valid TOML"):
        load_config(path)


def test_every_field_says_what_it_means() -> None:
    source = Path(config_module.__file__).read_text(encoding="utf-8").splitlines()
    waiting, seen = [Config], set()
    while waiting:
        cls = waiting.pop()
        if cls in seen:
            continue
        seen.add(cls)
        hints = typing.get_type_hints(cls)
        start = source.index(f"class {cls.__name__}:")
        for field in dataclasses.fields(cls):
            line = next(i for i in range(start, len(source)) if source[i].startswith(f"    {field.name}: "))
            assert source[line + 1].startswith('    """'), f"{cls.__name__}.{field.name}"
            inner = [hints[field.name], *typing.get_args(hints[field.name])]
            waiting += [part for part in inner if dataclasses.is_dataclass(part) and isinstance(part, type)]
    assert len(seen) == 8
