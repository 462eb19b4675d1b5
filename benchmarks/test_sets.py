"""The held-out sets that the default model is judged on, read from a data directory outside the project."""

import gzip
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, kw_only=True)
class TestSet:
    """Source sentences and their reference translations, line by line."""

    name: str
    sources: tuple[str, ...]
    references: tuple[str, ...]


def _lines(path: Path) -> tuple[str, ...]:
    """The lines of a file, cut at line feeds alone (`splitlines` would also cut at U+2028 and the like)."""
    return tuple(path.read_text(encoding="utf-8").removesuffix("\n").split("\n"))


def _paired(name: str, source: Path, target: Path) -> TestSet:
    sources, references = _lines(source), _lines(target)
    if len(sources) != len(references):
        raise ValueError(
            f"{source} and {target} must have as many lines, but have {len(sources)} and {len(references)}."
        )
    return TestSet(name=name, sources=sources, references=references)


def _tab_separated(name: str, path: Path) -> TestSet:
    with gzip.open(path, "rt", encoding="utf-8") as lines:
        rows = [line.rstrip("\n").split("\t") for line in lines]
    return TestSet(name=name, sources=tuple(row[0] for row in rows), references=tuple(row[1] for row in rows))


def english_chinese(data: Path) -> tuple[TestSet, ...]:
    """docs-enzh test (2,000), tatoeba-enzh test (485) and FLORES dev (997) below `data`."""
    docs, flores = data / "docs-enzh", data / "flores-enzh"
    return (
        _paired("docs-enzh/test", docs / "test.en", docs / "test.zh"),
        _tab_separated("tatoeba-enzh/test", data / "tatoeba-enzh" / "test.tsv.gz"),
        _paired("flores-enzh/dev", flores / "dev.en", flores / "dev.zh"),
    )


def english_chinese_dev(data: Path) -> tuple[TestSet, ...]:
    """docs-enzh dev (1,000) and tatoeba-enzh dev (507) below `data`: what options may be tried on."""
    docs = data / "docs-enzh"
    return (
        _paired("docs-enzh/dev", docs / "dev.en", docs / "dev.zh"),
        _tab_separated("tatoeba-enzh/dev", data / "tatoeba-enzh" / "dev.tsv.gz"),
    )
