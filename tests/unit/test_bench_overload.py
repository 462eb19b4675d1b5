"""What is made of the calls of an overload."""

import math
import os
from typing import Any

from benchmarks.load import Call
from benchmarks.overload import (
    SETTINGS,
    bucket_percentile,
    markdown,
    num_differing,
    outcome_of,
    sampled_memory,
)
from benchmarks.server_process import NO_REFUSAL
from service.config import settings
from service.pb.translation.v1 import translation_pb2 as pb


def call(due: float, latency: float, code: str = "OK", text: str = "") -> Call:
    reply = pb.TranslateTextResponse(translations=[pb.Translation(translated_text=text)]).SerializeToString()
    return Call(
        due_seconds=due, sent_seconds=due + 0.001, ended_seconds=due + latency, code=code, reply=reply if text else b""
    )


def outcome(calls: list[Call], messages: list[bytes], known: dict[bytes, str]) -> Any:
    return outcome_of(calls, messages, known, offered_per_second=10.0, seconds=2.0)


def test_accepted_and_refused_calls_have_percentiles_of_their_own_without_the_beginning() -> None:
    calls = [
        call(0.5, 9.0, text="early"),
        call(0.6, 9.0, "RESOURCE_EXHAUSTED"),
        *[call(1.0 + i / 100, 0.01 * (i + 1), text="a") for i in range(20)],
        *[call(1.5 + i / 1000, 0.001 * (i + 1), "RESOURCE_EXHAUSTED") for i in range(100)],
        call(2.0, 5.0, "UNAVAILABLE"),
    ]
    found = outcome(calls, [b"%d" % i for i in range(len(calls))], {})
    assert found.calls == 123
    assert found.by_code == {"OK": 21, "RESOURCE_EXHAUSTED": 101, "UNAVAILABLE": 1}
    assert math.isclose(found.accepted_p95_seconds, 0.19)
    assert math.isclose(found.rejected_p99_seconds, 0.099)
    assert math.isclose(found.late_p99_seconds, 0.001)
    assert math.isclose(found.answered_per_second, 21 / 9.5)


def test_a_sentence_with_another_translation_than_before_is_found() -> None:
    known = {b"x": "one"}
    calls = [call(1.0, 0.1, text=text) for text in ("one", "two", "three", "three")]
    assert outcome(calls, [b"x", b"x", b"y", b"y"], known).differing == 1
    assert known[b"y"] == "three"


def test_without_refusals_there_is_no_percentile_of_them() -> None:
    assert math.isnan(outcome([call(1.0, 0.1, text="a")], [b"x"], {}).rejected_p99_seconds)


def test_the_table_says_what_was_missed() -> None:
    load = {
        "calls": 10, "answered_per_second": 5.0, "accepted_p50_seconds": 0.01, "accepted_p95_seconds": 0.02,
        "by_code": {"OK": 10}, "rejected_p50_seconds": math.nan, "rejected_p99_seconds": 0.01, "late_p99_seconds": 0.0,
        "memory_bytes": [1, 2], "memory_growth_bytes": 1, "all_accounted": True, "differing": 0,
        "server_rejected_p99_seconds": 0.002, "offered_per_second": 5.0,
    }  # fmt: skip
    slow = {**load, "accepted_p95_seconds": 0.041, "rejected_p99_seconds": 0.021, "all_accounted": False}
    setting: dict[str, Any] = {"capacity_per_second": 5.0, "flags": ["--niceness", "3"], "at_80_percent": load}
    result: dict[str, Any] = {"machine": {"cores_used": 2}}
    met = markdown({**result, "settings": {"one": {**setting, "at_twice": load}}})
    assert (met.count(": met"), met.count("missed")) == (2, 0)
    missed = markdown({**result, "settings": {"one": {**setting, "at_twice": slow}}})
    assert (missed.count(": met"), missed.count("missed")) == (0, 2)
    assert "no: {'OK': 10}" in missed


def test_a_percentile_of_buckets_is_of_what_came_in_between() -> None:
    before = {0.1: 5.0, 0.2: 5.0, math.inf: 5.0}
    after = {0.1: 103.0, 0.2: 104.0, math.inf: 105.0}
    assert bucket_percentile(before, after, 98) == 0.1
    assert bucket_percentile(before, after, 99) == 0.2
    assert bucket_percentile(before, after, 100) == math.inf
    assert math.isnan(bucket_percentile(after, after, 99))


def test_memory_is_sampled_at_both_ends() -> None:
    with sampled_memory(os.getpid()) as samples:
        pass
    assert len(samples) == 2
    assert min(samples) > 10**6


def test_the_flags_are_settings() -> None:
    flags = {setting.flag for setting in settings().values()}
    assert all(
        flag in flags for given in [*SETTINGS.values(), (NO_REFUSAL, ())] for part in given for flag in part[::2]
    )


def test_translations_that_differ_under_any_load_are_counted() -> None:
    loads = {"at_80_percent": {"differing": 0}, "at_twice": {"differing": 2}}
    same = {"at_80_percent": {"differing": 1}, "at_twice": {"differing": 0}}
    assert num_differing({"settings": {"one": loads, "other": same}}) == 3
    assert num_differing({"settings": {}}) == 0
