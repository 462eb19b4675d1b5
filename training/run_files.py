"""The files a run leaves behind while it trains: metrics as JSON lines, TensorBoard events, and learning curves."""

import json
import tomllib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from training.config import Config
from training.config_file import config_to_dict
from training.record import ValidationScore


@dataclass(frozen=True, kw_only=True)
class RunPaths:
    """Where things lie in a run directory."""

    directory: Path
    """The run directory."""

    @property
    def config(self) -> Path:
        """The configuration the run was last started with, as TOML."""
        return self.directory / "config.toml"

    @property
    def checkpoints(self) -> Path:
        """Directory of the checkpoints."""
        return self.directory / "checkpoints"

    @property
    def averaged(self) -> Path:
        """The averaged checkpoint."""
        return self.directory / "averaged"

    @property
    def metrics(self) -> Path:
        """One JSON object a line: `kind` is `train` or `validation`."""
        return self.directory / "metrics.jsonl"

    @property
    def tensorboard(self) -> Path:
        """Directory of TensorBoard's event files."""
        return self.directory / "tensorboard"

    @property
    def curves(self) -> Path:
        """Learning curves as a picture."""
        return self.directory / "curves.png"


class MetricsLog:
    """Appends to `metrics.jsonl` and to TensorBoard; a context manager."""

    def __init__(self, paths: RunPaths, update: int = 0) -> None:
        """Opens both; curves that TensorBoard has beyond `update` are dropped, as a resumed run draws them again."""
        from torch.utils.tensorboard import SummaryWriter  # slow to import, and needed by the first process only

        paths.directory.mkdir(parents=True, exist_ok=True)
        self._file = paths.metrics.open("a", encoding="utf-8")
        self._board = SummaryWriter(str(paths.tensorboard), purge_step=update + 1 if update else None)

    def write(self, kind: str, update: int, values: dict[str, float]) -> None:
        """One line of `kind` at `update`; each value is a curve `kind/NAME` in TensorBoard."""
        line = {"kind": kind, "update": update, **{name: _rounded(value) for name, value in values.items()}}
        self._file.write(json.dumps(line) + "\n")
        self._file.flush()
        for name, value in values.items():
            self._board.add_scalar(f"{kind}/{name}", value, update)

    def write_scores(self, update: int, seconds: float, scores: Sequence[ValidationScore]) -> None:
        """One line of kind `validation`: loss, BLEU and chrF as `SET/loss` and so on."""
        values: dict[str, float] = {"seconds": seconds}
        for score in scores:
            values[f"{score.name}/loss"] = score.loss
            if score.sentences:
                values |= {f"{score.name}/bleu": score.bleu, f"{score.name}/chrf": score.chrf}
        self.write("validation", update, values)

    def __enter__(self) -> "MetricsLog":
        return self

    def __exit__(self, *_error: object) -> None:
        self._file.close()
        self._board.close()


def _rounded(value: float) -> float:
    return float(f"{value:.6g}")


def rewind_metrics(paths: RunPaths, update: int) -> None:
    """Drops the lines after `update`: a resumed run writes them again."""
    if not paths.metrics.is_file():
        return
    lines = paths.metrics.read_text(encoding="utf-8").splitlines()
    kept = [line for line in lines if _update_of(line) <= update]
    if len(kept) < len(lines):
        temporary = paths.metrics.with_suffix(".tmp")
        temporary.write_text("".join(f"{line}\n" for line in kept), encoding="utf-8")
        temporary.replace(paths.metrics)


def _update_of(line: str) -> float:
    try:
        return float(json.loads(line)["update"])
    except (json.JSONDecodeError, KeyError):  # a line that a crash cut off
        return float("inf")


def read_metrics(paths: RunPaths) -> list[dict[str, Any]]:
    """The lines of `metrics.jsonl` as dicts, in the order written."""
    return [json.loads(line) for line in paths.metrics.read_text(encoding="utf-8").splitlines()]


def draw_curves(paths: RunPaths) -> None:
    """Draws `curves.png` from `metrics.jsonl`: loss, BLEU, learning rate and speed over the updates."""
    from matplotlib.figure import Figure  # slow to import

    lines = read_metrics(paths)
    train = [line for line in lines if line["kind"] == "train"]
    validation = [line for line in lines if line["kind"] == "validation"]
    figure = Figure(figsize=(12, 8), layout="constrained")
    axes = figure.subplots(2, 2)
    axes[0, 0].plot([line["update"] for line in train], [line["nll"] for line in train], label="train", linewidth=0.8)
    for metric, axis in (("loss", axes[0, 0]), ("bleu", axes[0, 1])):
        names = sorted({key for line in validation for key in line if key.endswith(f"/{metric}")})
        for name in names:
            points = [(line["update"], line[name]) for line in validation if name in line]
            axis.plot([x for x, _ in points], [y for _, y in points], marker=".", label=name.removesuffix(f"/{metric}"))
    axes[1, 0].plot([line["update"] for line in train], [line["learning_rate"] for line in train])
    axes[1, 1].plot([line["update"] for line in train], [line["tokens_per_second"] for line in train], linewidth=0.8)
    titles = ("loss of a target token (nats)", "BLEU of greedy translations", "learning rate", "target tokens a second")
    for axis, title in zip(axes.flat, titles, strict=True):
        axis.set_title(title)
        axis.set_xlabel("updates")
        axis.grid(alpha=0.3)
        if axis.get_legend_handles_labels()[0]:
            axis.legend()
    temporary = paths.curves.with_suffix(".tmp.png")
    figure.savefig(temporary, dpi=110)
    temporary.replace(paths.curves)


def save_config(paths: RunPaths, config: Config) -> None:
    """Writes the configuration as TOML, every field, defaults included."""
    paths.directory.mkdir(parents=True, exist_ok=True)
    text = "\n".join(_toml_table("", config_to_dict(config))) + "\n"
    assert tomllib.loads(text) == config_to_dict(config)
    paths.config.write_text(text, encoding="utf-8")


def _toml_table(name: str, values: dict[str, Any]) -> list[str]:
    """A table as lines: its plain values first, then its tables and lists of tables."""
    lines = []
    nested = {key: value for key, value in values.items() if _is_nested(value)}
    for key, value in values.items():
        if key not in nested:
            lines.append(f"{key} = {_toml_value(value)}")
    for key, value in nested.items():
        full = f"{name}.{key}" if name else key
        for table in value if isinstance(value, list) else [value]:
            lines += ["", f"[[{full}]]" if isinstance(value, list) else f"[{full}]", *_toml_table(full, table)]
    return lines


def _is_nested(value: Any) -> bool:
    return isinstance(value, dict) or (isinstance(value, list) and bool(value) and isinstance(value[0], dict))


def _toml_value(value: Any) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, list):
        return "[" + ", ".join(_toml_value(item) for item in value) + "]"
    if isinstance(value, str):
        return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")  # JSON's escapes are TOML's
    return repr(value)
