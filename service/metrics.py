"""Every metric of the service, and the only file that touches Prometheus.

Names begin with `dragoman_`, units are base units, labels never hold text, ids or addresses. Counters and histograms
are updated once a step or once a call; gauges are read from the engine when the page is asked for, so that the decoding
loop pays nothing for them. docs/behaviour.md lists what is here.
"""

import math
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from wsgiref.simple_server import WSGIServer

from prometheus_client import CollectorRegistry, Counter, Histogram, disable_created_metrics, start_http_server
from prometheus_client.core import GaugeMetricFamily, Metric
from prometheus_client.process_collector import ProcessCollector
from prometheus_client.registry import Collector

from service.request import FinishReason, Priority
from service.served_model import ServedModel
from service.step_report import StepReport
from service.translator import mean_inter_token_seconds

REQUEST_BUCKETS = (.001, .0025, .005, .01, .02, .04, .06, .08, .1, .15, .2, .3, .5, .75, 1, 2, 5, 10, 30)  # fmt: skip
"""Seconds; finer below 0.3 than is usual, because that is where a translation is."""
STEP_BUCKETS = tuple(1e-4 * 2**n for n in range(14))
"""Seconds: 0.1 ms to 0.8 s."""
ROWS_BUCKETS = (1, 2, 4, 8, 12, 16, 24, 32, 48, 64, 96, 128, 192, 256)
"""Rows of a step."""


