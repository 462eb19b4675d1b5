"""Start, admission, cancellation, failure and stop, with every decoding step in the test's hand: no timing decides."""

import asyncio
import logging
import signal
import threading
from pathlib import Path
from typing import Any

import grpc
import pytest

from service.handlers import SERVICE_NAME
from service.pb.translation.v1 import translation_pb2 as pb
from service.request import FinishReason
from tests.integration.serving import (
    PATIENCE_SECONDS,
    HeldServer,
    health_of,
    held_server,
    refusal_of,
    request,
    stub_of,
    unpack,
)

TEXT = "Bado gimu. "
READY_NAMES = ("", SERVICE_NAME, "readiness")


async def begin(held: HeldServer, stub: Any, call: Any, timeout: float | None = None) -> Any:
    """Starts a call and waits until its first segment is in the batch, held before a step."""
    started = stub.TranslateText(call, timeout=timeout)
    await held.until(lambda: held.loop.num_running > 0)
    return started


async def test_before_the_models_are_loaded_health_answers_and_calls_are_sent_away(models: Path) -> None:
    async with held_server(models) as held, stub_of(held.address) as stub:
        assert [await health_of(held.address, name) for name in READY_NAMES] == ["NOT_SERVING"] * 3
        assert await health_of(held.address, "liveness") == "SERVING"
        for call in (stub.TranslateText(request(TEXT)), stub.GetServerInfo(request())):
            refusal = await refusal_of(call)
            assert (refusal.code, refusal.reason) == ("UNAVAILABLE", "STARTING")
            assert refusal.retry_seconds is not None
            assert refusal.retry_seconds > 0
            assert refusal.pushback == str(round(refusal.retry_seconds * 1000))
        assert "Serving" not in held.output.getvalue()
        await held.until_ready()
        assert [await health_of(held.address, name) for name in READY_NAMES] == ["SERVING"] * 3


async def test_a_signal_while_the_models_are_loaded_ends_the_server(models: Path) -> None:
    async with held_server(models, shutdown_delay_seconds=1000.0) as held:
        held.signal()
        assert await held.task == 0
        assert held.output.getvalue() == ""


async def test_sigterm_finishes_what_runs_and_refuses_what_comes(models: Path) -> None:
    async with held_server(models) as held, stub_of(held.address) as stub:
        await held.until_ready()
        running = await begin(held, stub, request(TEXT))
        held.signal()
        await held.until(lambda: held.loop.state.value == "draining")
        assert [await health_of(held.address, name) for name in READY_NAMES] == ["NOT_SERVING"] * 3
        assert await health_of(held.address, "liveness") == "SERVING"
        refusal = await refusal_of(stub.TranslateText(request(TEXT)))
        assert (refusal.code, refusal.reason) == ("UNAVAILABLE", "DRAINING")
        assert refusal.pushback is not None
        assert not running.done()
        held.go.set()
        reply = await running
        assert reply.translations[0].translated_text == TEXT
        assert await held.task == 0


async def test_after_sigterm_calls_are_taken_for_a_moment(models: Path) -> None:
    async with held_server(models, shutdown_delay_seconds=1000.0) as held, stub_of(held.address) as stub:
        await held.until_ready()
        held.go.set()
        held.signal()
        health = "SERVING"
        while health == "SERVING":
            health = await health_of(held.address, "readiness")
        reply = await stub.TranslateText(request(TEXT))
        assert reply.translations[0].translated_text == TEXT
        held.signal()  # a second one does not wait for the moment to pass
        assert await held.task == 128 + signal.SIGTERM


async def test_ctrl_c_does_not_wait_for_the_world_to_see(models: Path) -> None:
    async with held_server(models, shutdown_delay_seconds=1000.0) as held:
        await held.until_ready()
        held.signal(signal.SIGINT)
        assert await held.task == 0


async def test_a_second_signal_stops_at_once(models: Path) -> None:
    async with held_server(models, drain_seconds=1000.0) as held, stub_of(held.address) as stub:
        await held.until_ready()
        running = await begin(held, stub, request(TEXT))
        held.signal()
        await held.until(lambda: held.loop.state.value == "draining")
        held.signal()
        refusal = await refusal_of(running)  # answered while the engine's step still hangs
        assert refusal.code in ("UNAVAILABLE", "CANCELLED")
        held.go.set()
        assert await held.task == 128 + signal.SIGTERM


