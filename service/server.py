"""The life of a server: startup → main loop → shutdown.

Signal handlers, health and the gRPC port come first and the models after them, so that a server that is still loading
can be probed and stopped. SIGTERM: readiness goes off, calls are still taken for a moment, then refused; what runs is
finished; exit code 0. A second signal stops at once.
"""

import asyncio
import logging
import signal
import sys
from pathlib import Path
from typing import Any, TextIO

import grpc
from grpc_health.v1 import health_pb2_grpc as health_grpc

from service import logs
from service.access import access_of
from service.admin import SERVICE as ADMIN_SERVICE
from service.admin import AdminServicer
from service.bundle import BundleError
from service.catalog import CatalogView
from service.config import Config
from service.daemon_thread import in_daemon_thread
from service.handlers import SERVICE_NAME, add_methods
from service.health import Health
from service.metrics import Metrics, MetricsServer
from service.models import ModelsError, default_models, load_models
from service.ports import StartError, listen, listen_metrics
from service.reflection import add_reflection
from service.servicer import TranslationServicer
from service.swap import Swap
from service.tls import ServerCertificates
from service.watch import Watch
from service.watched_files import FilesError

logger = logging.getLogger(__name__)

EXIT_OK = 0
EXIT_FAILED = 1
_STOP_SECONDS = 0.2
"""How long the end waits for an engine's thread; one that hangs in a step ends with the process."""
_HEALTH_NAME = "grpc.health.v1.Health"


def serve(config: Config, *, output: TextIO | None = None) -> int:
    """Runs a server in the main thread until it is told to stop; its one line goes to `output` (stdout) when ready.

    Returns:
        The exit code: 0 after an orderly stop, 1 when it cannot start or had to give up running calls, 128 + the
        signal's number when a second signal stopped it.
    """
    logs.set_up(log_format=config.logs.log_format, log_level=config.logs.log_level)
    try:
        return asyncio.run(_run(config, output or sys.stdout))
    except (StartError, FilesError, BundleError, ModelsError) as error:
        print(f"The server cannot start: {error}", file=sys.stderr)
        return EXIT_FAILED


async def _run(config: Config, output: TextIO) -> int:
    return await Server(config, output=output).run()


