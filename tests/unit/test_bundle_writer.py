"""A bundle appears whole or not at all, and never over another."""

from __future__ import annotations

import stat
from pathlib import Path

import pytest

from export.bundle_writer import new_directory


def test_what_was_built_appears_at_the_end(tmp_path: Path) -> None:
    output = tmp_path / "deep" / "bundle"
    with new_directory(output) as building:
        (building / "sub").mkdir()
        (building / "sub" / "file").write_bytes(b"x")
        assert not output.exists()
    assert (output / "sub" / "file").read_bytes() == b"x"
    assert stat.S_IMODE(output.stat().st_mode) == 0o755
    assert list(output.parent.iterdir()) == [output]


def test_a_failure_leaves_nothing(tmp_path: Path) -> None:
    def build() -> None:
        with new_directory(tmp_path / "bundle") as building:
            (building / "file").write_bytes(b"x")
            raise RuntimeError("stop")

    with pytest.raises(RuntimeError, match="stop"):
        build()
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("is_link", [False, True])
def test_nothing_is_overwritten(tmp_path: Path, is_link: bool) -> None:
    output = tmp_path / "bundle"
    output.symlink_to(tmp_path / "nowhere") if is_link else output.mkdir()
    with pytest.raises(FileExistsError, match="never overwritten"), new_directory(output):
        pytest.fail("it must not begin")


def test_what_appeared_meanwhile_is_not_overwritten(tmp_path: Path) -> None:
    output = tmp_path / "bundle"

    def build() -> None:
        with new_directory(output):
            output.mkdir()
            (output / "theirs").write_bytes(b"x")

    with pytest.raises(FileExistsError, match="never overwritten"):
        build()
    assert (output / "theirs").read_bytes() == b"x"
    assert list(tmp_path.iterdir()) == [output]
