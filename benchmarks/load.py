"""Open-loop load on a translation server through gRPC: callers who do not wait for each other.

Arrival times are drawn beforehand, and each call is sent at its time whatever became of those before it. Its latency
counts from the time it was due, so a sender that is late, or a server that makes it late, cannot hide a wait. Calls are
bytes in and bytes out on one channel: the load generator runs on the server's cores, and what it takes of them is part
of the result.
"""

from __future__ import annotations

import asyncio
import gc
import math
import os
import random
import selectors
import time
from collections import Counter
from collections.abc import Coroutine, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import grpc.aio

from service.pb.translation.v1 import translation_pb2 as pb

METHOD = "/translation.v1.TranslationService/TranslateText"
CALL_SECONDS = 60.0
HEAD_START_SECONDS = 0.05
"""Between making ready and the first arrival."""
TICKS_PER_SECOND = os.sysconf("SC_CLK_TCK")

Result = TypeVar("Result")


@dataclass(frozen=True, kw_only=True, slots=True)
class Call:
    """One call of a load; seconds count from the beginning of the load."""

    due_seconds: float
    """When it was to be sent."""
    sent_seconds: float
    """When it was."""
    ended_seconds: float
    """When its answer, or its failure, was there."""
    code: str
    """gRPC status code."""
    reply: bytes
    """A TranslateTextResponse; empty when it failed."""

    @property
    def latency_seconds(self) -> float:
        """From when it was due."""
        return self.ended_seconds - self.due_seconds


@dataclass(frozen=True, kw_only=True)
class LoadResult:
    """What became of a load."""

    offered_per_second: float
    """Rate that the arrivals were drawn for; infinite for a burst, 0 for callers who wait for their answers."""
    calls: int
    """Calls that count: those due after the time to settle."""
    failures: dict[str, int]
    """Calls that failed by status code, the time to settle included."""
    p50_seconds: float
    """Latency that half the calls that count do not exceed; infinite where a failure takes the place."""
    p95_seconds: float
    """The same of 95 in 100."""
    p99_seconds: float
    """The same of 99 in 100."""
    first_seconds: float
    """The lowest latency."""
    last_seconds: float
    """The highest."""
    answered_per_second: float
    """Answers, from the first arrival to the last answer."""
    late_p99_seconds: float
    """How late the generator itself sent, 99th percentile."""
    num_source_tokens: int
    """Of all answers."""
    num_target_tokens: int
    """Of all answers."""
    client_cpu_seconds: float
    """Processor time of the load generator, a call."""
    server_cpu_seconds: float
    """Processor time of the server, a call."""
    wall_seconds: float
    """How long all of it took."""


def poisson_arrivals(per_second: float, seconds: float, seed: int) -> list[float]:
    """Times in [0, seconds) at which callers come who know nothing of each other, in order.

    The gaps are drawn before the rate is applied: the same seed at another rate is the same pattern, faster or slower.

    Raises:
        ValueError: when rate or seconds are not above 0.
    """
    if per_second <= 0 or seconds <= 0:
        raise ValueError(f"Rate and seconds must be above 0, but are {per_second} and {seconds}.")
    chance = random.Random(seed)
    times: list[float] = []
    now = chance.expovariate(1.0) / per_second
    while now < seconds:
        times.append(now)
        now += chance.expovariate(1.0) / per_second
    return times


def percentile(values: Sequence[float], percent: float) -> float:
    """The lowest of `values` that at least `percent` of 100 of them do not exceed (nearest rank).

    Raises:
        ValueError: when there are none.
    """
    if not values:
        raise ValueError("A percentile must have at least one value, but has none.")
    return sorted(values)[max(0, math.ceil(len(values) * percent / 100) - 1)]


def processor_seconds(pid: int) -> float:
    """Processor time that a process and its threads have taken, user and system."""
    return _processor_seconds(Path(f"/proc/{pid}/stat"))


def main_thread_seconds(pid: int) -> float:
    """That of its first thread alone: of a server of asyncio, the event loop's."""
    return _processor_seconds(Path(f"/proc/{pid}/task/{pid}/stat"))


def _processor_seconds(stat: Path) -> float:
    fields = stat.read_text(encoding="ascii", errors="replace").rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / TICKS_PER_SECOND


def run(work: Coroutine[None, None, Result]) -> Result:
    """Runs a load to its end, in an event loop whose timers are exact to microseconds (epoll's wait in whole ones of
    a millisecond), without pauses of the collector."""
    gc.collect()
    gc.disable()
    try:
        with asyncio.Runner(loop_factory=lambda: asyncio.SelectorEventLoop(selectors.SelectSelector())) as runner:
            return runner.run(work)
    finally:
        gc.enable()


