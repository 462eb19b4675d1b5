"""What the metrics page says after a step or a call."""

import itertools
import math
import sys
import threading
import types

import pytest
from prometheus_client import generate_latest
from prometheus_client.parser import text_string_to_metric_families

from service.engine import Engine
from service.engine_loop import EngineLoop
from service.metrics import REQUEST_BUCKETS, STEP_BUCKETS, Metrics
from service.options import DecodingOptions
from service.request import FinishReason, Hypothesis, Sequence
from service.step_report import StepReport
from tests.synthetic.fake_runner import FakeRunner


def samples(metrics: Metrics) -> dict[str, float]:
    """Every sample by its name and labels."""
    families = text_string_to_metric_families(generate_latest(metrics.registry).decode())
    return {
        sample.name + "".join(f"{{{key}={value}}}" for key, value in sorted(sample.labels.items())): sample.value
        for family in families
        for sample in family.samples
        if sample.name.startswith("dragoman_")
    }


def finished(reason: FinishReason, *, num_tokens: int = 4, num_steps: int = 4) -> Sequence:
    sequence = Sequence(source_ids=(5, 3))
    sequence.hypotheses = [
        Hypothesis(
            target_ids=[7] * num_tokens,
            token_log_probabilities=[-0.5] * num_tokens,
            score=-0.5 * num_tokens,
            normalized_score=-0.5,
            finish_reason=reason,
            attention=None,
        )
    ]
    sequence.submitted_at, sequence.admitted_at = 10.0, 10.25
    sequence.first_token_at, sequence.finished_at = 10.5, 10.5 + 0.01 * (num_tokens - 1)
    sequence.num_steps = num_steps
    sequence.finish_reason = reason
    return sequence


def report(*sequences: Sequence, num_rows: int = 3, encode_error: Exception | None = None) -> StepReport:
    return StepReport(
        finished=list(sequences),
        progress=[],
        num_rows=num_rows,
        num_steps=1,
        num_admitted=2,
        num_dropped=0,
        num_dropped_steps=0,
        num_failed=0,
        num_waiting=0,
        num_target_tokens=num_rows,
        num_source_tokens=12,
        num_padded_source_tokens=16,
        encode_seconds=0.002,
        decode_seconds=0.001,
        step_seconds=0.004,
        encode_error=encode_error,
        decode_error=None,
    )


def test_a_step() -> None:
    metrics = Metrics()
    metrics.observe_step(report(finished(FinishReason.STOP)))
    seen = samples(metrics)
    assert seen["dragoman_segments_total{finish_reason=stop}"] == 1
    assert seen["dragoman_source_tokens_total"] == 12
    assert seen["dragoman_padded_source_tokens_total"] == 16
    assert seen["dragoman_padding_ratio"] == 0.25
    assert seen["dragoman_target_tokens_total"] == 3
    assert seen["dragoman_rows_per_step_sum"] == 3
    assert seen["dragoman_step_seconds_sum"] == 0.004
    assert seen["dragoman_encode_seconds_sum"] == 0.002
    assert seen["dragoman_queue_seconds_sum"] == 0.25
    assert seen["dragoman_time_to_first_token_seconds_sum"] == 0.5
    assert seen["dragoman_inter_token_seconds_sum"] == pytest.approx(0.01)


class Interruptible(int):
    """A number whose addition other threads can come between, as they may between the bytecodes of any addition."""

    def __radd__(self, other: int) -> int:
        for _ in range(20):
            threading.get_ident()
        return other + int(self)


def test_steps_of_several_engines_are_all_counted() -> None:
    metrics = Metrics()
    made = report(num_rows=0)._replace(num_source_tokens=Interruptible(12), num_padded_source_tokens=Interruptible(16))
    engines = [
        threading.Thread(target=lambda: [metrics.observe_step(made) for _ in range(300)]) for _ in range(4)
    ]  # fmt: skip
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        for engine in engines:
            engine.start()
        for engine in engines:
            engine.join()
    finally:
        sys.setswitchinterval(interval)
    assert (metrics._num_source_tokens, metrics._num_padded_source_tokens) == (12 * 1200, 16 * 1200)
    assert metrics.padding_ratio() == 0.25


def test_steps_that_nobody_got_are_wasted() -> None:
    metrics = Metrics()
    metrics.observe_step(
        report(
            finished(FinishReason.CANCELLED, num_steps=5),
            finished(FinishReason.EXPIRED, num_steps=7),
            finished(FinishReason.FAILED, num_steps=0),
        )
    )
    seen = samples(metrics)
    assert seen["dragoman_wasted_steps_total{reason=cancelled}"] == 5
    assert seen["dragoman_wasted_steps_total{reason=expired}"] == 7
    assert seen["dragoman_segments_total{finish_reason=failed}"] == 1
    assert seen["dragoman_queue_seconds_count"] == 0


