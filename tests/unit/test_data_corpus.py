"""Parallel text is read line by line, and every line is accounted for."""

from __future__ import annotations

import gzip
from pathlib import Path

import pytest

from training.config import CorpusConfig
from training.corpus import MAX_MALFORMED_EXAMPLES, CorpusError, ReadReport, SentencePair, missing_files, read_pairs


def read(corpus: CorpusConfig, root: Path) -> tuple[list[SentencePair], ReadReport]:
    report = ReadReport()
    return list(read_pairs(corpus, root, report)), report


def test_columns_are_picked_and_rows_filtered(tmp_path: Path) -> None:
    lines = [
        "id1\teins\tone\tHT",
        "id2\tzwei\ttwo\tMT",
        "id3\t drei  \tthree\u00a0\t3\tHT",
        "id4\tvier\tfour\tHT\textra",
    ]
    (tmp_path / "a.tsv").write_text("\n".join(lines), encoding="utf-8")
    corpus = CorpusConfig(
        name="a", tsv=("a.tsv",), source_column=3, target_column=2, filter_column=4, filter_values=("HT", "3")
    )
    pairs, report = read(corpus, tmp_path)
    assert pairs == [SentencePair("one", "eins"), SentencePair("three", "drei"), SentencePair("four", "vier")]
    assert (report.num_lines, report.num_other_rows, report.num_malformed) == (4, 1, 0)


def test_gzip_and_several_files_are_read_in_order(tmp_path: Path) -> None:
    (tmp_path / "a.tsv.gz").write_bytes(gzip.compress(b"a\tA\r\nb\tB\n"))
    (tmp_path / "b.tsv").write_bytes(b"c\tC\n")
    pairs, _ = read(CorpusConfig(name="x", tsv=("a.tsv.gz", "b.tsv")), tmp_path)
    assert pairs == [SentencePair("a", "A"), SentencePair("b", "B"), SentencePair("c", "C")]


def test_only_a_newline_ends_a_line(tmp_path: Path) -> None:
    (tmp_path / "a.tsv").write_text("one\u2028two\tA\u0085B\x0bC\nc\tC\n", encoding="utf-8")
    pairs, report = read(CorpusConfig(name="x", tsv=("a.tsv",)), tmp_path)
    assert report.num_lines == 2
    assert pairs == [SentencePair("one two", "A B C"), SentencePair("c", "C")]


def test_malformed_lines_are_counted_and_named(tmp_path: Path) -> None:
    (tmp_path / "a.tsv").write_bytes(b"a\tA\nno tab\n\nb\t\xff\xfe\nc\tC\n")
    pairs, report = read(CorpusConfig(name="x", tsv=("a.tsv",)), tmp_path)
    assert pairs == [SentencePair("a", "A"), SentencePair("c", "C")]
    assert report.num_malformed == 3
    path = tmp_path / "a.tsv"
    assert report.malformed_examples == [
        f"{path}:2: must have at least 2 tab-separated columns, but has 1",
        f"{path}:3: must have at least 2 tab-separated columns, but has 1",
        f"{path}:4: must be UTF-8, but byte 3 is not",
    ]


def test_no_more_than_the_first_malformed_lines_are_kept(tmp_path: Path) -> None:
    (tmp_path / "a.tsv").write_text("x\n" * 100, encoding="utf-8")
    _, report = read(CorpusConfig(name="x", tsv=("a.tsv",)), tmp_path)
    assert (report.num_malformed, len(report.malformed_examples)) == (100, MAX_MALFORMED_EXAMPLES)


def test_paired_files_are_read_side_by_side(tmp_path: Path) -> None:
    (tmp_path / "a.en").write_bytes(b"one\ntwo\nthree\n")
    (tmp_path / "a.de").write_bytes(b"eins\n\xff\ndrei")
    pairs, report = read(CorpusConfig(name="x", source=("a.en",), target=("a.de",)), tmp_path)
    assert pairs == [SentencePair("one", "eins"), SentencePair("three", "drei")]
    assert report.malformed_examples == [f"{tmp_path / 'a.de'}:2: must be UTF-8, but byte 1 is not"]


@pytest.mark.parametrize(("source", "target"), [("1\n2\n3\n", "1\n2\n"), ("1\n", "1\n2\n")])
def test_paired_files_of_different_length_are_refused(tmp_path: Path, source: str, target: str) -> None:
    (tmp_path / "a.en").write_text(source, encoding="utf-8")
    (tmp_path / "a.de").write_text(target, encoding="utf-8")
    shorter = min(source.count("\n"), target.count("\n"))
    with pytest.raises(CorpusError, match=f"same number of lines, but .* ends after {shorter} and"):
        read(CorpusConfig(name="x", source=("a.en",), target=("a.de",)), tmp_path)


def test_a_damaged_gzip_file_is_refused(tmp_path: Path) -> None:
    whole = gzip.compress(b"a\tA\n" * 1000)
    (tmp_path / "cut.tsv.gz").write_bytes(whole[:-20])
    (tmp_path / "plain.tsv.gz").write_bytes(b"a\tA\n")
    for name in ("cut.tsv.gz", "plain.tsv.gz"):
        with pytest.raises(CorpusError, match=rf"{name} must be a whole gzip file, but is damaged"):
            read(CorpusConfig(name="x", tsv=(name,)), tmp_path)


def test_missing_files_are_all_named(tmp_path: Path) -> None:
    (tmp_path / "there.tsv").touch()
    corpora = (
        CorpusConfig(name="a", tsv=("there.tsv", "gone.tsv")),
        CorpusConfig(name="b", source=("b.en",), target=("b.de",)),
    )
    assert [text.split()[2] for text in missing_files(corpora, tmp_path)] == [
        f"{tmp_path / name}," for name in ("gone.tsv", "b.en", "b.de")
    ]
    with pytest.raises(CorpusError, match=r"gone\.tsv must exist"):
        read(corpora[0], tmp_path)