class Metrics:
    """The metrics of one server. Updated from the engine's threads and the event loop."""

    def __init__(self) -> None:
        disable_created_metrics()  # a second series for each, of no use beside the process's own start time
        self.registry = CollectorRegistry()
        registry = self.registry
        ProcessCollector(registry=registry)
        self._requests = Counter(
            "dragoman_requests", "Calls that ended, of all kinds, by gRPC status code.", ["code"], registry=registry
        )
        self._segments = Counter(
            "dragoman_segments", "Segments that ended, by finish reason.", ["finish_reason"], registry=registry
        )
        self._source_tokens = Counter(
            "dragoman_source_tokens", "Source tokens encoded, without padding.", registry=registry
        )
        self._padded_source_tokens = Counter(
            "dragoman_padded_source_tokens", "Source tokens encoded, padding included.", registry=registry
        )
        self._target_tokens = Counter("dragoman_target_tokens", "Target tokens decoded.", registry=registry)
        self._wasted_steps = Counter(
            "dragoman_wasted_steps",
            "Decoding steps of segments that nobody got, by why: a row taking part in one step counts one.",
            ["reason"],
            registry=registry,
        )
        self._late_steps = Counter(
            "dragoman_late_steps",
            "Decoding steps, counted by rows, that began when their call was cancelled or its deadline had passed.",
            registry=registry,
        )
        self._preempted_steps = Counter(
            "dragoman_preempted_steps",
            "Decoding steps of bulk segments, counted by rows, that are made again because interactive ones came.",
            registry=registry,
        )
        self._failed_steps = Counter(
            "dragoman_failed_steps", "Encoder runs and decoding steps that failed.", registry=registry
        )
        self._rejections = Counter(
            "dragoman_rejections",
            "Calls that were refused because there was too much to do, by the reason of their status.",
            ["reason"],
            registry=registry,
        )
        self._failed_reloads = Counter(
            "dragoman_failed_reloads",
            "Changed certificates or keys that could not be used, so that what was read before stays.",
            ["what"],
            registry=registry,
        )
        self._request_seconds = Histogram(
            "dragoman_request_seconds",
            "Duration of translate calls that were answered, as the server saw it.",
            buckets=REQUEST_BUCKETS,
            registry=registry,
        )
        self._rejection_seconds = Histogram(
            "dragoman_rejection_seconds",
            "Duration of calls that were refused because there was too much to do, as the server saw it.",
            buckets=REQUEST_BUCKETS,
            registry=registry,
        )
        self._queue_seconds = Histogram(
            "dragoman_queue_seconds",
            "From the submission of a segment until it joined the batch.",
            buckets=REQUEST_BUCKETS,
            registry=registry,
        )
        self._first_token_seconds = Histogram(
            "dragoman_time_to_first_token_seconds",
            "From the submission of a segment until its first target token.",
            buckets=REQUEST_BUCKETS,
            registry=registry,
        )
        self._inter_token_seconds = Histogram(
            "dragoman_inter_token_seconds",
            "Mean time between the target tokens of a segment.",
            buckets=STEP_BUCKETS,
            registry=registry,
        )
        self._encode_seconds = Histogram(
            "dragoman_encode_seconds", "Duration of encoder runs.", buckets=STEP_BUCKETS, registry=registry
        )
        self._step_seconds = Histogram(
            "dragoman_step_seconds",
            "Duration of the engine's steps, encoder run included; several greedy steps in one run count once.",
            buckets=STEP_BUCKETS,
            registry=registry,
        )
        self._rows_per_step = Histogram(
            "dragoman_rows_per_step", "Rows that decoded in a step.", buckets=ROWS_BUCKETS, registry=registry
        )
        # Children are looked up once: `labels()` takes a lock and builds a key at each call.
        self._segments_by_reason = {reason: self._segments.labels(reason.value) for reason in FinishReason}
        self._wasted_by_reason = {
            reason: self._wasted_steps.labels(reason.value)
            for reason in (FinishReason.CANCELLED, FinishReason.EXPIRED, FinishReason.FAILED)
        }
        self._requests_by_code = {"OK": self._requests.labels("OK")}
        self._padding_lock = threading.Lock()  # several engines' threads add, the page's reads
        self._num_source_tokens = 0
        self._num_padded_source_tokens = 0
        self._gauges = _Gauges(self)
        registry.register(self._gauges)

    def observe_models(self, models: Callable[[], Sequence[ServedModel]]) -> None:
        """The gauges show the state of what `models` gives when the page is asked for, in whatever thread."""
        self._gauges.models = models

    def observe_certificate(self, expires_at: Callable[[], float]) -> None:
        """The page shows what `expires_at` gives when it is asked for: when the certificate ends."""
        self._gauges.certificate_expires_at = expires_at

    def observe_failed_reload(self, what: str) -> None:
        """Files that have changed could not be used."""
        self._failed_reloads.labels(what).inc()

    def observe_call(self, code: str, seconds: float) -> None:
        """A translate call ended with a status code (by its name) after `seconds`."""
        counter = self._requests_by_code.get(code)
        if counter is None:
            counter = self._requests_by_code[code] = self._requests.labels(code)
        counter.inc()
        if code == "OK":
            self._request_seconds.observe(seconds)

    def observe_rejection(self, reason: str, seconds: float) -> None:
        """A call was refused after `seconds` because there was too much to do."""
        self._rejections.labels(reason).inc()
        self._rejection_seconds.observe(seconds)

    def observe_blank(self, num_segments: int) -> None:
        """Segments that had nothing to translate."""
        self._segments_by_reason[FinishReason.BLANK].inc(num_segments)

    def observe_step(self, report: StepReport) -> None:
        """An engine made a step. Called in its thread, between two steps: a few microseconds."""
        if report.num_rows:
            self._step_seconds.observe(report.step_seconds)
            self._rows_per_step.observe(report.num_rows)
            self._target_tokens.inc(report.num_target_tokens)
        if report.num_padded_source_tokens:
            self._encode_seconds.observe(report.encode_seconds)
            self._source_tokens.inc(report.num_source_tokens)
            self._padded_source_tokens.inc(report.num_padded_source_tokens)
            with self._padding_lock:
                self._num_source_tokens += report.num_source_tokens
                self._num_padded_source_tokens += report.num_padded_source_tokens
        if report.encode_error is not None:
            self._failed_steps.inc()
        if report.decode_error is not None:
            self._failed_steps.inc()
        if report.num_preempted:
            self._preempted_steps.inc(report.num_preempted_steps)
        if report.num_late_steps:
            self._late_steps.inc(report.num_late_steps)
        for sequence in report.finished:
            reason = sequence.finish_reason
            assert reason is not None
            self._segments_by_reason[reason].inc()
            if reason in self._wasted_by_reason:
                self._wasted_by_reason[reason].inc(sequence.num_row_steps)
                continue
            self._queue_seconds.observe(sequence.admitted_at - sequence.submitted_at)
            self._first_token_seconds.observe(sequence.first_token_at - sequence.submitted_at)
            inter_token_seconds = mean_inter_token_seconds(sequence)
            if not math.isnan(inter_token_seconds):
                self._inter_token_seconds.observe(inter_token_seconds)

    def padding_ratio(self) -> float:
        """Share of padding in all source tokens that were encoded; 0.0 before the first."""
        with self._padding_lock:
            num_tokens, num_padded = self._num_source_tokens, self._num_padded_source_tokens
        return 1.0 - num_tokens / num_padded if num_padded else 0.0

    def serve(self, address: str) -> tuple[str, "MetricsServer"]:
        """Serves the page at `address` (host:port) from a thread.

        Returns:
            The address it is really at (port 0 is chosen by the system), and what stops it.

        Raises:
            OSError: when it cannot listen there.
        """
        host, _, port = address.rpartition(":")
        server, thread = start_http_server(int(port), addr=host.strip("[]"), registry=self.registry)
        return f"{host}:{server.server_port}", MetricsServer(server, thread)