async def test_calls_that_do_not_finish_in_time_are_given_up(models: Path) -> None:
    async with held_server(models, drain_seconds=0.0) as held, stub_of(held.address) as stub:
        await held.until_ready()
        running = await begin(held, stub, request(TEXT))
        held.signal()
        refusal = await refusal_of(running)
        assert refusal.code in ("UNAVAILABLE", "CANCELLED")
        held.go.set()
        assert await held.task == 1


async def test_a_cancelled_call_leaves_by_the_next_step(models: Path) -> None:
    async with held_server(models, max_rows=1) as held, stub_of(held.address) as stub:
        await held.until_ready()
        finished = []
        running = await begin(held, stub, request(TEXT * 3), timeout=1000.0)  # far from its deadline
        held.loop._deliver, deliver = (
            (lambda deliveries: (finished.extend(deliveries), deliver(deliveries))),
            held.loop._deliver,
        )
        running.cancel()
        await held.until(lambda: held.server_calls == 0)
        assert held.calls_by_code() == {"CANCELLED": 1}
        held.go.set()
        await held.until(lambda: held.loop.num_running + held.loop.num_waiting == 0 and len(finished) == 3)
        assert {delivery.sequence.finish_reason for delivery in finished} == {FinishReason.CANCELLED}
        assert len(held.runner.rows_per_step) == 1  # the step that was under way
        reply = await stub.TranslateText(request(TEXT))
        assert reply.translations[0].translated_text == TEXT


async def test_a_call_whose_deadline_passes_stops_its_work(models: Path) -> None:
    async with held_server(models, max_rows=1) as held, stub_of(held.address) as stub:
        await held.until_ready()
        running = stub.TranslateText(request(TEXT * 3), timeout=0.2)
        refusal = await refusal_of(running)
        assert refusal.code == "DEADLINE_EXCEEDED"
        await held.until(lambda: held.server_calls == 0)
        assert held.calls_by_code() == {"DEADLINE_EXCEEDED": 1}  # as the caller saw it
        held.go.set()
        await held.until(lambda: held.loop.num_running + held.loop.num_waiting == 0)
        assert len(held.runner.rows_per_step) <= 1


async def test_a_full_queue_is_answered_at_once_and_says_when_to_come_back(models: Path) -> None:
    async with held_server(models, max_rows=1, max_waiting_segments=3) as held, stub_of(held.address) as stub:
        await held.until_ready()
        running = await begin(held, stub, request(TEXT * 3))  # one runs, two wait
        waiting = stub.TranslateText(request(TEXT))
        await held.until(lambda: held.loop.num_waiting == 3)
        refusal = await refusal_of(stub.TranslateText(request(TEXT)))
        assert (refusal.code, refusal.reason) == ("RESOURCE_EXHAUSTED", "QUEUE_FULL")
        assert refusal.retry_seconds is not None
        assert refusal.pushback == str(round(refusal.retry_seconds * 1000))
        held.go.set()
        assert (await running).translations[0].translated_text == TEXT * 3
        assert (await waiting).translations[0].translated_text == TEXT


async def test_a_call_that_could_never_wait_is_told_so(models: Path) -> None:
    async with held_server(models, max_waiting_segments=3) as held, stub_of(held.address) as stub:
        await held.until_ready()
        refusal = await refusal_of(stub.TranslateText(request(TEXT * 2, TEXT * 2)))
        assert (refusal.code, refusal.fields) == ("INVALID_ARGUMENT", ["contents"])
        assert refusal.retry_seconds is None


async def test_calls_in_progress_are_limited(models: Path) -> None:
    async with held_server(models, max_concurrent_calls=2) as held, stub_of(held.address) as stub:
        await held.until_ready()
        first = await begin(held, stub, request(TEXT))
        second = stub.TranslateText(request(TEXT))
        await held.until(lambda: held.server_calls == 2)
        refusal = await refusal_of(stub.TranslateText(request(TEXT)))
        assert (refusal.code, refusal.reason) == ("RESOURCE_EXHAUSTED", "TOO_MANY_CALLS")
        assert refusal.pushback is not None
        held.go.set()
        await asyncio.gather(first, second)
        await held.until(lambda: held.server_calls == 0)
        await stub.TranslateText(request(TEXT))


