"""Reading parallel text: tab-separated files (gzip too) or paired files, with every bad line accounted for."""

from __future__ import annotations

import gzip
import zlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, cast

from service.tokenizer import normalize
from training.config import CorpusConfig

MAX_MALFORMED_EXAMPLES = 20


class CorpusError(ValueError):
    """A corpus that cannot be read at all: a missing or damaged file, or paired files of different length."""


@dataclass(frozen=True, slots=True)
class SentencePair:
    """One aligned pair, white space collapsed."""

    source: str
    """Text of the source language."""
    target: str
    """Text of the target language."""


@dataclass(kw_only=True)
class ReadReport:
    """What reading a corpus met."""

    num_lines: int = 0
    """Lines read, of paired files once for both."""
    num_malformed: int = 0
    """Lines that are no pair: not UTF-8, or with too few columns."""
    malformed_examples: list[str] = field(default_factory=list)
    """The first malformed lines as "file:line: reason"."""
    num_other_rows: int = 0
    """Lines left out because their filter column has another value."""

    def add_malformed(self, path: Path, line_number: int, reason: str) -> None:
        """Counts a malformed line and keeps it as an example while there is room."""
        self.num_malformed += 1
        if len(self.malformed_examples) < MAX_MALFORMED_EXAMPLES:
            self.malformed_examples.append(f"{path}:{line_number}: {reason}")


def read_pairs(corpus: CorpusConfig, root: Path, report: ReadReport) -> Iterator[SentencePair]:
    """Yields the pairs of a corpus in file order, in constant memory; `report` is filled on the way.

    Raises:
        CorpusError: if a file is missing or damaged, or paired files differ in their number of lines.
    """
    for name in corpus.tsv:
        yield from _read_tsv(corpus, root / name, report)
    for source_name, target_name in zip(corpus.source, corpus.target, strict=True):
        yield from _read_paired(root / source_name, root / target_name, report)


def missing_files(corpora: tuple[CorpusConfig, ...], root: Path) -> list[str]:
    """One sentence for every file of the corpora that does not exist under `root`."""
    return [
        f"`{corpus.name}` needs {root / name}, but there is no such file."
        for corpus in corpora
        for name in (*corpus.tsv, *corpus.source, *corpus.target)
        if not (root / name).is_file()
    ]


def _read_tsv(corpus: CorpusConfig, path: Path, report: ReadReport) -> Iterator[SentencePair]:
    num_columns = max(corpus.source_column, corpus.target_column, corpus.filter_column)
    kept_values = frozenset(corpus.filter_values)
    for line_number, raw in enumerate(_lines(path), start=1):
        report.num_lines += 1
        try:
            line = raw.decode("utf-8")
        except UnicodeDecodeError as error:
            report.add_malformed(path, line_number, f"must be UTF-8, but byte {error.start + 1} is not")
            continue
        columns = line.split("\t")
        if len(columns) < num_columns:
            report.add_malformed(
                path, line_number, f"must have at least {num_columns} tab-separated columns, but has {len(columns)}"
            )
            continue
        if corpus.filter_column and columns[corpus.filter_column - 1] not in kept_values:
            report.num_other_rows += 1
            continue
        source, target = columns[corpus.source_column - 1], columns[corpus.target_column - 1]
        yield SentencePair(normalize(source), normalize(target))


def _read_paired(source_path: Path, target_path: Path, report: ReadReport) -> Iterator[SentencePair]:
    source_lines, target_lines = _lines(source_path), _lines(target_path)
    line_number = 0
    while True:
        source_raw, target_raw = next(source_lines, None), next(target_lines, None)
        if source_raw is None and target_raw is None:
            return
        if source_raw is None or target_raw is None:
            shorter = source_path if source_raw is None else target_path
            longer = target_path if source_raw is None else source_path
            raise CorpusError(
                f"{source_path} and {target_path} must have the same number of lines, "
                f"but {shorter} ends after {line_number} and {longer} goes on."
            )
        line_number += 1
        report.num_lines += 1
        try:
            pair = SentencePair(normalize(source_raw.decode("utf-8")), normalize(target_raw.decode("utf-8")))
        except UnicodeDecodeError as error:
            bad = source_path if error.object == source_raw else target_path
            report.add_malformed(bad, line_number, f"must be UTF-8, but byte {error.start + 1} is not")
            continue
        yield pair


def _lines(path: Path) -> Iterator[bytes]:
    """Lines of a plain or gzip file without their ends. Only b"\\n" ends a line: texts may hold U+2028 and the like."""
    try:
        with _open(path) as file:
            for line in file:
                yield line.rstrip(b"\r\n")
    except FileNotFoundError as error:
        raise CorpusError(f"{path} must exist, but does not.") from error
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise CorpusError(f"{path} must be a whole gzip file, but is damaged: {error}") from error


def _open(path: Path) -> IO[bytes]:
    return cast(IO[bytes], gzip.open(path, "rb")) if path.suffix == ".gz" else path.open("rb")