def test_wasted_steps_count_each_row() -> None:
    metrics = Metrics()
    beam = finished(FinishReason.CANCELLED, num_steps=5)
    beam.options = DecodingOptions(beam_size=4)
    metrics.observe_step(report(beam)._replace(num_late_steps=4, num_preempted=2, num_preempted_steps=30))
    seen = samples(metrics)
    assert seen["dragoman_wasted_steps_total{reason=cancelled}"] == 20
    assert seen["dragoman_late_steps_total"] == 4
    assert seen["dragoman_preempted_steps_total"] == 30


def test_a_segment_of_one_token_has_no_time_between_tokens() -> None:
    metrics = Metrics()
    metrics.observe_step(report(finished(FinishReason.LENGTH, num_tokens=1)))
    seen = samples(metrics)
    assert seen["dragoman_inter_token_seconds_count"] == 0
    assert seen["dragoman_time_to_first_token_seconds_count"] == 1


def test_failed_steps_are_counted() -> None:
    metrics = Metrics()
    metrics.observe_step(report(num_rows=0, encode_error=RuntimeError("x")))
    assert samples(metrics)["dragoman_failed_steps_total"] == 1
    assert samples(metrics)["dragoman_step_seconds_count"] == 0


def test_calls() -> None:
    metrics = Metrics()
    metrics.observe_call("OK", 0.07)
    metrics.observe_call("INVALID_ARGUMENT", 0.5)
    metrics.observe_blank(3)
    seen = samples(metrics)
    assert seen["dragoman_requests_total{code=OK}"] == 1
    assert seen["dragoman_requests_total{code=INVALID_ARGUMENT}"] == 1
    assert seen["dragoman_request_seconds_count"] == 1  # of calls that were answered
    assert seen["dragoman_request_seconds_bucket{le=0.08}"] == 1
    assert seen["dragoman_request_seconds_bucket{le=0.06}"] == 0
    assert seen["dragoman_segments_total{finish_reason=blank}"] == 3


def test_rejections_are_counted_by_reason_with_their_time() -> None:
    metrics = Metrics()
    metrics.observe_rejection("QUEUE_FULL", 0.0005)
    metrics.observe_rejection("STANDING_DELAY", 0.002)
    metrics.observe_rejection("STANDING_DELAY", 0.004)
    seen = samples(metrics)
    assert seen["dragoman_rejections_total{reason=STANDING_DELAY}"] == 2
    assert seen["dragoman_rejections_total{reason=QUEUE_FULL}"] == 1
    assert seen["dragoman_rejection_seconds_bucket{le=0.0025}"] == 2
    assert seen["dragoman_rejection_seconds_count"] == 3


def test_gauges_count_segments_and_their_rows() -> None:
    engine = Engine.over(FakeRunner(max_rows=8))
    loop = EngineLoop(engine)
    options = DecodingOptions(beam_size=4)
    engine.submit([Sequence(source_ids=(5, 6, 3), options=given) for given in (options, DecodingOptions(), options)])
    engine.step()
    model = types.SimpleNamespace(
        name="m", digest="d", precision="int8", provider="cpu", is_same_bytes=True, loop=loop, max_rows=8,
        delay_seconds=lambda: 1.5,
    )  # fmt: skip
    metrics = Metrics()
    metrics.observe_models(lambda: [model])  # type: ignore[list-item]
    seen = samples(metrics)
    assert seen["dragoman_predicted_delay_seconds"] == 1.5
    assert (seen["dragoman_running"], seen["dragoman_waiting"]) == (2, 1)
    assert seen["dragoman_waiting_by_priority{priority=interactive}"] == 1
    assert seen["dragoman_waiting_by_priority{priority=bulk}"] == 0
    assert (seen["dragoman_slots_used"], seen["dragoman_slots_capacity"]) == (5, 8)


def test_buckets_are_fine_where_translations_are() -> None:
    assert sum(bucket < 0.3 for bucket in REQUEST_BUCKETS) == 11
    assert STEP_BUCKETS[0] == 1e-4
    assert all(math.isclose(b, 2 * a) for a, b in itertools.pairwise(STEP_BUCKETS))


def test_labels_hold_no_text_ids_or_addresses() -> None:
    metrics = Metrics()
    metrics.observe_call("OK", 0.1)
    metrics.observe_step(report(finished(FinishReason.STOP)))
    allowed = {"code", "finish_reason", "reason", "model", "digest", "precision", "provider", "priority", "le"}
    for family in metrics.registry.collect():
        for sample in family.samples:
            assert set(sample.labels) <= allowed
