"""From corpora to a prepared directory: read and filter, train the tokenizer, write ids as memory-mapped splits.

    RUN/prepared/
      prepare.json           what was read, dropped and kept
      tokenizer/             see `service/tokenizer.py`
      train/                 see `training/data.py`
      validation/NAME/       the same, and the text of both sides as `source.txt` and `target.txt`

Text passes several times: to be filtered, to be sampled for the tokenizer, to be encoded. What is held in memory is a
digest a pair to know duplicates, the lengths, and the sample.
"""

from __future__ import annotations

import json
import os
import shutil
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import numpy.typing as npt

from service.tokenizer import Tokenizer
from training.config import Config, CorpusConfig
from training.corpus import CorpusError, ReadReport, SentencePair, missing_files, read_pairs
from training.data import PREPARED_NAME, REPORT_NAME, TOKENIZER_NAME, SplitWriter
from training.filters import DropReason, PairFilter, count_by_name
from training.prepare_report import CorpusReport, PrepareReport
from training.train_tokenizer import train_tokenizer


@dataclass(kw_only=True)
class _Progress:
    """What is known of a corpus while it passes."""

    config: CorpusConfig
    read: ReadReport = field(default_factory=ReadReport)
    dropped: Counter[DropReason] = field(default_factory=Counter)
    num_text_kept: int = 0
    num_kept: int = 0
    num_source_tokens: int = 0
    num_target_tokens: int = 0

    def report(self) -> CorpusReport:
        return CorpusReport(
            name=self.config.name,
            weight=self.config.weight,
            num_lines=self.read.num_lines,
            num_other_rows=self.read.num_other_rows,
            num_malformed=self.read.num_malformed,
            malformed_examples=tuple(self.read.malformed_examples),
            dropped=count_by_name(self.dropped),
            num_kept=self.num_kept,
            num_source_tokens=self.num_source_tokens,
            num_target_tokens=self.num_target_tokens,
            licence=self.config.licence,
            attributions=self.config.attributions,
        )


def prepare(
    config: Config,
    run_directory: Path,
    *,
    root: Path | None = None,
    force: bool = False,
    say: Callable[[str], None] = print,
) -> PrepareReport:
    """Prepares the data of a run in `run_directory/prepared`, all of it or nothing.

    Args:
        root: directory the corpora's file names are relative to; `config.data.root` when None.
        force: replace what an earlier preparation left.
        say: takes the lines of progress.
    Raises:
        FileExistsError: if the run is prepared already and `force` is false.
        CorpusError: if a file is missing or damaged, or a corpus leaves no pair to train on.
        ValueError: if the tokenizer cannot be trained.
    """
    started = time.monotonic()
    root = Path(config.data.root) if root is None else root
    final = run_directory / PREPARED_NAME
    if final.exists() and not force:
        raise FileExistsError(f"{final} must not exist yet, but does: --force replaces it.")
    missing = missing_files((*config.data.corpora, *config.data.validation), root)
    if missing:
        raise CorpusError("\n".join(missing))
    partial = run_directory / f"{PREPARED_NAME}.partial"
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)

    corpora = [_Progress(config=corpus) for corpus in config.data.corpora]
    pair_filter = PairFilter(config.data.filters, config.data.source_language, config.data.target_language)
    kept_text = _KeptText(partial)
    for corpus in corpora:
        say(f"reading {corpus.config.name}")
        kept_text.write_filtered(corpus, root, pair_filter)
    _check_some_left([corpus.num_text_kept for corpus in corpora], corpora)
    tokenizer = _train_tokenizer(config, partial / TOKENIZER_NAME, kept_text, corpora, say)
    say("encoding")
    _encode_training(partial / "train", kept_text, corpora, tokenizer, pair_filter)
    kept_text.remove()
    _check_some_left([corpus.num_kept for corpus in corpora], corpora)
    validation = [_Progress(config=corpus) for corpus in config.data.validation]
    for held_out in validation:
        max_tokens = config.model.max_positions - 1
        _encode_validation(partial / "validation" / held_out.config.name, held_out, root, tokenizer, max_tokens)

    report = PrepareReport(
        source_language=config.data.source_language,
        target_language=config.data.target_language,
        corpora=tuple(corpus.report() for corpus in corpora),
        validation=tuple(held_out.report() for held_out in validation),
        sort_chunk_pairs=config.data.sort_chunk_pairs,
        length_multiple=config.data.length_multiple,
        source_vocab_size=tokenizer.source_vocab_size,
        target_vocab_size=tokenizer.target_vocab_size,
        tokenizer_digest=tokenizer.digest,
        seconds=round(time.monotonic() - started, 1),
    )
    text = json.dumps(report.to_dict(), indent=2, ensure_ascii=False) + "\n"
    (partial / REPORT_NAME).write_text(text, encoding="utf-8")
    if final.exists():
        shutil.rmtree(final)
    os.replace(partial, final)
    return report


def _check_some_left(counts: list[int], corpora: list[_Progress]) -> None:
    if not any(counts):
        account = "\n".join(corpus.report().to_text() for corpus in corpora)
        raise CorpusError(f"The corpora must leave a pair to train on, but all were dropped:\n{account}")


