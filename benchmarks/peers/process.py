"""A peer in a process of its own, asked by `benchmarks.peers.protocol`."""

from __future__ import annotations

import dataclasses
import json
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.peers import environments
from benchmarks.peers.protocol import Answer, Load, Request

STOP_SECONDS = 10.0


class PeerError(RuntimeError):
    """A peer could not do what it was asked; the message is its own."""


@dataclass(frozen=True, kw_only=True)
class Program:
    """How a peer is started."""

    python: Path
    """Of its environment."""
    module: str
    """Its program."""


class PeerProcess:
    """A peer that has opened a model. Used by one thread; close it, or use it in a `with` block."""

    def __init__(self, program: Program, load: Load) -> None:
        """Starts the process and opens the model.

        Raises:
            PeerError: when it cannot.
        """
        self._name = program.module.rpartition(".")[2]
        self._process = subprocess.Popen(
            environments.command(program.python, program.module),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env={**environments.variables(), "OMP_NUM_THREADS": str(load.threads)},
        )
        try:
            self.version = str(self._ask({"load": dataclasses.asdict(load)})["version"])
        except BaseException:
            self.close()
            raise

    def translate(self, request: Request) -> Answer:
        """Raises PeerError when the peer fails."""
        return Answer(**self._ask({"translate": dataclasses.asdict(request)}))

    def _ask(self, question: dict[str, Any]) -> dict[str, Any]:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        try:
            self._process.stdin.write(json.dumps(question) + "\n")
            self._process.stdin.flush()
            line = self._process.stdout.readline()
        except BrokenPipeError:
            line = ""
        if not line:
            raise PeerError(f"{self._name} must answer, but ended with code {self._process.wait(STOP_SECONDS)}.")
        answer: dict[str, Any] = json.loads(line)
        if "error" in answer:
            raise PeerError(f"{self._name} failed:\n{answer['error']}")
        return answer

    def close(self) -> None:
        """Ends the process."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        with suppress(BrokenPipeError):
            self._process.stdin.close()
        try:
            self._process.wait(STOP_SECONDS)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._process.stdout.close()


@contextmanager
def started(program: Program, load: Load) -> Iterator[PeerProcess]:
    """A process for as long as the block lasts.

    Raises:
        PeerError: as `PeerProcess`.
    """
    process = PeerProcess(program, load)
    try:
        yield process
    finally:
        process.close()
