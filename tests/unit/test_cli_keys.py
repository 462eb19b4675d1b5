"""`keys new`: the key that is printed opens what the file says, and a file is never left half written."""

import stat
from pathlib import Path

import pytest

from service.api_keys import ApiKeys, read_keys
from service.caller import Caller
from service.cli import main


def new(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str, str]:
    """Exit code, stdout and stderr of `keys new`."""
    code = main(["keys", "new", *arguments])
    written = capsys.readouterr()
    return code, written.out, written.err


def test_the_key_that_is_printed_opens(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "keys.toml"
    code, first, _ = new(capsys, "shop", "--file", str(path))
    assert code == 0
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    path.chmod(0o640)
    limits = ["--weight", "2", "--max-calls", "3", "--segments-per-second", "4.5", "--tokens-per-second", "6"]
    code, second, _ = new(capsys, "ops", "--file", str(path), *limits, "--model", "a", "--model", "b", "--admin")
    assert code == 0
    assert stat.S_IMODE(path.stat().st_mode) == 0o640
    keys = ApiKeys(str(path))
    assert keys.caller_of(first.strip()) == Caller(name="shop")
    assert keys.caller_of(second.strip()) == Caller(
        name="ops",
        weight=2.0,
        max_calls=3,
        segments_per_second=4.5,
        tokens_per_second=6.0,
        models=frozenset({"a", "b"}),
        is_admin=True,
    )
    assert list(tmp_path.iterdir()) == [path]
    assert not any(key.strip() in path.read_text(encoding="utf-8") for key in (first, second))


def test_what_stands_in_a_file_stays(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "keys.toml"
    path.write_text("# our keys", encoding="utf-8")
    link = tmp_path / "link.toml"
    link.symlink_to(path)
    assert new(capsys, "shop", "--file", str(link))[0] == 0
    assert link.is_symlink()
    assert path.read_text(encoding="utf-8").startswith("# our keys\n\n[[keys]]\n")
    assert len(read_keys(str(path))) == 1


def test_a_file_that_would_be_wrong_is_not_written(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "keys.toml"
    new(capsys, "shop", "--file", str(path))
    before = path.read_bytes()
    code, out, err = new(capsys, "shop", "--file", str(path), "--max-calls", "2")
    assert (code, out) == (1, "")
    assert err.startswith(f"Key 2 of {path}: all but `id` and `sha256` must be the same for all keys of one name")
    code, out, err = new(capsys, "other", "--file", str(path), "--weight", "0")
    assert (code, err) == (1, f"Key 2 of {path}: `weight` must be a number above 0, but is not.\n")
    assert path.read_bytes() == before
    path.write_text("[[keys", encoding="utf-8")
    assert new(capsys, "shop", "--file", str(path))[0] == 1
    assert path.read_text(encoding="utf-8") == "[[keys"
    assert list(tmp_path.iterdir()) == [path]


def test_what_cannot_be_written_is_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, out, err = new(capsys, "shop", "--file", str(tmp_path / "none" / "keys.toml"))
    assert (code, out) == (1, "")
    assert err.endswith("must be a file that can be written, but is not: No such file or directory.\n")
    assert new(capsys, "two words", "--file", str(tmp_path / "keys.toml"))[0] == 2
    assert list(tmp_path.iterdir()) == []
