"""The load generator: when it sends, what it counts, and that neither it nor a slow server hides a wait."""

import asyncio
import itertools
import math
import os
import statistics
import time
from typing import Any

import grpc.aio
import pytest

from benchmarks import load
from benchmarks.load import Call, measured, open_loop, percentile, poisson_arrivals, processor_seconds, summarized
from service.pb.translation.v1 import translation_pb2 as pb

OK_REPLY = pb.TranslateTextResponse(
    metadata=pb.ResponseMetadata(num_source_tokens=3, num_target_tokens=5)
).SerializeToString()


def a_call(*, due: float, ended: float, sent: float | None = None, code: str = "OK") -> Call:
    """A call that ended."""
    return Call(
        due_seconds=due,
        sent_seconds=due if sent is None else sent,
        ended_seconds=ended,
        code=code,
        reply=OK_REPLY if code == "OK" else b"",
    )


def summary(calls: list[Call], settle_seconds: float = 0.0) -> load.LoadResult:
    """Of calls alone."""
    return summarized(
        calls,
        offered_per_second=1.0,
        settle_seconds=settle_seconds,
        client_cpu_seconds=len(calls) * 0.5,
        server_cpu_seconds=len(calls) * 2.0,
        wall_seconds=1.0,
    )


def test_arrivals_are_those_of_a_poisson_process() -> None:
    times = poisson_arrivals(200.0, 100.0, seed=1)
    gaps = [after - before for before, after in itertools.pairwise(times)]
    assert len(times) == pytest.approx(20_000, rel=0.03)
    assert times == sorted(times)
    assert times[-1] < 100.0
    assert statistics.fmean(gaps) == pytest.approx(1 / 200, rel=0.03)
    assert statistics.stdev(gaps) == pytest.approx(1 / 200, rel=0.03)  # as great as the mean: no regular beat
    assert sum(gap > 2 / 200 for gap in gaps) / len(gaps) == pytest.approx(math.exp(-2), rel=0.05)


def test_arrivals_are_the_same_pattern_at_every_rate_and_another_with_another_seed() -> None:
    slow, fast = poisson_arrivals(1.0, 50.0, seed=3), poisson_arrivals(10.0, 5.0, seed=3)
    assert fast == pytest.approx([time / 10 for time in slow])
    assert poisson_arrivals(1.0, 50.0, seed=4)[:3] != slow[:3]


@pytest.mark.parametrize(("rate", "seconds"), [(0.0, 1.0), (1.0, 0.0), (-1.0, 1.0)])
def test_arrivals_need_a_rate_and_a_time(rate: float, seconds: float) -> None:
    with pytest.raises(ValueError, match="above 0"):
        poisson_arrivals(rate, seconds, seed=1)


def test_percentiles_are_by_nearest_rank() -> None:
    values = [float(value) for value in range(100, 0, -1)]
    assert [percentile(values, percent) for percent in (50, 95, 99, 100)] == [50.0, 95.0, 99.0, 100.0]
    assert percentile([1.0, 2.0, 3.0], 95) == 3.0
    assert percentile([7.0], 1) == 7.0
    with pytest.raises(ValueError, match="at least one"):
        percentile([], 50)


def test_a_latency_counts_from_when_the_call_was_due() -> None:
    result = summary([a_call(due=1.0, sent=1.4, ended=1.5), a_call(due=2.0, ended=2.25)])
    assert result.last_seconds == pytest.approx(0.5)
    assert result.first_seconds == pytest.approx(0.25)
    assert result.late_p99_seconds == pytest.approx(0.4)


def test_calls_that_come_while_the_server_is_still_empty_are_not_counted() -> None:
    result = summary([a_call(due=0.1, ended=9.0), a_call(due=0.5, ended=0.6), a_call(due=1.0, ended=1.1)], 0.5)
    assert result.calls == 2
    assert result.last_seconds == pytest.approx(0.1)
    assert result.num_target_tokens == 15  # of all three: they were work
    assert result.answered_per_second == pytest.approx(3 / 8.9)


