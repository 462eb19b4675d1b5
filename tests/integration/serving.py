"""Servers for tests: a real process, and one inside the test whose decoding steps the test holds in its hand."""

import asyncio
import os
import re
import signal
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, field
from io import StringIO
from pathlib import Path
from typing import Any
from unittest import mock

import grpc
from google.rpc import error_details_pb2, status_pb2
from grpc_health.v1 import health_pb2, health_pb2_grpc

from service import server as server_module
from service.bundle import load_bundle
from service.config import Config, load_config
from service.engine import Engine
from service.engine_loop import EngineLoop
from service.forecast import Forecast
from service.loop_group import LoopGroup
from service.pb.translation.v1 import translation_pb2 as pb
from service.pb.translation.v1 import translation_pb2_grpc
from service.request import Sequence
from service.served_model import ServedModel
from service.server import Server
from service.step_report import StepReport
from service.tokenizer import Tokenizer
from tests.synthetic.fake_runner import FakeRunner

PATIENCE_SECONDS = 60.0
READY = re.compile(r"Serving on (\S+), metrics on (\S+): (.*)\n")


@dataclass
class ServerProcess:
    """A server in its own process."""

    process: subprocess.Popen[str]
    address: str
    metrics_address: str
    ready_line: str
    errors_path: Path
    """Where its stderr goes."""

    def metrics(self) -> dict[str, float]:
        """The metrics page by name and labels as they are written there."""
        return parse_metrics(self.metrics_text())

    def metrics_text(self) -> str:
        """The metrics page."""
        with urllib.request.urlopen(f"http://{self.metrics_address}/metrics", timeout=PATIENCE_SECONDS) as page:
            return str(page.read().decode())

    def wait_for(self, condition: Callable[[dict[str, float]], bool]) -> dict[str, float]:
        """Asks for the metrics until they meet a condition."""
        ends_at = time.monotonic() + PATIENCE_SECONDS
        while not condition(found := self.metrics()):
            assert time.monotonic() < ends_at, found
        return found

    def errors(self) -> str:
        """What it wrote to stderr."""
        return self.errors_path.read_text(encoding="utf-8")


def parse_metrics(text: str) -> dict[str, float]:
    """Samples by name and labels."""
    lines = (line.rpartition(" ") for line in text.splitlines() if not line.startswith("#"))
    return {name: float(value) for name, _, value in lines}


def environment() -> dict[str, str]:
    """This process's environment without settings that a developer may have."""
    return {key: value for key, value in os.environ.items() if not key.startswith(("DRAGOMAN_", "GRPC_"))}


def start_process(models: Path, errors_path: Path, *flags: str) -> subprocess.Popen[str]:
    """Starts a server on free ports."""
    command = [sys.executable, "-m", "service", "serve", "--models", str(models), "--address", "127.0.0.1:0"]
    command += [
        "--metrics-address",
        "127.0.0.1:0",
        "--num-workers",
        "2",
        "--num-threads",
        "1",
        "--shutdown-delay-seconds",
        "0",
        *flags,
    ]
    with errors_path.open("w", encoding="utf-8") as errors:
        return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=errors, text=True, env=environment())


@contextmanager
def server_process(models: Path, directory: Path, *flags: str) -> Iterator[ServerProcess]:
    """A ready server; killed at the end if the test did not stop it."""
    errors_path = directory / f"stderr-{time.monotonic_ns()}.txt"
    process = start_process(models, errors_path, *flags)
    assert process.stdout is not None
    try:
        line = process.stdout.readline()
        ready = READY.fullmatch(line)
        assert ready, (line, errors_path.read_text(encoding="utf-8"))
        yield ServerProcess(process, ready[1], ready[2], line, errors_path)
    finally:
        if process.poll() is None:
            process.kill()
        process.wait(PATIENCE_SECONDS)
        process.stdout.close()


@dataclass
class HeldServer:
    """A server in the test's own event loop, over a runner that makes a step only when it is let."""

    server: Server
    config: Config
    runner: FakeRunner
    output: StringIO
    task: "asyncio.Task[int]"
    load: threading.Event
    """Set: the models may be loaded."""
    go: threading.Event
    """Set: steps are made."""
    models: list[ServedModel] = field(default_factory=list)

    @property
    def address(self) -> str:
        """Where it listens."""
        return self.server.address

    async def until(self, condition: Callable[[], bool]) -> None:
        """Lets the event loop go on until a condition holds."""
        ends_at = time.monotonic() + PATIENCE_SECONDS
        while not condition():
            assert time.monotonic() < ends_at
            assert not self.task.done() or condition(), self.task
            await asyncio.sleep(0)

    async def until_ready(self) -> None:
        """Until it takes calls."""
        self.load.set()
        await self.until(lambda: "Serving" in self.output.getvalue())

    @property
    def server_calls(self) -> int:
        """Translate calls in progress."""
        return self.server.servicer.calls.num_calls

    def calls_by_code(self) -> dict[str, float]:
        """Translate calls that ended, as the metrics count them, by status code."""
        samples = (sample for family in self.server._metrics.registry.collect() for sample in family.samples)
        return {sample.labels["code"]: sample.value for sample in samples if sample.name == "dragoman_requests_total"
                and sample.value}  # fmt: skip

    def signal(self, number: signal.Signals = signal.SIGTERM) -> None:
        """As the system would."""
        os.kill(os.getpid(), number)

    @property
    def loop(self) -> EngineLoop:
        """Its engine's loop."""
        return self.models[0].loop.loops[0]