class MetricsServer:
    """The running page."""

    def __init__(self, server: WSGIServer, thread: threading.Thread) -> None:
        self._server = server
        self._thread = thread

    def stop(self) -> None:
        """Stops listening and waits for the thread."""
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()


class _Gauges(Collector):
    """What is read from the engines at the moment the page is asked for."""

    def __init__(self, metrics: Metrics) -> None:
        self.models: Callable[[], Sequence[ServedModel]] = tuple
        self.certificate_expires_at: Callable[[], float] | None = None
        self._metrics = metrics

    def describe(self) -> Iterable[Metric]:
        """The families without samples: what registering needs."""
        return self._families([])

    def collect(self) -> Iterator[Metric]:
        """The families as of now."""
        yield from self._families(self.models())

    def _families(self, models: Sequence[ServedModel]) -> list[Metric]:
        loops = [model.loop for model in models]
        num_running = sum(loop.num_running for loop in loops)
        families = [
            GaugeMetricFamily("dragoman_running", "Segments that are being decoded.", num_running),
            GaugeMetricFamily(
                "dragoman_waiting", "Segments that wait for a row.", sum(loop.num_waiting for loop in loops)
            ),
            GaugeMetricFamily(
                "dragoman_oldest_wait_seconds",
                "How long the segment that waits longest has waited.",
                max((loop.oldest_wait_seconds() for loop in loops), default=0.0),
            ),
            GaugeMetricFamily(
                "dragoman_predicted_delay_seconds",
                "How much work is ahead of a call that comes now, of the model that has most.",
                max((model.delay_seconds() for model in models), default=0.0),
            ),
            GaugeMetricFamily(
                "dragoman_slots_used",
                "Rows of the key/value slabs in use: as many for a segment as it has hypotheses.",
                sum(loop.num_used_rows for loop in loops),
            ),
            GaugeMetricFamily(
                "dragoman_slots_capacity", "Rows of the key/value slabs.", sum(model.max_rows for model in models)
            ),
            GaugeMetricFamily(
                "dragoman_padding_ratio",
                "Share of padding in the source tokens encoded since the start.",
                self._metrics.padding_ratio(),
            ),
            GaugeMetricFamily(
                "dragoman_stalled_seconds",
                "How long an engine with work has made no progress.",
                max((loop.stalled_seconds() for loop in loops), default=0.0),
            ),
        ]
        waiting = GaugeMetricFamily(
            "dragoman_waiting_by_priority", "Segments that wait for a row, by priority.", labels=["priority"]
        )
        for priority in Priority:
            waiting.add_metric([priority.value], sum(loop.num_waiting_of(priority) for loop in loops))
        info = GaugeMetricFamily(
            "dragoman_model_info", "Models that are served.", labels=["model", "digest", "precision", "provider"]
        )
        probe = GaugeMetricFamily(
            "dragoman_same_bytes_probe",
            "1 when the same-bytes probe passed on this machine at start.",
            labels=["model"],
        )
        certificate = GaugeMetricFamily(
            "dragoman_certificate_expiry_timestamp_seconds",
            "When the server's certificate ends, in seconds since 1970; with TLS only.",
        )
        if self.certificate_expires_at is not None:
            certificate.add_metric([], self.certificate_expires_at())
        for model in models:
            info.add_metric([model.name, model.digest, model.precision, model.provider], 1)
            probe.add_metric([model.name], float(model.is_same_bytes))
        return [*families, waiting, certificate, info, probe]