def test_a_failed_call_counts_as_never_answered() -> None:
    calls = [a_call(due=0.0, ended=0.01) for _ in range(18)]
    calls += [a_call(due=0.0, ended=0.001, code="RESOURCE_EXHAUSTED") for _ in range(2)]
    result = summary(calls)
    assert result.failures == {"RESOURCE_EXHAUSTED": 2}
    assert result.p50_seconds == pytest.approx(0.01)
    assert result.p95_seconds == math.inf
    assert (result.num_source_tokens, result.num_target_tokens) == (54, 90)
    assert (result.client_cpu_seconds, result.server_cpu_seconds) == (0.5, 2.0)


class Server:
    """Answers when so many calls are there at once; refuses contents of `no`."""

    def __init__(self, together: int) -> None:
        self._together = together
        self._num_calls = 0
        self._all_there = asyncio.Event()

    async def translate(
        self, request: pb.TranslateTextRequest, context: "grpc.aio.ServicerContext[Any, Any]"
    ) -> pb.TranslateTextResponse:
        self._num_calls += 1
        if self._num_calls == self._together:
            self._all_there.set()
        await self._all_there.wait()
        if request.contents[0] == "no":
            await context.abort(grpc.StatusCode.RESOURCE_EXHAUSTED, "no")
        return pb.TranslateTextResponse.FromString(OK_REPLY)


async def calls_of(server: Server, contents: list[str], arrivals: list[float]) -> list[Call]:
    """An open loop against a server in the same event loop."""
    handler = grpc.unary_unary_rpc_method_handler(
        server.translate,
        request_deserializer=pb.TranslateTextRequest.FromString,
        response_serializer=pb.TranslateTextResponse.SerializeToString,
    )
    running = grpc.aio.server()
    service, method = load.METHOD.strip("/").split("/")
    running.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(service, {method: handler}),))
    port = running.add_insecure_port("127.0.0.1:0")
    await running.start()
    messages = [pb.TranslateTextRequest(contents=[content]).SerializeToString() for content in contents]
    try:
        return await open_loop(f"127.0.0.1:{port}", messages, arrivals)
    finally:
        await running.stop(0)


async def test_no_call_waits_for_the_one_before() -> None:
    arrivals = [0.0, 0.01, 0.02, 0.03, 0.04]
    async with asyncio.timeout(20):  # the first is answered when the last is there
        calls = await calls_of(Server(together=5), ["a"] * 5, arrivals)
    assert [call.due_seconds for call in calls] == arrivals
    assert all(call.code == "OK" and call.ended_seconds >= arrivals[-1] for call in calls)
    assert all(call.sent_seconds >= call.due_seconds for call in calls)


async def test_a_refused_call_has_its_code_and_no_reply() -> None:
    calls = await calls_of(Server(together=2), ["a", "no"], [0.0, 0.0])
    assert [(call.code, bool(call.reply)) for call in calls] == [("OK", True), ("RESOURCE_EXHAUSTED", False)]


def test_processor_time_is_that_of_the_process() -> None:
    before, began = processor_seconds(os.getpid()), time.process_time()
    while time.process_time() - began < 0.1:
        sum(range(1000))
    assert processor_seconds(os.getpid()) - before == pytest.approx(0.1, abs=0.06)


def test_the_event_loop_of_a_load_has_exact_timers() -> None:
    async def least_lateness() -> float:
        late = []
        for _ in range(20):
            began = time.perf_counter()
            await asyncio.sleep(0.0002)
            late.append(time.perf_counter() - began - 0.0002)
        return min(late)

    assert load.run(least_lateness()) < 0.0006  # epoll's would be 0.8 ms at least


def test_measured_is_of_the_load_that_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    async def served(address: str, messages: list[bytes], arrivals: list[float]) -> list[Call]:
        assert (address, messages) == ("here", [b"x", b"y"])
        return [a_call(due=arrival, ended=arrival + 1) for arrival in arrivals]

    monkeypatch.setattr(load, "open_loop", served)
    result = measured("here", os.getpid(), [b"x", b"y"], [0.0, 2.0], offered_per_second=7.0, settle_seconds=1.0)
    assert (result.offered_per_second, result.calls, result.p50_seconds) == (7.0, 1, 1.0)