async def test_a_failed_step_fails_its_calls_and_the_server_goes_on(
    models: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async with held_server(models) as held, stub_of(held.address) as stub:
        await held.until_ready()
        held.runner.fail_decode = lambda step: step == 0
        held.go.set()
        call = stub.TranslateText(request(TEXT), metadata=(("x-request-id", "my-own-id"),))
        with caplog.at_level(logging.ERROR, logger="service.call_life"):
            refusal = await refusal_of(call)
        assert (refusal.code, refusal.reason, refusal.request_id) == ("INTERNAL", "INTERNAL", "my-own-id")
        assert "my-own-id" in refusal.message
        assert "Error" not in refusal.message
        (record,) = [record for record in caplog.records if record.name == "service.call_life"]
        assert record.__dict__["request_id"] == "my-own-id"
        assert record.exc_info is not None
        reply = await stub.TranslateText(request(TEXT))
        assert reply.translations[0].translated_text == TEXT


async def test_an_engine_that_keeps_failing_is_not_healthy(models: Path) -> None:
    async with held_server(models) as held, stub_of(held.address) as stub:
        await held.until_ready()
        held.runner.fail_decode = lambda _: True
        held.go.set()
        for _ in range(5):
            assert (await refusal_of(stub.TranslateText(request(TEXT)))).code == "INTERNAL"
        await held.server.health.look([held.models[0].loop])
        assert await health_of(held.address, "liveness") == "NOT_SERVING"
        assert await health_of(held.address, "readiness") == "NOT_SERVING"
        held.runner.fail_decode = lambda _: False
        await stub.TranslateText(request(TEXT))
        await held.server.health.look([held.models[0].loop])
        assert await health_of(held.address, "liveness") == "SERVING"
        assert await health_of(held.address, "readiness") == "SERVING"


async def test_load_does_not_touch_liveness(models: Path) -> None:
    async with held_server(models, max_rows=1) as held, stub_of(held.address) as stub:
        await held.until_ready()
        running = await begin(held, stub, request(TEXT * 50))
        await held.server.health.look([held.models[0].loop])
        assert await health_of(held.address, "liveness") == "SERVING"
        held.go.set()
        await running


async def test_a_text_that_others_wait_behind_does_not_cross_results(models: Path) -> None:
    async with held_server(models) as held, stub_of(held.address) as stub:
        await held.until_ready()
        held.go.set()
        texts = [f"Bado {i} gimu. Nara {i}?\nZo" for i in range(40)]
        replies = await asyncio.gather(*(stub.TranslateText(request(text, text[::-1])) for text in texts))
        for text, reply in zip(texts, replies, strict=True):
            assert [item.translated_text for item in reply.translations] == [text, text[::-1]]
        assert held.runner.violations == []
        assert max(held.runner.rows_per_step) == 4


async def test_the_port_that_is_taken_is_named(models: Path) -> None:
    async with held_server(models) as held:
        from service.server import Server, StartError

        taken = Server(
            held.config.__class__(server=held.config.server.__class__(address=held.address)), output=held.output
        )
        with pytest.raises(StartError, match="`address` must be free to listen on"):
            await taken.run()


async def test_an_oversized_message_is_refused(models: Path) -> None:
    async with held_server(models, max_message_bytes=2048) as held, stub_of(held.address) as stub:
        await held.until_ready()
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await stub.TranslateText(request("a" * 4096))
        assert caught.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED


def step_by_step(held: HeldServer) -> threading.Semaphore:
    """Makes each step wait for one release."""
    steps = threading.Semaphore(0)

    def before_step() -> None:
        assert steps.acquire(timeout=PATIENCE_SECONDS)

    held.runner.before_step = before_step
    return steps


async def test_a_stream_hands_out_text_while_the_rest_is_decoded(models: Path) -> None:
    async with held_server(models) as held, stub_of(held.address) as stub:
        await held.until_ready()
        steps = step_by_step(held)
        stream = stub.StreamTranslateText(request("Bado gimu nara tesi lopu."))
        steps.release(3)
        text = ""
        reasons = []
        async for message in stream:
            if not reasons:
                assert message.piece.text
                assert len(held.runner.rows_per_step) <= 4  # the fourth step waits
                steps.release(1000)
            text += message.piece.text
            reasons.append(message.piece.finish_reason)
        assert text == message.result.translations[0].translated_text == "Bado gimu nara tesi lopu."
        assert reasons[-2] == pb.FINISH_REASON_STOP  # of the last piece, before the result
        assert held.calls_by_code() == {"OK": 1}


async def test_a_stream_that_is_cancelled_leaves_by_the_next_step(models: Path) -> None:
    async with held_server(models, max_rows=1) as held, stub_of(held.address) as stub:
        await held.until_ready()
        steps = step_by_step(held)
        stream = stub.StreamTranslateText(request(TEXT * 3), timeout=1000.0)
        steps.release(2)
        await stream.read()
        stream.cancel()
        await held.until(lambda: held.server_calls == 0)
        assert held.calls_by_code() == {"CANCELLED": 1}
        num_steps = len(held.runner.rows_per_step)
        steps.release(1000)
        await held.until(lambda: held.loop.num_running + held.loop.num_waiting == 0)
        assert len(held.runner.rows_per_step) <= num_steps + 1


async def test_a_stream_whose_step_fails_says_which_segments_have_no_end(models: Path) -> None:
    async with held_server(models) as held, stub_of(held.address) as stub:
        await held.until_ready()
        held.runner.fail_decode = lambda step: step == 2
        held.go.set()
        stream = stub.StreamTranslateText(request("Bado gimu nara.", " \n", TEXT * 2))
        ended = {}

        async def read() -> None:
            async for message in stream:
                if message.piece.finish_reason:
                    place = (message.piece.contents_index, message.piece.segment_index)
                    ended[place] = message.piece.finish_reason

        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await read()
        assert caught.value.code() is grpc.StatusCode.INTERNAL
        cancelled = pb.FINISH_REASON_CANCELLED
        assert ended == {(0, 0): cancelled, (1, 0): pb.FINISH_REASON_BLANK, (2, 0): cancelled, (2, 1): cancelled}


async def test_streams_and_scores_are_refused_as_other_calls_are(models: Path) -> None:
    async with held_server(models, max_concurrent_calls=1) as held, stub_of(held.address) as stub:
        score = pb.ScoreTextRequest(contents=["a"], translated_texts=["b"])
        for reason in ("STARTING", "TOO_MANY_CALLS", "DRAINING"):
            if reason == "TOO_MANY_CALLS":
                await held.until_ready()
                running = await begin(held, stub, request(TEXT))
            if reason == "DRAINING":
                held.signal()
                await held.until(lambda: held.loop.state.value == "draining")
            assert (await refusal_of(stub.ScoreText(score))).reason == reason
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await stub.StreamTranslateText(request(TEXT)).read()
            assert unpack(caught.value).reason == reason
        held.go.set()
        assert (await running).translations[0].translated_text == TEXT


async def test_a_stream_without_text_needs_no_engine(models: Path) -> None:
    async with held_server(models) as held, stub_of(held.address) as stub:
        await held.until_ready()
        messages = [message async for message in stub.StreamTranslateText(request("", " \n"))]
        assert [message.piece.text for message in messages] == [" \n", ""]
        assert [translation.translated_text for translation in messages[-1].result.translations] == ["", " \n"]


async def test_a_stream_ends_well_when_the_server_stops(models: Path) -> None:
    async with held_server(models) as held, stub_of(held.address) as stub:
        await held.until_ready()
        stream = stub.StreamTranslateText(request(TEXT))
        await held.until(lambda: held.loop.num_running > 0)
        held.signal()
        await held.until(lambda: held.loop.state.value == "draining")
        held.go.set()
        messages = [message async for message in stream]
        assert messages[-1].result.translations[0].translated_text == TEXT
        assert await held.task == 0
