"""Calls that are refused for what is ahead of them, through gRPC, before or after a model has shown what it can do."""

import asyncio
from pathlib import Path
from typing import Any

import grpc
import pytest

from service.caller import Caller
from service.forecast import Load
from service.pb.translation.v1 import translation_pb2 as pb
from tests.integration.serving import HeldServer, held_server, refusal_of, request, stub_of

TEXT = "Bado gimu. "
LONG = TEXT * 1_000


def predict(monkeypatch: pytest.MonkeyPatch, held: HeldServer, *, delay: float = 0.0, finish: float = 0.0) -> None:
    """Has the model predict so much."""
    forecast = held.models[0].forecast
    monkeypatch.setattr(forecast, "delay_seconds", lambda _: delay)
    monkeypatch.setattr(forecast, "finish_seconds", lambda *_: finish)


def rejections(held: HeldServer) -> dict[str, float]:
    """Calls refused by reason, and how many of them were timed."""
    samples = [sample for family in held.server._metrics.registry.collect() for sample in family.samples]
    counted = {s.labels["reason"]: s.value for s in samples if s.name == "dragoman_rejections_total"}
    return counted | {"timed": next(s.value for s in samples if s.name == "dragoman_rejection_seconds_count")}


async def test_steps_are_learnt_from_and_an_idle_server_predicts_no_delay(models: Path) -> None:
    async with held_server(models) as held, stub_of(held.address) as stub:
        await held.until_ready()
        model = held.models[0]
        assert model.forecast.is_cold
        running = stub.TranslateText(request(TEXT * 10))
        await held.until(lambda: held.loop.num_running == 4)
        used = model.load()
        assert used == Load(
            num_engines=1, num_rows=4, num_used_rows=4, num_waiting=6, num_waiting_rows=6,
            num_waiting_tokens=used.num_waiting_tokens,
        )  # fmt: skip
        assert used.num_waiting_tokens >= 6
        held.go.set()
        await running
        assert not model.forecast.is_cold
        assert model.delay_seconds() == 0.0
        assert model.forecast.delay_seconds(used) > 0.0


async def test_a_delay_that_stands_is_refused_whatever_is_asked(models: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    flags = {"standing_delay_seconds": 1.0, "standing_interval_seconds": 0.5}
    async with held_server(models, **flags) as held, stub_of(held.address) as stub:
        await held.until_ready()
        held.go.set()
        monkeypatch.setattr(held.server.servicer.admission, "_clock", lambda: 100.0)
        predict(monkeypatch, held, delay=3.0)
        await stub.TranslateText(request(TEXT))
        monkeypatch.setattr(held.server.servicer.admission, "_clock", lambda: 100.5)
        for call in (stub.TranslateText(request(TEXT)), stub.TranslateText(request(LONG)), _score(stub)):
            refusal = await refusal_of(call)
            assert (refusal.code, refusal.reason) == ("RESOURCE_EXHAUSTED", "STANDING_DELAY")
            assert refusal.retry_seconds is not None
            assert 2.0 <= refusal.retry_seconds <= 2.5
            assert refusal.pushback == str(round(refusal.retry_seconds * 1000))
        stream = stub.StreamTranslateText(request(TEXT))
        with pytest.raises(grpc.aio.AioRpcError):
            await stream.read()
        assert await stream.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
        await held.until(lambda: rejections(held) == {"STANDING_DELAY": 4, "timed": 4})
        predict(monkeypatch, held, delay=1.0)
        assert (await stub.TranslateText(request(TEXT))).translations[0].translated_text == TEXT


def _score(stub: Any) -> Any:
    return stub.ScoreText(pb.ScoreTextRequest(contents=["a"], translated_texts=["b"]))


async def test_a_deadline_out_of_reach_is_refused_before_anything_is_decoded(
    models: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with held_server(models) as held, stub_of(held.address) as stub:
        await held.until_ready()
        predict(monkeypatch, held, finish=1000.0)
        refusal = await refusal_of(stub.TranslateText(request(TEXT), timeout=500.0))
        assert (refusal.code, refusal.reason) == ("DEADLINE_EXCEEDED", "DEADLINE_UNREACHABLE")
        assert refusal.retry_seconds is None
        assert held.runner.encoded == []
        assert held.loop.num_running + held.loop.num_waiting == 0
        held.go.set()
        await stub.TranslateText(request(TEXT), timeout=900.0)
        await stub.TranslateText(request(TEXT))
        await held.until(lambda: rejections(held) == {"DEADLINE_UNREACHABLE": 1, "timed": 1})


async def test_a_caller_has_so_many_calls_and_others_have_theirs(models: Path) -> None:
    async with held_server(models, max_calls_per_caller=1) as held, stub_of(held.address) as stub:
        await held.until_ready()
        shop, bank = (("x-caller-id", "shop"),), (("x-caller-id", "bank"),)
        first = stub.TranslateText(request(TEXT), metadata=shop)
        await held.until(lambda: held.loop.num_running > 0)
        refusal = await refusal_of(stub.TranslateText(request(TEXT), metadata=shop))
        assert (refusal.code, refusal.reason) == ("RESOURCE_EXHAUSTED", "TOO_MANY_CALLS_OF_CALLER")
        assert refusal.retry_seconds is not None
        second = stub.TranslateText(request(TEXT), metadata=bank)
        await held.until(lambda: held.server_calls == 2)
        held.go.set()
        await first
        await second
        await held.until(lambda: held.server_calls == 0)
        await stub.TranslateText(request(TEXT), metadata=shop)


async def test_a_caller_with_a_rate_is_told_when_to_come_back(models: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async with held_server(models) as held, stub_of(held.address) as stub:
        await held.until_ready()
        held.go.set()

        async def caller_of(*_: Any, **__: Any) -> Caller:
            return Caller(name="shop", segments_per_second=0.1)

        monkeypatch.setattr(held.server.servicer.calls._access, "caller_of", caller_of)
        await stub.TranslateText(request(TEXT))
        refusal = await refusal_of(stub.TranslateText(request(TEXT)))
        assert (refusal.code, refusal.reason) == ("RESOURCE_EXHAUSTED", "QUOTA_EXCEEDED")
        assert refusal.retry_seconds is not None
        assert 5.0 < refusal.retry_seconds <= 12.5
        await stub.TranslateText(request(""))  # nothing to decode, nothing to pay


async def test_long_texts_do_not_pile_up_before_they_are_cut(models: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async with held_server(models, max_waiting_characters=len(LONG) + 10) as held, stub_of(held.address) as stub:
        await held.until_ready()
        held.go.set()
        release = asyncio.Event()
        compute = held.server.servicer._compute

        async def held_compute(work: Any, *, is_long: bool) -> Any:
            if is_long:
                await release.wait()
            return await compute(work, is_long=is_long)

        monkeypatch.setattr(held.server.servicer, "_compute", held_compute)
        first = stub.TranslateText(request(LONG))
        await held.until(lambda: held.server.servicer.admission._num_uncut_characters > 0)
        refusal = await refusal_of(stub.TranslateText(request(LONG)))
        assert (refusal.code, refusal.reason) == ("RESOURCE_EXHAUSTED", "QUEUE_FULL")
        await stub.TranslateText(request(TEXT))  # cut at once, whatever waits
        release.set()
        assert (await first).translations[0].translated_text == LONG
        await stub.TranslateText(request(LONG))
