"""Clients that send garbage, never read or vanish: each has its code, none is our fault, the next call is answered."""

import asyncio
import contextlib
import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any
from unittest import mock

import grpc
import pytest

from service.handlers import SERVICE_NAME
from service.pb.translation.v1 import translation_pb2 as pb
from service.stream_writer import StreamWriter
from tests.integration.serving import HeldServer, held_server, refusal_of, request, stub_of, unpack

TEXT = "Bado gimu. "
BLANK = " " * 100_000
UNSOUND = [b"\xff\xff\xff", b"\x0a\x05ab", bytes(range(256)) * 64]
"""No message of any kind."""
GARBAGE = [*UNSOUND, b"\x0a\x02\xff\xfe", b"\x0a\x03\xed\xa0\x80"]
"""Or one whose text is no UTF-8."""


def method(channel: Any, name: str) -> Any:
    """A method that takes and gives bytes."""
    path = f"/{SERVICE_NAME}/{name}"
    return channel.unary_stream(path) if name.startswith("Stream") else channel.unary_unary(path)


async def still_right(held: HeldServer, stub: Any) -> None:
    """The next call is answered, and nothing is left behind."""
    held.go.set()
    reply = await stub.TranslateText(request(TEXT))
    assert reply.translations[0].translated_text == TEXT
    await held.until(lambda: held.server_calls == 0)
    await held.until(lambda: held.loop.num_running + held.loop.num_waiting == 0)
    assert held.server.servicer.catalog._num_leases == {}


