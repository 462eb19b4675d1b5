"""Reading a configuration: one TOML file, checked once, every problem reported together."""

import dataclasses
import math
import tomllib
import typing
from pathlib import Path
from typing import Any, Literal

from training.config import (
    Config,
    ConfigError,
    CorpusConfig,
    TrainConfig,
    at_least,
    between,
    check_model,
)


def load_config(path: Path) -> Config:
    """Reads and checks a TOML file. Raises ConfigError with every problem, FileNotFoundError when there is no file."""
    try:
        values = tomllib.loads(path.read_text(encoding="utf-8"))
    except tomllib.TOMLDecodeError as error:
        raise ConfigError(str(path), [f"not valid TOML: {error}"]) from error
    return config_from_dict(values, where=str(path))


def config_from_dict(values: dict[str, Any], where: str = "configuration") -> Config:
    """Builds and checks a Config from parsed TOML or JSON. Raises ConfigError with every problem."""
    problems: list[str] = []
    config = _build(Config, values, "", problems)
    if not problems:
        problems = check_config(config)
    if problems:
        raise ConfigError(where, problems)
    return typing.cast(Config, config)


def config_to_dict(config: Any) -> dict[str, Any]:
    """The configuration as plain dicts and lists, fit for JSON; `config_from_dict` reads it back."""
    return {entry.name: _plain(getattr(config, entry.name)) for entry in dataclasses.fields(config)}


def _plain(value: Any) -> Any:
    if dataclasses.is_dataclass(value):
        return config_to_dict(value)
    return [_plain(item) for item in value] if isinstance(value, tuple) else value


def _build(cls: Any, values: Any, where: str, problems: list[str]) -> Any:
    """An instance of dataclass `cls` from a table of TOML, or None with the reasons appended to `problems`."""
    if not isinstance(values, dict):
        problems.append(f"`{where.rstrip('.')}` must be a table, but is {values!r}.")
        return None
    hints = typing.get_type_hints(cls)
    fields = {entry.name: entry for entry in dataclasses.fields(cls)}
    before = len(problems)
    for name in values.keys() - fields.keys():
        problems.append(f"`{where}{name}` is not known; known here: {', '.join(fields)}.")
    built: dict[str, Any] = {}
    for name, entry in fields.items():
        if name in values:
            built[name] = _convert(hints[name], values[name], f"{where}{name}", problems)
        elif entry.default is dataclasses.MISSING and entry.default_factory is dataclasses.MISSING:
            problems.append(f"`{where}{name}` must be given, but is missing.")
    return cls(**built) if len(problems) == before else None


def _convert(hint: Any, value: Any, where: str, problems: list[str]) -> Any:
    """`value` as the type `hint` asks for; a problem is appended where it is not."""
    origin = typing.get_origin(hint)
    if dataclasses.is_dataclass(hint):
        return _build(hint, value, f"{where}.", problems)
    if origin is tuple:
        if not isinstance(value, list | tuple):
            problems.append(f"`{where}` must be a list, but is {value!r}.")
            return ()
        inner = typing.get_args(hint)[0]
        return tuple(_convert(inner, item, f"{where}[{index}]", problems) for index, item in enumerate(value))
    if origin is Literal:
        allowed = typing.get_args(hint)
        if value not in allowed:
            problems.append(f"`{where}` must be one of {', '.join(map(repr, allowed))}, but is {value!r}.")
        return value
    if hint is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if type(value) is not hint:
        problems.append(f"`{where}` must be of type {hint.__name__}, but is {value!r}.")
    return value


