"""The interface keeps its style, breaks no client, and the generated code is what it generates."""

import runpy
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from service.client import FinishReason, SegmentFlag
from service.pb.translation.v1 import translation_pb2 as pb

ROOT = Path(__file__).parents[2]
BUF = shutil.which("buf", path=str(Path(sys.executable).parent)) or shutil.which("buf")
INTERFACE = "proto/translation/v1/translation.proto"


def buf(directory: Path, *arguments: str) -> "subprocess.CompletedProcess[str]":
    assert BUF is not None
    return subprocess.run([BUF, *arguments], cwd=directory, capture_output=True, text=True, check=False, timeout=120)


@pytest.fixture
def copied(tmp_path: Path) -> Path:
    """A copy of the interface to change."""
    shutil.copytree(ROOT / "proto", tmp_path / "proto", ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "buf.yaml", tmp_path)
    return tmp_path


def change(directory: Path, old: str, new: str) -> None:
    path = directory / INTERFACE
    text = path.read_text(encoding="utf-8")
    assert old in text
    path.write_text(text.replace(old, new), encoding="utf-8")


def test_lint_and_format() -> None:
    for arguments in (["lint"], ["format", "--diff", "--exit-code"]):
        checked = buf(ROOT, *arguments)
        assert checked.returncode == 0, checked.stdout + checked.stderr


def test_no_change_breaks_a_client_of_the_published_interface() -> None:
    checked = buf(ROOT, "breaking", "--against", "proto/published.binpb")
    assert checked.returncode == 0, checked.stdout + checked.stderr


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("string mime_type = 3;", "string mime_type = 9;"),
        ("string mime_type = 3;", "int32 mime_type = 3;"),
        ("float score = 3;", ""),
        ("rpc GetServerInfo(GetServerInfoRequest) returns (GetServerInfoResponse);", ""),
    ],
)
def test_a_breaking_change_fails(copied: Path, old: str, new: str) -> None:
    change(copied, old, new)
    checked = buf(copied, "breaking", "--against", "proto/published.binpb")
    assert checked.returncode != 0
    assert "translation.proto" in checked.stdout


def test_bad_style_fails(copied: Path) -> None:
    change(copied, "string mime_type = 3;", "string mimeType = 3;")
    assert buf(copied, "lint").returncode != 0


def test_the_generated_code_is_fresh(tmp_path: Path) -> None:
    generate = runpy.run_path(str(ROOT / "proto" / "generate.py"))["generate"]
    written = generate(tmp_path)
    assert len(written) == 6
    for path in written:
        committed = ROOT / path.relative_to(tmp_path)
        assert committed.read_text(encoding="utf-8") == path.read_text(encoding="utf-8"), "run `make proto`"


def test_the_clients_names_are_the_interfaces() -> None:
    reasons = {name.removeprefix("FINISH_REASON_") for name in pb.FinishReason.keys()}  # noqa: SIM118  # no mapping
    flags = {name.removeprefix("SEGMENT_FLAG_") for name in pb.SegmentFlag.keys()}  # noqa: SIM118
    assert reasons == set(FinishReason.__args__)  # type: ignore[attr-defined]
    assert flags == set(SegmentFlag.__args__)  # type: ignore[attr-defined]
