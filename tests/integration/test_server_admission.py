"""The way of a call, in its order: who is refused before its request is read, who calls, and which model serves it."""

import logging
from pathlib import Path
from typing import Any

import grpc
import pytest

from service.catalog import CatalogView
from service.handlers import SERVICE_NAME
from service.pb.translation.v1 import translation_pb2 as pb
from service.request import Priority, Sequence
from tests.integration.serving import (
    HeldServer,
    fake_model,
    held_server,
    loop_over,
    refusal_of,
    request,
    stub_of,
)
from tests.synthetic.fake_runner import Copies, FakeRunner

TEXT = "Bado gimu. "
NO_REQUEST = b"\xff\xff\xff"
NO_NAME = (("x-caller-id", "two words"),)


async def begin(held: HeldServer, stub: Any, call: Any) -> Any:
    """Starts a call and waits until its first segment is in the batch, held before a step."""
    started = stub.TranslateText(call)
    await held.until(lambda: held.loop.num_running > 0)
    return started


async def refusal_of_bytes(address: str, data: bytes, metadata: Any = None) -> tuple[str, str]:
    """Code and reason of a call with these bytes for a request."""
    async with grpc.aio.insecure_channel(address) as channel:
        refusal = await refusal_of(channel.unary_unary(f"/{SERVICE_NAME}/TranslateText")(data, metadata=metadata))
        return refusal.code, refusal.reason


async def test_refusals_come_in_order_and_before_the_request_is_read(models: Path) -> None:
    async with held_server(models, max_concurrent_calls=1) as held, stub_of(held.address) as stub:
        assert await refusal_of_bytes(held.address, NO_REQUEST, NO_NAME) == ("UNAVAILABLE", "STARTING")
        await held.until_ready()
        running = await begin(held, stub, request(TEXT))
        assert await refusal_of_bytes(held.address, NO_REQUEST, NO_NAME) == ("INVALID_ARGUMENT", "INVALID_REQUEST")
        assert await refusal_of_bytes(held.address, NO_REQUEST) == ("RESOURCE_EXHAUSTED", "TOO_MANY_CALLS")
        held.go.set()
        await running
        await held.until(lambda: held.server_calls == 0)
        assert await refusal_of_bytes(held.address, NO_REQUEST) == ("INVALID_ARGUMENT", "MALFORMED_MESSAGE")


async def test_a_full_queue_refuses_before_the_request_is_read(models: Path) -> None:
    async with held_server(models, max_rows=1, max_waiting_segments=2) as held, stub_of(held.address) as stub:
        await held.until_ready()
        running = await begin(held, stub, request(TEXT))
        waiting = stub.TranslateText(request(TEXT * 2))
        await held.until(lambda: held.loop.num_waiting == 2)
        assert await refusal_of_bytes(held.address, NO_REQUEST) == ("RESOURCE_EXHAUSTED", "QUEUE_FULL")
        held.go.set()
        await running
        await waiting


async def test_a_call_that_was_refused_takes_no_place(models: Path) -> None:
    async with held_server(models, max_concurrent_calls=1) as held, stub_of(held.address) as stub:
        await held.until_ready()
        held.go.set()
        for _ in range(3):
            await refusal_of_bytes(held.address, NO_REQUEST)
            await refusal_of_bytes(held.address, NO_REQUEST, NO_NAME)
            await refusal_of(stub.TranslateText(request()))
            await held.until(lambda: held.server_calls == 0)
        reply = await stub.TranslateText(request(TEXT))
        assert reply.translations[0].translated_text == TEXT