class Server:
    """One server process. Made and used inside its event loop."""

    def __init__(self, config: Config, *, output: TextIO) -> None:
        self._config = config
        self._output = output
        self._metrics = Metrics()
        self.health = Health()
        """What health checks are answered with."""
        self._signals: asyncio.Queue[signal.Signals] = asyncio.Queue()
        failed = self._metrics.observe_failed_reload
        self._certificates: ServerCertificates | None = None
        if config.tls.tls_certificate:
            self._certificates = ServerCertificates(config.tls, on_failure=lambda: failed("certificates"))
            self._metrics.observe_certificate(self._certificates.expires_at)
        access = access_of(config, on_failure=lambda: failed("api_keys"))
        self.servicer = TranslationServicer(config, self._metrics, event_loop=asyncio.get_running_loop(), access=access)
        """Answers the calls."""
        self._catalog = self.servicer.catalog
        self._metrics.observe_models(lambda: self._catalog.models)
        self.swap = Swap(
            config,
            self._catalog,
            deliver=self.servicer.deliver,
            observe=self._metrics.observe_step,
            clock=asyncio.get_running_loop().time,
        )
        """Changes what is served."""
        self.address = config.server.address
        """Where it listens; the port is the real one once it does."""
        self.admin_address = config.server.admin_address
        """The same of the admin port; "": none."""
        self._metrics_address = ""

    def stop(self, number: signal.Signals) -> None:
        """What a signal does: the first begins the orderly stop, the second ends it."""
        self._signals.put_nowait(number)

    async def run(self) -> int:
        """See `serve`.

        Raises:
            StartError: when an address cannot be bound.
            ModelsError, BundleError: when the models cannot be served.
        """
        event_loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            event_loop.add_signal_handler(number, self.stop, number)
        grpc_server = await self._listen()
        admin_server: grpc.aio.Server | None = None
        metrics_server: MetricsServer | None = None
        tasks: list[asyncio.Task[None]] = []
        try:
            metrics_server, self._metrics_address = listen_metrics(self._config, self._metrics)
            if self.admin_address:
                admin_server, self.admin_address = await listen(
                    self._config, self._add_admin, certificates=self._certificates, setting="admin_address"
                )
            first = await self._load()
            if first is None:
                tasks.append(asyncio.create_task(self.health.watch(lambda: self._catalog.models)))
                if poll_seconds := self._config.server.models_poll_seconds:
                    watch = Watch(Path(self._config.server.models), self._catalog, self.swap)
                    tasks.append(asyncio.create_task(watch.run(poll_seconds)))
                await self.health.set_ready(True)
                print(self._ready_line(), file=self._output, flush=True)
                first = await self._signals.get()
            return await self._shut_down(first, grpc_server)
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            await self.swap.close()
            for server in filter(None, (grpc_server, admin_server)):
                await server.stop(0)
            for model in self._catalog.in_use:
                model.loop.stop(_STOP_SECONDS)
            if metrics_server is not None:
                metrics_server.stop()

    async def _listen(self) -> "grpc.aio.Server":
        """Starts gRPC: health answers, calls are told to come back."""
        await self.health.set_ready(False)
        server, self.address = await listen(self._config, self._add_services, certificates=self._certificates)
        return server

    def _add_services(self, server: "grpc.aio.Server") -> None:
        add_methods(self.servicer, server)
        health_grpc.add_HealthServicer_to_server(self.health.servicer, server)
        if self._config.server.reflection:
            add_reflection((SERVICE_NAME, _HEALTH_NAME), self.servicer.calls, server)

    def _add_admin(self, server: "grpc.aio.Server") -> None:
        access = self._config.access
        needs_administrator = bool(access.api_keys_file or access.bearer_hook)
        servicer = AdminServicer(self._catalog, self.swap, self.servicer.calls, needs_administrator=needs_administrator)
        add_methods(servicer, server, service=ADMIN_SERVICE)

    async def _load(self) -> signal.Signals | None:
        """Loads the models while the event loop answers health checks.

        Returns:
            None when calls are taken, or the signal that came before.
        """
        loading = in_daemon_thread(
            lambda: load_models(self._config, deliver=self.servicer.deliver, observe=self._metrics.observe_step),
            name="load",
        )
        stopping = asyncio.create_task(self._signals.get())
        waited_for: list[asyncio.Future[Any]] = [loading, stopping]
        await asyncio.wait(waited_for, return_when=asyncio.FIRST_COMPLETED)
        if stopping.done():
            return stopping.result()
        stopping.cancel()
        models = loading.result()
        for model in models:
            model.loop.start()
        clock = asyncio.get_running_loop().time
        defaults = default_models(self._config)
        self.servicer.begin_serving(CatalogView.of(models, self._config, clock=clock, defaults=defaults))
        for model in models:
            facts = {"model": model.name, "digest": model.digest, "precision": model.precision}
            logger.info("A model is served.", extra={**facts, "num_threads": model.num_threads})
        return None

    def _ready_line(self) -> str:
        models = "; ".join(
            f"model {model.name} {model.digest[:12]} {model.precision}, "
            f"{len(model.loop.loops)} engine(s) on {model.num_threads} thread(s), {model.provider}"
            for model in self._catalog.models
        )
        metrics = f"metrics on {self._metrics_address}" if self._metrics_address else "no metrics"
        admin = f", admin on {self.admin_address}" if self.admin_address else ""
        return f"Serving on {self.address}, {metrics}{admin}: {models}"

    async def _shut_down(self, first: signal.Signals, grpc_server: "grpc.aio.Server") -> int:
        """From the first signal to the exit code."""
        orderly = asyncio.create_task(self._drain(first, grpc_server))
        second = asyncio.create_task(self._signals.get())
        waited_for: list[asyncio.Future[Any]] = [orderly, second]
        await asyncio.wait(waited_for, return_when=asyncio.FIRST_COMPLETED)
        if orderly.done():
            second.cancel()
            return orderly.result()
        orderly.cancel()
        logger.warning("A second signal: stopping at once.", extra={"num_calls": self.servicer.calls.num_calls})
        return 128 + second.result()

    async def _drain(self, first: signal.Signals, grpc_server: "grpc.aio.Server") -> int:
        shutdown = self._config.shutdown
        logger.info(
            "Stopping: not ready any more.", extra={"signal": first.name, "num_calls": self.servicer.calls.num_calls}
        )
        await self.health.set_ready(False)
        if first is signal.SIGTERM and self._catalog.models:
            await asyncio.sleep(shutdown.shutdown_delay_seconds)
        self.servicer.begin_draining()
        await self.swap.close()
        for model in self._catalog.in_use:
            model.loop.begin_drain()
        logger.info("Stopping: calls are refused.", extra={"num_calls": self.servicer.calls.num_calls})
        try:
            await asyncio.wait_for(self.servicer.calls.wait_idle(), shutdown.drain_seconds)
        except TimeoutError:
            logger.error(
                "Stopping: calls that did not finish are given up.", extra={"num_calls": self.servicer.calls.num_calls}
            )
            return EXIT_FAILED
        # A call that reaches gRPC while it stops is cut off without a reason: refuse for as long as calls come.
        await self.servicer.calls.wait_quiet()
        await grpc_server.stop(1.0)  # replies that are on their way
        logger.info("Stopped.")
        return EXIT_OK
