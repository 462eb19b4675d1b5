"""Files that may be replaced while the server runs."""

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from service.watched_files import FilesError, WatchedFiles, read_text


class Reader:
    """Reads two files, which must be equal, and counts."""

    def __init__(self, directory: Path) -> None:
        self.paths = [directory / "a", directory / "b"]
        self.num_reads = 0
        self.num_failures = 0
        self.on_read: Callable[[], None] = lambda: None
        self.write("one")

    def write(self, *texts: str) -> None:
        """One text for both files, or one each."""
        for path, text in zip(self.paths, texts * (2 // len(texts)), strict=True):
            renewed = path.with_suffix(".new")
            renewed.write_text(text, encoding="utf-8")
            renewed.replace(path)

    def load(self) -> str:
        self.num_reads += 1
        texts = [read_text(str(path)) for path in self.paths]
        self.on_read()
        if len(set(texts)) > 1:
            raise FilesError(["Both must be equal, but are not."])
        return texts[0]

    def fail(self) -> None:
        self.num_failures += 1

    def watch(self) -> WatchedFiles[str]:
        return WatchedFiles([str(path) for path in self.paths], self.load, what="texts", on_failure=self.fail)


@pytest.fixture
def reader(tmp_path: Path) -> Reader:
    return Reader(tmp_path)


def test_files_are_read_anew_when_they_have_changed_and_only_then(reader: Reader) -> None:
    files = reader.watch()
    assert [files.current() for _ in range(3)] == ["one"] * 3
    assert reader.num_reads == 1
    reader.write("two")
    assert [files.current() for _ in range(3)] == ["two"] * 3
    assert reader.num_reads == 2


def test_a_file_of_the_same_size_and_time_is_another_when_it_was_replaced(reader: Reader) -> None:
    files = reader.watch()
    times = [path.stat().st_mtime_ns for path in reader.paths]
    reader.write("two")
    for path, nanoseconds in zip(reader.paths, times, strict=True):
        os.utime(path, ns=(nanoseconds, nanoseconds))
    assert files.current() == "two"


def test_bad_files_change_nothing_and_are_reported_once(reader: Reader, caplog: pytest.LogCaptureFixture) -> None:
    files = reader.watch()
    reader.write("two", "three")
    assert [files.current() for _ in range(3)] == ["one"] * 3
    assert (reader.num_reads, reader.num_failures) == (2, 1)
    (record,) = (record for record in caplog.records if record.levelname == "ERROR")
    assert (record.__dict__["what"], record.__dict__["problems"]) == ("texts", ["Both must be equal, but are not."])
    reader.paths[0].write_text("three", encoding="utf-8")
    assert files.current() == "three"
    reader.write("four", "five")
    assert files.current() == "three"
    assert reader.num_failures == 2


def test_files_that_are_as_they_were_need_not_be_read(reader: Reader) -> None:
    files = reader.watch()
    kept = reader.paths[0].with_suffix(".kept")
    reader.paths[0].rename(kept)
    assert files.current() == "one"
    assert reader.num_failures == 1
    assert reader.num_reads == 2


def test_a_missing_file_that_comes_back_is_read(reader: Reader) -> None:
    files = reader.watch()
    reader.paths[1].unlink()
    assert files.current() == "one"
    reader.write("two")
    assert files.current() == "two"


def test_what_was_bad_before_is_told_again_when_it_comes_again(reader: Reader) -> None:
    files = reader.watch()
    for number in (1, 2):
        reader.paths[0].unlink()
        assert files.current() == "one"
        assert reader.num_failures == number
        reader.paths[0].write_text("one", encoding="utf-8")
        assert files.current() == "one"
    assert reader.num_reads == 5


def test_files_that_change_while_they_are_read_are_read_again(reader: Reader) -> None:
    files = reader.watch()

    def once() -> None:
        reader.on_read = lambda: None
        reader.write("three")

    reader.on_read = once
    reader.write("two")
    assert files.current() == "three"
    assert (reader.num_reads, reader.num_failures) == (3, 0)


def test_files_that_never_settle_are_left(reader: Reader) -> None:
    files = reader.watch()
    numbers = iter(range(100))
    reader.on_read = lambda: reader.write(f"text {next(numbers)}")
    reader.write("two")
    assert files.current() == "one"
    assert reader.num_reads == 4
    reader.on_read = lambda: None
    assert files.current() == "text 2"


def test_at_the_start_they_must_be_sound(reader: Reader) -> None:
    reader.write("one", "two")
    with pytest.raises(FilesError, match="Both must be equal"):
        reader.watch()
    reader.paths[0].unlink()
    with pytest.raises(FilesError, match=r"a must be readable, but is not: No such file or directory\."):
        reader.watch()
    reader.write("one")
    reader.paths[1].write_bytes(b"ab\xff")
    with pytest.raises(FilesError, match=r"b must be UTF-8, but its byte 2 is not\."):
        reader.watch()