async def test_a_caller_has_a_name_in_the_log_and_in_the_engine(models: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    async with held_server(models, log_requests=True) as held, stub_of(held.address) as stub:
        await held.until_ready()
        held.go.set()
        seen: list[Sequence] = []
        group = held.models[0].loop
        submit = group.submit
        group.submit = lambda sequences: (seen.extend(sequences), submit(sequences))  # type: ignore[method-assign]
        named = (("x-caller-id", "shop-7"),)
        await stub.TranslateText(request(TEXT), metadata=named)
        await stub.ScoreText(pb.ScoreTextRequest(contents=["a"], translated_texts=["b"]), metadata=named)
        async for _ in stub.StreamTranslateText(request(TEXT), metadata=named):
            pass
        await stub.TranslateText(request(TEXT))
        refusal = await refusal_of(stub.TranslateText(request(TEXT), metadata=NO_NAME))
        assert (refusal.code, refusal.fields) == ("INVALID_ARGUMENT", ["x-caller-id"])
        refusal = await refusal_of(stub.GetServerInfo(pb.GetServerInfoRequest(), metadata=NO_NAME))
        assert refusal.fields == ["x-caller-id"]
        assert [sequence.caller for sequence in seen] == ["shop-7"] * 3 + [""]
        await held.until(lambda: held.server_calls == 0)
        ended = [record.__dict__ for record in caplog.records if record.message == "A call ended."]
        assert [record.get("caller") for record in ended] == ["shop-7"] * 3 + [None] * 2
        assert [record.get("num_contents") for record in ended] == [1, 1, 1, 1, None]
        assert "two words" not in str(ended)


class Backwards(Copies):
    """Says the first token of the source for ever: another model than one that copies."""

    def log_probabilities(self, source: Any, cached: Any) -> Any:
        return super().log_probabilities([source[0], *source[-1:]], cached)


async def test_a_call_ends_with_the_model_it_began_with(models: Path) -> None:
    async with held_server(models) as held, stub_of(held.address) as stub:
        await held.until_ready()
        servicer, old = held.server.servicer, held.models[0]
        running = await begin(held, stub, request(TEXT))
        streaming = stub.StreamTranslateText(request(TEXT))
        await held.until(lambda: held.loop.num_waiting + held.loop.num_running == 2)

        runner = FakeRunner(
            max_source_tokens=64, max_target_tokens=64, source_vocabulary_size=held.runner.source_vocabulary_size
        )
        runner.language = Backwards(runner.source_vocabulary_size)
        loop = loop_over(runner, held.config, deliver=servicer.deliver, observe=lambda _: None)
        new = fake_model(runner, loop, old.tokenizer, digest="1" * 64)
        new.loop.start()
        view = CatalogView.of([new], held.config, clock=lambda: 0.0)
        try:
            assert servicer.catalog.replace(view) == (old,)
            info = await stub.GetServerInfo(pb.GetServerInfoRequest())
            assert [model.digest for model in info.models] == [new.digest]
            reply = await stub.TranslateText(request(TEXT))
            assert reply.metadata.model_digest == new.digest
            assert reply.translations[0].translated_text != TEXT
            assert servicer.catalog.in_use == (new, old)  # and it still waits for its step
            held.go.set()
            reply = await running
            assert (reply.metadata.model_digest, reply.translations[0].translated_text) == (old.digest, TEXT)
            messages = [message async for message in streaming]
            assert messages[-1].result.metadata.model_digest == old.digest
            assert messages[-1].result.translations[0].translated_text == TEXT
            await servicer.catalog.wait_unused(old)
            assert servicer.catalog.in_use == (new,)
        finally:
            old.loop.stop()


async def test_a_call_holds_no_model_but_its_own(models: Path) -> None:
    async with held_server(models) as held, stub_of(held.address) as stub:
        await held.until_ready()
        catalog, mine = held.server.servicer.catalog, held.models[0]
        runner = FakeRunner(source_vocabulary_size=held.runner.source_vocabulary_size)
        loop = loop_over(runner, held.config, deliver=lambda _: None, observe=lambda _: None)
        other = fake_model(runner, loop, mine.tokenizer, name="other")
        catalog.replace(CatalogView.of([mine, other], held.config, clock=lambda: 0.0))
        running = await begin(held, stub, request(TEXT, model="fake"))
        scoring = stub.ScoreText(pb.ScoreTextRequest(contents=["a"], translated_texts=["b"], model="fake"))
        await held.until(lambda: held.loop.num_waiting + held.loop.num_running == 2)
        assert catalog.replace(CatalogView.of([mine], held.config, clock=lambda: 0.0)) == (other,)
        assert catalog.in_use == (mine,)
        await catalog.wait_unused(other)
        assert not running.done()
        held.go.set()
        assert (await running).translations[0].translated_text == TEXT
        await scoring


async def test_bulk_calls_give_way_and_keep_their_bytes(models: Path) -> None:
    async with held_server(models, max_rows=2) as held, stub_of(held.address) as stub:
        await held.until_ready()
        bulk = stub.TranslateText(request(TEXT * 3, priority=pb.PRIORITY_BULK))
        await held.until(lambda: held.loop.num_running == 2)
        interactive = stub.TranslateText(request(TEXT))
        await held.until(lambda: held.loop.num_waiting_of(Priority.INTERACTIVE) == 1)
        assert held.loop.num_waiting_of(Priority.BULK) == 1
        held.go.set()
        reply, bulk_reply = await interactive, await bulk
        assert (reply.metadata.num_preemptions, bulk_reply.metadata.num_preemptions) == (0, 1)
        assert bulk_reply.translations[0].translated_text == TEXT * 3
        assert bulk_reply.metadata.num_steps == 3 * reply.metadata.num_steps
        samples = [sample for family in held.server._metrics.registry.collect() for sample in family.samples]
        (again,) = (sample.value for sample in samples if sample.name == "dragoman_preempted_steps_total")
        assert again >= 1


async def test_a_bulk_stream_tells_each_segment_whole(models: Path) -> None:
    async with held_server(models) as held, stub_of(held.address) as stub:
        await held.until_ready()
        held.go.set()
        told: dict[int, list[str]] = {}
        async for message in stub.StreamTranslateText(request(TEXT * 2, priority=pb.PRIORITY_BULK)):
            if message.WhichOneof("event") == "piece" and message.piece.text.strip():
                told.setdefault(message.piece.segment_index, []).append(message.piece.text)
        assert [len(pieces) for pieces in told.values()] == [1, 1]


async def test_bulk_never_takes_what_is_kept_for_interactive_callers(models: Path) -> None:
    flags = {"max_rows": 1, "max_waiting_segments": 4, "reserved_share": 0.5}
    async with held_server(models, **flags) as held, stub_of(held.address) as stub:
        await held.until_ready()
        running = await begin(held, stub, request(TEXT))
        waiting = stub.TranslateText(request(TEXT * 2, priority=pb.PRIORITY_BULK))
        await held.until(lambda: held.loop.num_waiting == 2)
        refusal = await refusal_of(stub.TranslateText(request(TEXT, priority=pb.PRIORITY_BULK)))
        assert (refusal.code, refusal.reason) == ("RESOURCE_EXHAUSTED", "QUEUE_FULL")
        welcome = stub.TranslateText(request(TEXT * 2))
        await held.until(lambda: held.loop.num_waiting == 4)
        held.go.set()
        for call in (running, waiting, welcome):
            await call
