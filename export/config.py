"""What an export is told: frozen, checked once, every problem reported together."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from service.manifest import MAX_GREEDY_STEPS, DecodingDefaults
from training.config import CorpusConfig

MIN_PARITY_SENTENCES = 200
"""Fewest real sentences on which a bundle to be published is compared with PyTorch."""


class ExportError(ValueError):
    """A bundle was not written or did not pass; `problems` lists every reason, one sentence each."""

    def __init__(self, where: str, problems: list[str]) -> None:
        lines = "\n".join(f"  - {problem}" for problem in problems)
        super().__init__(f"{where}: {len(problems)} problem(s)\n{lines}")
        self.problems = problems


@dataclass(frozen=True, kw_only=True)
class VerifyConfig:
    """How far a bundle is compared with its checkpoint."""

    validation: tuple[CorpusConfig, ...] = ()
    """Held-out sets to translate; empty takes those named in the checkpoint's training record."""
    data_root: Path | None = None
    """Directory that the files of the held-out sets are relative to; None takes the training record's."""
    max_sentences: int = 1000
    """Sentences taken from the beginning of each set."""
    min_parity_sentences: int = MIN_PARITY_SENTENCES
    """Fewest sentences that must be compared, all sets together."""
    max_bleu_loss: float = 0.3
    """Most BLEU that int8 may lose against fp32 on a set."""
    num_threads: int = 2
    """Threads of ONNX Runtime, and of the second way of the same-bytes test (the first has one)."""

    def problems(self) -> list[str]:
        """Everything wrong with this configuration, one sentence each."""
        found = [
            f"`{name}` must be at least 1, but is {value}."
            for name, value in (
                ("max_sentences", self.max_sentences),
                ("min_parity_sentences", self.min_parity_sentences),
                ("num_threads", self.num_threads),
            )
            if value < 1
        ]
        if not self.max_bleu_loss >= 0:
            found.append(f"`max_bleu_loss` must be at least 0, but is {self.max_bleu_loss}.")
        names = [corpus.name for corpus in self.validation]
        if len(set(names)) != len(names):
            found.append(f"`validation` must have distinct names, but has {', '.join(names)}.")
        return found


@dataclass(frozen=True, kw_only=True)
class ExportConfig:
    """One export."""

    checkpoint: Path
    """Directory of the checkpoint."""
    output: Path
    """Directory of the bundle; must not exist."""
    precision: Literal["fp32", "int8"]
    """Precision of the weights."""
    name: str = ""
    """Name of the model; empty takes the languages, as in `en-zh`."""
    licence: str = ""
    """Licence of the model; empty joins those of the corpora with AND."""
    is_external_data: bool = False
    """Store weights apart, in `*.onnx.data`; done in any case where a graph would pass a gigabyte."""
    alignment_layer: int | None = None
    """The decoder layer, 0 the first, whose cross-attention shows how target and source align; None: the last."""
    greedy_steps: int | None = None
    """Steps of greedy search in one run (`export.greedy_graph`); 1: no graph for it; None: 4 for a small decoder."""
    decoding: DecodingDefaults = field(default_factory=DecodingDefaults)
    """What decoding options are where a call does not give them."""
    verify: VerifyConfig = VerifyConfig()
    """How it is compared with the checkpoint."""

    def problems(self) -> list[str]:
        """Everything wrong with this configuration, one sentence each."""
        found = [*self.verify.problems(), *self.decoding.problems()]
        if self.output.exists() or self.output.is_symlink():
            found.append(f"`output` must not exist yet, but {self.output} does: a bundle is never overwritten.")
        if self.greedy_steps is not None and not 1 <= self.greedy_steps <= MAX_GREEDY_STEPS:
            found.append(f"`greedy_steps` must be between 1 and {MAX_GREEDY_STEPS}, but is {self.greedy_steps}.")
        if not self.checkpoint.is_dir():
            found.append(f"`checkpoint` must be a directory, but {self.checkpoint} is not.")
        return found


def parse_validation(text: str) -> CorpusConfig:
    """A held-out set as it is given on the command line: `[NAME=]FILE.tsv` or `[NAME=]SOURCE,TARGET`, `.gz` too.

    Without a name, the set is called after the last two parts of the path: `corpora/docs/dev.tsv` is `docs/dev`.
    """
    name, separator, rest = text.partition("=")
    if not separator:
        name, rest = "", text
    files = tuple(rest.split(","))
    name = name or "/".join(Path(files[0].removesuffix(".gz")).with_suffix("").parts[-2:])
    if len(files) == 1:
        return CorpusConfig(name=name, tsv=files)
    if len(files) == 2:
        return CorpusConfig(name=name, source=files[:1], target=files[1:])
    raise ValueError(f"A validation set must be FILE.tsv or SOURCE,TARGET, but is {rest!r}.")