@pytest.mark.parametrize("name", ["TranslateText", "StreamTranslateText", "ScoreText", "GetServerInfo"])
async def test_bytes_that_are_no_request_are_refused_by_every_method(
    models: Path, name: str, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    # A request without fields takes any text as one that it does not know.
    garbage = [data for data in GARBAGE if name != "GetServerInfo" or data in UNSOUND]
    async with held_server(models, log_requests=True) as held, stub_of(held.address) as stub:
        await held.until_ready()
        async with grpc.aio.insecure_channel(held.address) as channel:
            for data in garbage:
                call = method(channel, name)(data, metadata=(("x-request-id", "mine"),))
                with pytest.raises(grpc.aio.AioRpcError) as caught:
                    await (call.read() if name.startswith("Stream") else call)
                refusal = unpack(caught.value)
                assert (refusal.code, refusal.reason) == ("INVALID_ARGUMENT", "MALFORMED_MESSAGE")
                assert (refusal.request_id, refusal.retry_seconds) == ("mine", None)
                assert f"its {len(data)} bytes" in refusal.message
        ended = [record.__dict__ for record in caplog.records if record.message == "A call ended."]
        if name != "GetServerInfo":  # it is not counted, whatever becomes of it
            assert held.calls_by_code() == {"INVALID_ARGUMENT": len(GARBAGE)}
            facts = {(record["code"], record["reason"], record["request_id"]) for record in ended}
            assert facts == {("INVALID_ARGUMENT", "MALFORMED_MESSAGE", "mine")}
            assert len(ended) == len(GARBAGE)
        assert not [record for record in caplog.records if record.levelno >= logging.WARNING]
        await still_right(held, stub)


@asynccontextmanager
async def cut_off(address: str) -> AsyncIterator[tuple[str, Any]]:
    """A way to a server that can be cut: its address, and what cuts it."""
    host, _, port = address.rpartition(":")
    writers: list[asyncio.StreamWriter] = []
    tasks: list[asyncio.Task[None]] = []

    async def carry(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError):
            while data := await reader.read(65536):
                writer.write(data)
                await writer.drain()

    async def connect(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        there = await asyncio.open_connection(host, int(port))
        writers.extend((writer, there[1]))
        tasks.extend((asyncio.create_task(carry(reader, there[1])), asyncio.create_task(carry(there[0], writer))))

    def cut() -> None:
        for writer in writers:
            writer.transport.abort()

    server = await asyncio.start_server(connect, host, 0)
    try:
        yield f"{host}:{server.sockets[0].getsockname()[1]}", cut
    finally:
        server.close()
        cut()
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


class Writes:
    """Sees every write of a stream, and how it ended."""

    def __init__(self) -> None:
        self.num_begun = 0
        self.ends: list[type[BaseException] | None] = []
        self._rounds = 0
        self._seen = (0, 0)

    async def write(self, writer: StreamWriter, message: Any) -> None:
        self.num_begun += 1
        try:
            await self.original(writer, message)
        except BaseException as error:
            self.ends.append(type(error))
            raise
        self.ends.append(None)

    original = staticmethod(StreamWriter.write)

    def are_stuck(self) -> bool:
        """Whether one write has been waiting for many rounds of the event loop."""
        seen = (self.num_begun, len(self.ends))
        is_waiting = self.num_begun > len(self.ends)
        self._rounds = self._rounds + 1 if is_waiting and seen == self._seen else 0
        self._seen = seen
        return self._rounds > 2000


@pytest.fixture
def writes() -> Any:
    made = Writes()

    async def write(writer: StreamWriter, message: Any) -> None:
        await made.write(writer, message)

    with mock.patch.object(StreamWriter, "write", write):
        yield made


def much() -> pb.TranslateTextRequest:
    """More than gRPC takes for a client that does not read, and a segment that is still decoded by then."""
    return request(*[BLANK] * 39, TEXT * 3)


async def stuck(held: HeldServer, stub: Any, writes: Writes, timeout: float | None = None) -> Any:
    """A stream whose client has read one message and reads no more, its last segments finished or held."""
    stream = stub.StreamTranslateText(much(), timeout=timeout)
    await stream.read()
    await held.until(lambda: writes.are_stuck() or held.server_calls == 0)  # the latter on a machine that stood still
    return stream


@pytest.mark.parametrize("is_decoding", [False, True])
async def test_a_client_that_cancels_without_having_read(
    models: Path, writes: Writes, is_decoding: bool, caplog: pytest.LogCaptureFixture
) -> None:
    async with held_server(models) as held, stub_of(held.address) as stub:
        await held.until_ready()
        if not is_decoding:
            held.go.set()
        stream = stub.StreamTranslateText(much())
        await stream.read()
        if is_decoding:
            await held.until(lambda: held.loop.num_running > 0)
        else:
            await held.until(writes.are_stuck)
        stream.cancel()
        await held.until(lambda: held.server_calls == 0)
        assert held.calls_by_code() == {"CANCELLED": 1}
        await still_right(held, stub)
        assert not [record for record in caplog.records if record.levelno >= logging.WARNING]


async def test_a_client_that_expires_without_having_read(
    models: Path, writes: Writes, caplog: pytest.LogCaptureFixture
) -> None:
    async with held_server(models) as held, stub_of(held.address) as stub:
        await held.until_ready()
        held.go.set()
        await stuck(held, stub, writes, timeout=2.0)
        await held.until(lambda: held.server_calls == 0)
        assert held.calls_by_code() == {"DEADLINE_EXCEEDED": 1}
        await still_right(held, stub)
        assert not [record for record in caplog.records if record.levelno >= logging.WARNING]


async def test_a_client_that_vanishes_without_having_read(
    models: Path, writes: Writes, caplog: pytest.LogCaptureFixture
) -> None:
    async with held_server(models) as held, stub_of(held.address) as stub, cut_off(held.address) as (address, cut):
        await held.until_ready()
        held.go.set()
        async with stub_of(address) as far:
            await stuck(held, far, writes)
            cut()
            await held.until(lambda: held.server_calls == 0)
        assert held.calls_by_code() == {"CANCELLED": 1}
        await still_right(held, stub)
        assert not [record for record in caplog.records if record.levelno >= logging.WARNING]


async def test_a_client_that_never_reads_is_given_up(models: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    async with (
        held_server(models, max_stream_stall_seconds=0.05, log_requests=True) as held,
        stub_of(held.address) as stub,
    ):
        await held.until_ready()
        stream = stub.StreamTranslateText(much())
        await stream.read()
        held.go.set()
        await held.until(lambda: held.server_calls == 0)
        assert held.calls_by_code() == {"ABORTED": 1}
        (record,) = [record.__dict__ for record in caplog.records if record.message == "A call ended."]
        assert (record["code"], record["reason"]) == ("ABORTED", "CLIENT_NOT_READING")

        async def read() -> None:
            while await stream.read() is not grpc.aio.EOF:
                pass

        with pytest.raises(grpc.aio.AioRpcError) as caught:  # when it comes to read after all, it is told
            await read()
        refusal = unpack(caught.value)
        assert (refusal.code, refusal.reason) == ("ABORTED", "CLIENT_NOT_READING")
        await still_right(held, stub)
        assert not [record for record in caplog.records if record.levelno >= logging.WARNING]


async def test_a_client_that_reads_slowly_is_not_given_up(models: Path) -> None:
    async with held_server(models, max_stream_stall_seconds=60.0) as held, stub_of(held.address) as stub:
        await held.until_ready()
        held.go.set()
        last = None
        stream = stub.StreamTranslateText(much())
        while (message := await stream.read()) is not grpc.aio.EOF:
            last = message
            for _ in range(100):
                await asyncio.sleep(0)
        assert last.result.translations[-1].translated_text == TEXT * 3
        assert held.calls_by_code() == {"OK": 1}


async def test_garbage_on_the_wire_harms_nobody(models: Path) -> None:
    async with held_server(models) as held, stub_of(held.address) as stub:
        await held.until_ready()
        host, _, port = held.address.rpartition(":")
        for junk in (b"\x00" * 500, b"GET / HTTP/1.1\r\n\r\n", b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + b"\xff" * 300):
            reader, writer = await asyncio.open_connection(host, int(port))
            writer.write(junk)
            with contextlib.suppress(OSError):
                await reader.read()  # until the server has closed it
            writer.close()
        await still_right(held, stub)
        assert (await refusal_of(stub.TranslateText(request()))).code == "INVALID_ARGUMENT"
