"""Peers in processes of their own: the protocol, what is kept of environments and models."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from benchmarks.peers import environments
from benchmarks.peers.models import kept
from benchmarks.peers.process import PeerError, Program, started
from benchmarks.peers.protocol import Load, Request

FAKE = Program(python=Path(sys.executable), module="tests.synthetic.fake_peer")
LOAD = Load(model="some", precision="int8", workers=2, threads=1)


def request(*firsts: int) -> Request:
    return Request(
        sources=[[first, 7] for first in firsts], beam_size=1, batch_size=1, max_target_tokens=9, is_forced=False
    )  # fmt: skip


def test_a_peer_answers_in_order_and_what_it_prints_is_no_answer() -> None:
    with started(FAKE, LOAD) as process:
        assert process.version == "fake 2x1"
        answer = process.translate(request(3, 1, 2))
    assert answer.targets == [[3], [1], [2]]
    assert answer.seconds > 0


def test_the_peak_is_that_of_one_translation_alone() -> None:
    with started(FAKE, LOAD) as process:
        before = process.translate(request(1)).peak_bytes
        large = process.translate(request(200)).peak_bytes
        after = process.translate(request(1)).peak_bytes
    assert large - before > 150 * 2**20
    assert after - before < 50 * 2**20


def test_a_peer_that_failed_says_why_and_goes_on() -> None:
    with started(FAKE, LOAD) as process:
        with pytest.raises(PeerError, match="A source must not begin with 0"):
            process.translate(request(0))
        assert process.translate(request(5)).targets == [[5]]


def test_a_peer_that_ended_is_told_from_one_that_failed() -> None:
    with started(FAKE, LOAD) as process, pytest.raises(PeerError, match="ended with code 3"):
        process.translate(request(-1))


def test_a_model_that_cannot_be_opened() -> None:
    with (
        pytest.raises(PeerError, match="There must be a model"),
        started(FAKE, Load(model="none", precision="int8", workers=1, threads=1)),
    ):
        pytest.fail("it must not start")


class Installer:
    """Stands for venv and pip: makes the Python there would be, and notes what is installed."""

    def __init__(self) -> None:
        self.installed: list[list[str]] = []
        self.fails = False

    def run(self, words: list[str], **_: Any) -> None:
        if "venv" in words:
            python = Path(words[-1]) / "bin" / "python"
            python.parent.mkdir(parents=True)
            python.touch()
        elif self.fails:
            raise subprocess.CalledProcessError(1, words)
        else:
            self.installed.append(words[words.index("--disable-pip-version-check") + 1 :])


@pytest.fixture
def installer(monkeypatch: pytest.MonkeyPatch) -> Installer:
    made = Installer()
    monkeypatch.setattr(environments.subprocess, "run", made.run)
    return made


def test_an_environment_is_made_once_and_in_the_order_given(installer: Installer, tmp_path: Path) -> None:
    for _ in range(2):
        python = environments.environment("one", ("a==1",), ("b", "a==1"), directory=tmp_path)
        assert python.exists()
    assert installer.installed == [["a==1"], ["b", "a==1"]]


def test_an_environment_is_made_anew_when_it_must_hold_something_else(installer: Installer, tmp_path: Path) -> None:
    environments.environment("one", ("a==1",), directory=tmp_path)
    environments.environment("one", ("a==2",), directory=tmp_path)
    assert installer.installed == [["a==1"], ["a==2"]]


def test_an_environment_that_could_not_be_made_is_tried_again(installer: Installer, tmp_path: Path) -> None:
    installer.fails = True
    with pytest.raises(subprocess.CalledProcessError):
        environments.environment("one", ("a==1",), directory=tmp_path)
    installer.fails = False
    environments.environment("one", ("a==1",), directory=tmp_path)
    assert installer.installed == [["a==1"]]


def test_what_is_kept_is_made_once(tmp_path: Path) -> None:
    calls = []

    def fill(directory: Path) -> None:
        calls.append(directory)
        (directory / "file").write_text("whole")

    for _ in range(2):
        assert (kept(tmp_path / "deep" / "model", fill) / "file").read_text() == "whole"
    assert len(calls) == 1


def test_what_could_not_be_made_leaves_nothing(tmp_path: Path) -> None:
    def fill(directory: Path) -> None:
        (directory / "file").write_text("half")
        raise ValueError("no more")

    with pytest.raises(ValueError, match="no more"):
        kept(tmp_path / "model", fill)
    assert list(tmp_path.iterdir()) == []