async def open_loop(address: str, messages: Sequence[bytes], arrivals: Sequence[float]) -> list[Call]:
    """Sends each message at its time, and returns the calls in the order of the arrivals when all have ended.

    Args:
        address: host:port of the server.
        messages: serialised requests, one for each arrival.
        arrivals: seconds from the beginning, in order; all 0 for a burst.
    """
    calls: list[Call | None] = [None] * len(messages)

    async with grpc.aio.insecure_channel(address) as channel:
        translate = channel.unary_unary(METHOD)
        await channel.channel_ready()
        began = time.perf_counter() + HEAD_START_SECONDS

        async def call(index: int) -> None:
            sent = time.perf_counter()
            code, reply = "OK", b""
            try:
                reply = await translate(messages[index], timeout=CALL_SECONDS)
            except grpc.aio.AioRpcError as error:
                code = error.code().name
            calls[index] = Call(
                due_seconds=arrivals[index],
                sent_seconds=sent - began,
                ended_seconds=time.perf_counter() - began,
                code=code,
                reply=reply,
            )

        tasks = []
        for index, due in enumerate(arrivals):
            wait = began + due - time.perf_counter()
            if wait > 0:
                await asyncio.sleep(wait)
            tasks.append(asyncio.create_task(call(index)))
        await asyncio.gather(*tasks)
    return [one for one in calls if one is not None]


async def closed_loop(address: str, messages: Sequence[bytes], callers: int = 1) -> list[Call]:
    """Sends messages from so many callers, each of whom waits for its answer before it sends the next, and returns the
    calls in the order of the messages. With one caller nobody else is served."""
    calls: dict[int, Call] = {}
    waiting = iter(enumerate(messages))

    async with grpc.aio.insecure_channel(address) as channel:
        translate = channel.unary_unary(METHOD)
        await channel.channel_ready()
        began = time.perf_counter()

        async def caller() -> None:
            for index, message in waiting:  # shared: each message is taken once
                sent = time.perf_counter() - began
                code, reply = "OK", b""
                try:
                    reply = await translate(message, timeout=CALL_SECONDS)
                except grpc.aio.AioRpcError as error:
                    code = error.code().name
                ended = time.perf_counter() - began
                calls[index] = Call(due_seconds=sent, sent_seconds=sent, ended_seconds=ended, code=code, reply=reply)

        await asyncio.gather(*(caller() for _ in range(callers)))
    return [calls[index] for index in range(len(messages))]


def summarized(
    calls: Sequence[Call],
    *,
    offered_per_second: float,
    settle_seconds: float,
    client_cpu_seconds: float,
    server_cpu_seconds: float,
    wall_seconds: float,
) -> LoadResult:
    """The result of a load; a failed call counts as one that is never answered.

    Args:
        settle_seconds: calls due before are sent but not counted among the latencies: the server was still empty.
        client_cpu_seconds: that the generator took for all calls.
        server_cpu_seconds: that the server took for all calls.

    Raises:
        ValueError: when no call counts.
    """
    latencies = [
        call.latency_seconds if call.code == "OK" else math.inf for call in calls if call.due_seconds >= settle_seconds
    ]
    replies = [pb.TranslateTextResponse.FromString(call.reply).metadata for call in calls if call.code == "OK"]
    spanned = max(call.ended_seconds for call in calls) - min(call.due_seconds for call in calls)
    return LoadResult(
        offered_per_second=offered_per_second,
        calls=len(latencies),
        failures=dict(Counter(call.code for call in calls if call.code != "OK")),
        p50_seconds=percentile(latencies, 50),
        p95_seconds=percentile(latencies, 95),
        p99_seconds=percentile(latencies, 99),
        first_seconds=min(latencies),
        last_seconds=max(latencies),
        answered_per_second=len(replies) / spanned,
        late_p99_seconds=percentile([call.sent_seconds - call.due_seconds for call in calls], 99),
        num_source_tokens=sum(reply.num_source_tokens for reply in replies),
        num_target_tokens=sum(reply.num_target_tokens for reply in replies),
        client_cpu_seconds=client_cpu_seconds / len(calls),
        server_cpu_seconds=server_cpu_seconds / len(calls),
        wall_seconds=wall_seconds,
    )


def measured(
    address: str,
    pid: int,
    messages: Sequence[bytes],
    arrivals: Sequence[float] | None,
    *,
    offered_per_second: float,
    settle_seconds: float = 0.0,
    callers: int = 1,
) -> LoadResult:
    """Puts a load on a server and says what became of it.

    Args:
        address: host:port of the server.
        pid: its process.
        messages: serialised requests.
        arrivals: when each is due; None: each when its caller has the answer to the one before.
        offered_per_second: of the arrivals, for the result; 0 without any.
        settle_seconds: see `summarized`.
        callers: who send, where nothing says when.
    """
    started, client_before, server_before = time.perf_counter(), time.process_time(), processor_seconds(pid)
    calls = run(closed_loop(address, messages, callers) if arrivals is None else open_loop(address, messages, arrivals))
    return summarized(
        calls,
        offered_per_second=offered_per_second,
        settle_seconds=settle_seconds,
        client_cpu_seconds=time.process_time() - client_before,
        server_cpu_seconds=processor_seconds(pid) - server_before,
        wall_seconds=time.perf_counter() - started,
    )


def translations(address: str, messages: Sequence[bytes]) -> list[str]:
    """The text of each answer, one call after another.

    Raises:
        RuntimeError: when a call failed.
    """
    calls = run(closed_loop(address, messages))
    failed = [call.code for call in calls if call.code != "OK"]
    if failed:
        raise RuntimeError(f"{len(failed)} of {len(calls)} calls to {address} failed, the first with {failed[0]}.")
    replies = [pb.TranslateTextResponse.FromString(call.reply) for call in calls]
    return [reply.translations[0].translated_text for reply in replies]