def loop_over(
    runner: FakeRunner, config: Config, *, deliver: Callable[[Any], None], observe: Callable[[StepReport], None]
) -> EngineLoop:
    """A loop that is not started."""
    engine = Engine.over(
        runner,
        max_waiting_sequences=config.limits.max_waiting_segments,
        max_waiting_tokens=config.limits.max_waiting_tokens,
        reserved_share=config.limits.reserved_share,
        bulk_patience_seconds=config.limits.bulk_patience_seconds,
    )
    return EngineLoop(engine, deliver=deliver, observe=observe)


def fake_model(runner: FakeRunner, loop: EngineLoop, tokenizer: Tokenizer, **fields: Any) -> ServedModel:
    """A model over a fake runner."""
    given: dict[str, Any] = {"name": "fake", "digest": "0" * 64, **fields}
    return ServedModel(
        precision="fp32",
        source_language="en",
        target_language="zh",
        tokenizer=tokenizer,
        loop=LoopGroup([loop]),
        max_source_tokens=runner.max_source_tokens,
        max_target_tokens=runner.max_target_tokens,
        max_rows=runner.max_rows,
        is_same_bytes=True,
        provider="cpu",
        num_threads=1,
        **given,
    )


@asynccontextmanager
async def held_server(models: Path, **flags: Any) -> AsyncIterator[HeldServer]:
    """A server that has not loaded its models yet, and makes no step until `go` is set."""
    bundle = load_bundle(models / "synthetic")
    settings = {
        "address": "127.0.0.1:0",
        "metrics_address": "",
        "shutdown_delay_seconds": 0.0,
        "max_rows": 4,
        "models": str(models),
    }
    config = load_config(flags={**settings, **flags})
    runner = FakeRunner(
        max_rows=config.engine.max_rows,
        max_source_tokens=64,
        max_target_tokens=64,
        source_vocabulary_size=bundle.architecture.source_vocabulary,
    )
    load, go = threading.Event(), threading.Event()

    def before_step() -> None:
        assert go.wait(PATIENCE_SECONDS)

    runner.before_step = before_step
    served: list[ServedModel] = []

    def load_models(
        config: Config, *, deliver: Callable[[list[Sequence]], None], observe: Callable[[StepReport], None]
    ) -> list[ServedModel]:
        assert load.wait(PATIENCE_SECONDS)
        forecast = Forecast()

        def observe_both(report: StepReport) -> None:
            forecast.observe_step(report)
            observe(report)

        loop = loop_over(runner, config, deliver=deliver, observe=observe_both)
        served.append(fake_model(runner, loop, bundle.tokenizer, forecast=forecast))
        return served

    output = StringIO()
    with mock.patch.object(server_module, "load_models", load_models):
        server = Server(config, output=output)
        task = asyncio.create_task(server.run())
        held = HeldServer(server, config, runner, output, task, load, go, served)
        try:
            await held.until(lambda: not held.address.endswith(":0"))
            yield held
        finally:
            go.set()
            load.set()
            if not task.done():
                server.stop(signal.SIGINT)
                server.stop(signal.SIGINT)
            await task


@asynccontextmanager
async def stub_of(address: str) -> AsyncIterator[Any]:
    """A plain client: what tests hold against the interface itself."""
    options = [("grpc.max_receive_message_length", -1)]
    async with grpc.aio.insecure_channel(address, options) as channel:
        yield translation_pb2_grpc.TranslationServiceStub(channel)  # type: ignore[no-untyped-call]


def request(*contents: str, **fields: Any) -> pb.TranslateTextRequest:
    """A translate request."""
    return pb.TranslateTextRequest(contents=contents, **fields)


async def health_of(address: str, name: str) -> str:
    """The health of a service by name, or the status code of the call."""
    async with grpc.aio.insecure_channel(address) as channel:
        stub: Any = health_pb2_grpc.HealthStub(channel)
        try:
            reply = await stub.Check(health_pb2.HealthCheckRequest(service=name), timeout=PATIENCE_SECONDS)
        except grpc.aio.AioRpcError as error:
            return error.code().name
    return health_pb2.HealthCheckResponse.ServingStatus.Name(reply.status)


@dataclass(frozen=True)
class Refusal:
    """A call that was not answered, with its details unpacked."""

    code: str
    message: str
    reason: str
    fields: list[str]
    served: str
    retry_seconds: float | None
    pushback: str | None
    request_id: str | None


async def refusal_of(call: Any) -> Refusal:
    """Waits for a call that must fail."""
    try:
        reply = await call
    except grpc.aio.AioRpcError as error:
        return unpack(error)
    raise AssertionError(f"The call must fail, but was answered: {reply}")


def unpack(error: Any) -> Refusal:
    """The details of a failed call."""
    trailers = dict(error.trailing_metadata() or ())
    status = status_pb2.Status.FromString(trailers.get("grpc-status-details-bin", b""))
    info, bad, resource = (
        error_details_pb2.ErrorInfo(),
        error_details_pb2.BadRequest(),
        error_details_pb2.ResourceInfo(),
    )
    retry = error_details_pb2.RetryInfo()
    has_retry = False
    for detail in status.details:
        for message in (info, bad, resource):
            detail.Unpack(message)
        has_retry = detail.Unpack(retry) or has_retry
    return Refusal(
        code=error.code().name,
        message=error.details() or "",
        reason=info.reason,
        fields=[violation.field for violation in bad.field_violations],
        served=resource.description,
        retry_seconds=retry.retry_delay.ToMilliseconds() / 1000 if has_retry else None,
        pushback=trailers.get("grpc-retry-pushback-ms"),
        request_id=trailers.get("x-request-id"),
    )