class _KeptText:
    """The pairs that passed the text filters, on disk between the two passes."""

    def __init__(self, directory: Path) -> None:
        self._source_path = directory / "kept.source"
        self._target_path = directory / "kept.target"

    def write_filtered(self, corpus: _Progress, root: Path, pair_filter: PairFilter) -> None:
        """Reads one corpus and appends what passes."""
        with ExitStack() as stack:
            source_file, target_file = (
                stack.enter_context(path.open("a", encoding="utf-8", newline="\n"))
                for path in (self._source_path, self._target_path)
            )
            for pair in read_pairs(corpus.config, root, corpus.read):
                reason = pair_filter.check_text(pair)
                if reason is not None:
                    corpus.dropped[reason] += 1
                    continue
                corpus.num_text_kept += 1
                source_file.write(pair.source + "\n")
                target_file.write(pair.target + "\n")

    def pairs(self) -> Iterator[SentencePair]:
        """All pairs, in the order written."""
        with (
            self._source_path.open(encoding="utf-8", newline="\n") as sources,
            self._target_path.open(encoding="utf-8", newline="\n") as targets,
        ):
            for source, target in zip(sources, targets, strict=True):
                yield SentencePair(source.rstrip("\n"), target.rstrip("\n"))

    def remove(self) -> None:
        """Deletes the files."""
        self._source_path.unlink()
        self._target_path.unlink()


def _train_tokenizer(
    config: Config, directory: Path, kept_text: _KeptText, corpora: list[_Progress], say: Callable[[str], None]
) -> Tokenizer:
    """Trains on a sample in which a corpus weighs what it weighs in an epoch."""
    weights = np.concatenate([np.full(corpus.num_text_kept, corpus.config.weight) for corpus in corpora])
    num_sides = 2 if config.tokenizer.joint else 1
    num_wanted = max(1, config.tokenizer.max_training_sentences // num_sides)
    copies = _sample_copies(weights, num_wanted, config.train.seed)
    say(f"training the tokenizer on {int(copies.sum()):,} pairs")

    def sample(side: str) -> Iterator[str]:
        for num_copies, pair in zip(copies.tolist(), kept_text.pairs(), strict=True):
            for _ in range(num_copies):
                yield getattr(pair, side)

    return train_tokenizer(
        config.tokenizer,
        directory,
        source_language=config.data.source_language,
        target_language=config.data.target_language,
        source_sentences=lambda: sample("source"),
        target_sentences=lambda: sample("target"),
        num_threads=os.cpu_count() or 1,
    )


def _sample_copies(weights: npt.NDArray[np.float64], num_wanted: int, seed: int) -> npt.NDArray[np.int64]:
    """How often each pair occurs in the sample: by its weight, all scaled down where they are too many."""
    if not len(weights):
        return np.zeros(0, dtype=np.int64)
    expected: npt.NDArray[np.float64] = weights * min(1.0, num_wanted / weights.sum())
    whole = np.floor(expected)
    extra = np.random.default_rng(seed).random(len(weights)) < expected - whole
    copies: npt.NDArray[np.int64] = (whole + extra).astype(np.int64)
    return copies


def _encode_training(
    directory: Path, kept_text: _KeptText, corpora: list[_Progress], tokenizer: Tokenizer, pair_filter: PairFilter
) -> None:
    writer = SplitWriter(directory, tokenizer.source_vocab_size, tokenizer.target_vocab_size)
    pairs = kept_text.pairs()
    for corpus in corpora:
        for _ in range(corpus.num_text_kept):
            pair = next(pairs)
            _encode_pair(pair, corpus, tokenizer, writer, pair_filter.check_tokens)
    writer.close()


def _encode_validation(directory: Path, held_out: _Progress, root: Path, tokenizer: Tokenizer, max_tokens: int) -> None:
    """Held-out pairs are not filtered; only what cannot fit the model is left out of the loss, and counted."""

    def check(num_source_tokens: int, num_target_tokens: int) -> DropReason | None:
        return DropReason.TOO_MANY_TOKENS if max(num_source_tokens, num_target_tokens) > max_tokens else None

    writer = SplitWriter(directory, tokenizer.source_vocab_size, tokenizer.target_vocab_size)
    pairs = list(read_pairs(held_out.config, root, held_out.read))
    for pair in pairs:
        _encode_pair(pair, held_out, tokenizer, writer, check)
    writer.close()
    for side in ("source", "target"):
        text = "".join(getattr(pair, side) + "\n" for pair in pairs)
        (directory / f"{side}.txt").write_text(text, encoding="utf-8", newline="\n")


def _encode_pair(
    pair: SentencePair,
    corpus: _Progress,
    tokenizer: Tokenizer,
    writer: SplitWriter,
    check: Callable[[int, int], DropReason | None],
) -> None:
    source, target = tokenizer.encode_source(pair.source), tokenizer.encode_target(pair.target)
    reason = check(len(source) - 1, len(target))
    if reason is not None:
        corpus.dropped[reason] += 1
        return
    writer.add(source, target)
    corpus.num_kept += 1
    corpus.num_source_tokens += len(source)
    corpus.num_target_tokens += len(target) + 1