def check_config(config: Config) -> list[str]:
    """Everything wrong with a run's configuration, one sentence each; empty when nothing is."""
    problems = check_model(config.model)
    _check_train(config.train, problems)
    tokenizer, filters, evaluate = config.tokenizer, config.data.filters, config.evaluate
    if not config.name or config.name != Path(config.name).name:
        problems.append(f"`name` must be usable as a directory's name, but is {config.name!r}.")
    if config.model.shared_embeddings and not tokenizer.joint:
        problems.append("`model.shared_embeddings` must be false when `tokenizer.joint` is false.")
    at_least(problems, "tokenizer.vocab_size", tokenizer.vocab_size, 16)
    at_least(problems, "tokenizer.num_placeholders", tokenizer.num_placeholders, 0)
    at_least(problems, "tokenizer.num_tags", tokenizer.num_tags, 0)
    between(problems, "tokenizer.character_coverage", tokenizer.character_coverage, 0.9, 1.0)
    at_least(problems, "data.filters.min_characters", filters.min_characters, 1)
    at_least(problems, "data.filters.max_characters", filters.max_characters, filters.min_characters)
    between(problems, "data.filters.max_tokens", filters.max_tokens, 1, config.model.max_positions - 1)
    between(problems, "data.filters.min_script_share", filters.min_script_share, 0.0, 1.0)
    at_least(problems, "data.sort_chunk_pairs", config.data.sort_chunk_pairs, 1)
    at_least(problems, "data.length_multiple", config.data.length_multiple, 1)
    if not config.data.corpora:
        problems.append("`data.corpora` must name at least one corpus, but is empty.")
    groups = (("data.corpora", config.data.corpora), ("data.validation", config.data.validation))
    for group, corpora in (*groups, ("evaluate.test", evaluate.test)):
        for index, corpus in enumerate(corpora):
            _check_corpus(corpus, f"{group}[{index}]", problems)
        names = [corpus.name for corpus in corpora]
        if len(set(names)) != len(names):
            problems.append(f"`{group}` must have distinct names, but has {', '.join(names)}.")
    between(problems, "evaluate.beam_size", evaluate.beam_size, 1, 64)
    at_least(problems, "evaluate.batch_tokens", evaluate.batch_tokens, 1)
    return problems


def _check_corpus(corpus: CorpusConfig, where: str, problems: list[str]) -> None:
    if bool(corpus.tsv) == bool(corpus.source or corpus.target):
        problems.append(f"`{where}` must have either `tsv` or `source` and `target`.")
    if len(corpus.source) != len(corpus.target):
        problems.append(
            f"`{where}.source` must list as many files as `{where}.target`, "
            f"but lists {len(corpus.source)} beside {len(corpus.target)}."
        )
    at_least(problems, f"{where}.source_column", corpus.source_column, 1)
    at_least(problems, f"{where}.target_column", corpus.target_column, 1)
    at_least(problems, f"{where}.filter_column", corpus.filter_column, 0)
    if corpus.filter_column and not corpus.filter_values:
        problems.append(f"`{where}.filter_values` must not be empty when `{where}.filter_column` is given.")
    if not (math.isfinite(corpus.weight) and corpus.weight > 0):
        problems.append(f"`{where}.weight` must be more than 0, but is {corpus.weight}.")


def _check_train(train: TrainConfig, problems: list[str]) -> None:
    if train.max_updates <= 0 and train.max_seconds <= 0:
        problems.append("`train.max_updates` or `train.max_seconds` must be more than 0, but neither is.")
    for name in (
        "max_updates",
        "warmup_updates",
        "checkpoint_every_updates",
        "validate_every_updates",
        "patience",
        "keep_last",
        "threads",
        "validation_sentences",
    ):
        at_least(problems, f"train.{name}", getattr(train, name), 0)
    for name in ("batch_tokens", "accumulation", "log_every_updates", "average_last"):
        at_least(problems, f"train.{name}", getattr(train, name), 1)
    for name in ("max_seconds", "clip_norm", "weight_decay", "checkpoint_every_seconds", "validate_every_seconds"):
        at_least(problems, f"train.{name}", getattr(train, name), 0.0)
    for name in ("peak_learning_rate", "muon_learning_rate_factor"):
        if not getattr(train, name) > 0:
            problems.append(f"`train.{name}` must be more than 0, but is {getattr(train, name)}.")
    between(problems, "train.cooldown", train.cooldown, 0.0, 1.0)
    for name in ("label_smoothing", "beta1", "beta2", "muon_momentum"):
        between(problems, f"train.{name}", getattr(train, name), 0.0, 0.9999)
