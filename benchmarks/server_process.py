"""A server of this checkout in its own process, on free loopback ports, for as long as a `with` block lasts."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

READY_SECONDS = 60.0
STOP_SECONDS = 30.0


@dataclass(frozen=True, kw_only=True)
class ServerProcess:
    """Where a running server answers."""

    address: str
    """host:port of gRPC."""
    metrics_address: str
    """host:port of the Prometheus page."""
    pid: int
    """Its process."""
    ready_seconds: float
    """From starting the process to its line that says it is ready."""
    ready_line: str
    """That line."""

    def metrics(self) -> dict[str, float]:
        """Every sample of the metrics page by its name with labels, as in `dragoman_rows_per_step_sum{...}`."""
        with urllib.request.urlopen(f"http://{self.metrics_address}/metrics", timeout=10) as page:
            lines = page.read().decode().splitlines()
        return {
            name: float(value)
            for name, _, value in (line.rpartition(" ") for line in lines if line[:1] not in ("#", ""))
        }


def free_port() -> int:
    """A loopback port that was free a moment ago."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


NO_REFUSAL = ("--standing-delay-seconds", "0")
"""For a server whose every call is to be answered, however many come at once and however long they wait."""


@contextmanager
def running_server(models: Path, *flags: str) -> Iterator[ServerProcess]:
    """Serve the bundles below `models` until the block ends, then stop it as Kubernetes would (SIGTERM).

    Raises RuntimeError when the server ends or stays silent before it is ready, or does not stop in time.
    """
    address, metrics_address = f"127.0.0.1:{free_port()}", f"127.0.0.1:{free_port()}"
    command = [sys.executable, "-m", "service", "serve", "--models", str(models)]
    command += ["--address", address, "--metrics-address", metrics_address, "--shutdown-delay-seconds", "0", *flags]
    with running_command(command, address=address, metrics_address=metrics_address) as server:
        yield server


@contextmanager
def running_command(
    command: Sequence[str], *, address: str, metrics_address: str = "", variables: Mapping[str, str] = os.environ
) -> Iterator[ServerProcess]:
    """Run a server that writes one line when it is ready, until the block ends, then stop it (SIGTERM).

    Raises RuntimeError when the server ends or stays silent before it is ready, or does not stop in time.
    """
    started = time.perf_counter()
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=variables)
    try:
        assert process.stdout is not None
        ready_line = process.stdout.readline().strip()  # ends at once when the process does
        if not ready_line:
            raise RuntimeError(f"the server ended with code {process.wait(READY_SECONDS)} before it was ready")
        yield ServerProcess(
            address=address,
            metrics_address=metrics_address,
            pid=process.pid,
            ready_seconds=time.perf_counter() - started,
            ready_line=ready_line,
        )
    finally:
        process.send_signal(signal.SIGTERM)
        try:
            process.wait(STOP_SECONDS)
        except subprocess.TimeoutExpired:
            process.kill()
            raise RuntimeError(f"the server did not stop within {STOP_SECONDS:.0f} s of SIGTERM") from None


def memory_bytes(pid: int) -> dict[str, int]:
    """Resident memory of a process: "now" and "peak"."""
    lines = Path(f"/proc/{pid}/status").read_text(encoding="ascii", errors="replace").splitlines()
    fields = dict(line.split(":", 1) for line in lines)
    return {name: 1024 * int(fields[key].split()[0]) for name, key in (("now", "VmRSS"), ("peak", "VmHWM"))}


def write_json(result: object, output: Path | None) -> None:
    """Print `result` as JSON and, when asked, keep it in a file."""
    text = json.dumps(result, indent=2, ensure_ascii=False)
    print(text)
    if output is not None:
        output.parent.mkdir(parents=True, exist_ok=True)
        output.write_text(text + "\n", encoding="utf-8")
