"""CTranslate2's gRPC server as a process of its own environment, with the settings of its batching."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from benchmarks.peers import environments
from benchmarks.server_process import ServerProcess, free_port, running_command

REQUIREMENTS = (environments.CTRANSLATE2, "grpcio==1.85.1", "protobuf>=7.35.1,<8", "sentencepiece>=0.2.1")
"""gRPC and protobuf as the served side has them: neither has the better transport."""
MODULE = "benchmarks.peers.ctranslate2_server"


@dataclass(frozen=True, kw_only=True, order=True)
class Batching:
    """How the server makes batches; see `ctranslate2_server`."""

    inter_threads: int = 2
    """Batches translated side by side."""
    intra_threads: int = 1
    """Threads of each."""
    max_batch: int = 32
    """Sentences of a batch at most; 1: each call by itself, in CTranslate2's own queue."""
    max_wait_ms: float = 0.0
    """How long the oldest waits for company."""
    workers: int = 0
    """Batches handed to CTranslate2 at once, so that its own queue is never empty; 0: as many as `inter_threads`."""
    split: int = 0
    """CTranslate2's own `max_batch_size`, by which it sorts and splits what it is handed; 0: not at all."""

    def __str__(self) -> str:
        queued = f", {self.workers} handed over at once" if self.workers else ""
        own = f", split by its own max_batch_size {self.split}" if self.split else ""
        threads = f"inter x intra {self.inter_threads}x{self.intra_threads}"
        return f"{threads}, batch {self.max_batch}, wait {self.max_wait_ms:g} ms{queued}{own}"

    @property
    def flags(self) -> tuple[str, ...]:
        """For the server's command line."""
        return (
            *("--inter-threads", str(self.inter_threads), "--intra-threads", str(self.intra_threads)),
            *("--max-batch", str(self.max_batch), "--max-wait-ms", str(self.max_wait_ms)),
            *("--workers", str(self.workers), "--split", str(self.split)),
        )


def server_environment() -> Path:
    """The Python of an environment with CTranslate2 and gRPC."""
    return environments.environment("ctranslate2-server", REQUIREMENTS)


@contextmanager
def running_ctranslate2(model: Path, tokenizer: Path, batching: Batching) -> Iterator[ServerProcess]:
    """Serve a converted model in int8 until the block ends.

    Args:
        model: as `models.ctranslate2_model` makes it.
        tokenizer: the SentencePiece file of the served bundle.
        batching: how.

    Raises:
        RuntimeError: when the server does not start or stop.
    """
    address = f"127.0.0.1:{free_port()}"
    flags = ("--address", address, *batching.flags)
    command = environments.command(server_environment(), MODULE, str(model), str(tokenizer), *flags)
    with running_command(command, address=address, variables=environments.variables()) as server:
        yield server
