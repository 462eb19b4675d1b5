"""The training record: what a checkpoint was made from and how, so that a bundle can say it years later."""

import dataclasses
import importlib.metadata
import os
import platform
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from training.config import Config
from training.config_file import config_from_dict, config_to_dict
from training.prepare_report import PrepareReport

RECORDED_PACKAGES = ("torch", "numpy", "sentencepiece", "safetensors", "sacrebleu")


@dataclass(frozen=True, kw_only=True)
class CorpusRecord:
    """One corpus the model was trained on."""

    name: str
    """Name in the configuration."""
    pairs: int
    """Pairs left after the filters."""
    target_tokens: int
    """Target tokens of those pairs, ends of sentence included."""
    weight: float
    """How often each pair was seen in an epoch."""
    licence: str
    """SPDX expression or a sentence."""
    attributions: tuple[str, ...]
    """Attributions that the model must carry."""


@dataclass(frozen=True, kw_only=True)
class ValidationScore:
    """What one held-out set said at one update."""

    name: str
    """Name of the held-out set."""
    update: int
    """Updates made when it was scored."""
    loss: float
    """Mean negative log-likelihood of a target token in nats, without label smoothing."""
    sentences: int
    """Sentences that were translated for BLEU and chrF; 0 when there was no translation."""
    bleu: float
    """sacreBLEU of greedy translations, 0–100; 0 when there was no translation."""
    chrf: float
    """chrF of greedy translations, 0–100; 0 when there was no translation."""

    def to_text(self) -> str:
        """A few words for people."""
        translated = f", BLEU {self.bleu:.1f}, chrF {self.chrf:.1f}" if self.sentences else ""
        return f"{self.name} loss {self.loss:.3f}{translated}"


@dataclass(frozen=True, kw_only=True)
class TrainingRecord:
    """Everything about the run up to one checkpoint."""

    source_language: str
    """BCP 47 code of the source language."""
    target_language: str
    """BCP 47 code of the target language."""
    corpora: tuple[CorpusRecord, ...]
    """What it was trained on."""
    update: int
    """Updates made."""
    epoch: int
    """Epochs finished."""
    source_tokens: int
    """Source tokens seen, ends of sentence included."""
    target_tokens: int
    """Target tokens seen, ends of sentence included."""
    seconds: float
    """Wall-clock seconds of training, validations included, pauses between resumed parts not."""
    hardware: str
    """What it ran on."""
    processes: int
    """Processes that shared the batches."""
    parameters: int
    """Weights, tied ones counted once."""
    averaged_updates: tuple[int, ...] = ()
    """Updates of the checkpoints this one is the mean of; empty when it is none."""
    validation: tuple[ValidationScore, ...] = ()
    """Scores so far."""
    config: Config
    """The whole configuration."""
    packages: dict[str, str] = field(default_factory=dict)
    """Versions of Python and of the packages that matter."""

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        values = {entry.name: getattr(self, entry.name) for entry in dataclasses.fields(self)}
        values["corpora"] = [dataclasses.asdict(corpus) for corpus in self.corpora]
        values["validation"] = [dataclasses.asdict(score) for score in self.validation]
        values["config"] = config_to_dict(self.config)
        return values

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> "TrainingRecord":
        """Reads `to_dict` back; TypeError when a field is missing or unknown."""
        values = dict(values)
        values["corpora"] = tuple(
            CorpusRecord(**{**corpus, "attributions": tuple(corpus["attributions"])}) for corpus in values["corpora"]
        )
        values["validation"] = tuple(ValidationScore(**score) for score in values["validation"])
        values["averaged_updates"] = tuple(values["averaged_updates"])
        values["config"] = config_from_dict(values["config"], where="training_record.json")
        return cls(**values)


def corpus_records(report: PrepareReport) -> tuple[CorpusRecord, ...]:
    """The corpora of a preparation as they stand in the record."""
    return tuple(
        CorpusRecord(
            name=corpus.name,
            pairs=corpus.num_kept,
            target_tokens=corpus.num_target_tokens,
            weight=corpus.weight,
            licence=corpus.licence,
            attributions=corpus.attributions,
        )
        for corpus in report.corpora
    )


def package_versions() -> dict[str, str]:
    """Versions of Python and of the packages that matter for making the run again."""
    versions = {"python": platform.python_version()}
    for name in RECORDED_PACKAGES:
        try:
            versions[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return versions


def hardware(device: torch.device) -> str:
    """A line about the machine: the GPU, or the CPU and how many cores this process may use."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    name = platform.processor() or platform.machine()
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.is_file():
        lines = [line for line in cpuinfo.read_text(encoding="utf-8").splitlines() if line.startswith("model name")]
        name = lines[0].partition(":")[2].strip() if lines else name
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return f"{name}, {cores} cores"
