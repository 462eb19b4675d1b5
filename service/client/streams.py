"""A translation as it comes: pieces of text to iterate over, and the whole answer at the end."""

import asyncio
import time
from collections.abc import Callable
from types import TracebackType
from typing import Any, Self, cast

import grpc

from service.client.attempts import Attempts
from service.client.errors import ServerError, TranslationError, error_of
from service.client.results import TextPiece, Translation, parse_piece, parse_translations
from service.pb.translation.v1 import translation_pb2 as pb

_END = cast(Any, grpc.aio).EOF
Start = Callable[[float], Any]
"""Begins the call, which may take so many seconds."""


class _Received:
    """What has come of a stream."""

    def __init__(self, num_texts: int) -> None:
        self.texts = [""] * num_texts
        """The translation of each text so far."""
        self._result: list[Translation] | None = None

    @property
    def translations(self) -> list[Translation]:
        """The whole answer, as `Client.translate` gives it.

        Raises:
            RuntimeError: when the stream was not read to its end.
        """
        if self._result is None:
            raise RuntimeError("A stream must be read to its end before its translations are asked for.")
        return self._result

    def _take(self, message: pb.StreamTranslateTextResponse) -> TextPiece | None:
        """The piece of a message; None when it is the last."""
        if message.WhichOneof("event") == "result":
            self._result = parse_translations(message.result)
            return None
        piece = parse_piece(message.piece)
        self.texts[piece.text_index] += piece.text
        return piece

    def _broken_off(self) -> TranslationError:
        return ServerError("The stream ended without a result.", code="UNKNOWN")


class TranslationStream(_Received):
    """An iterator over the pieces of a translation. Leave it early with `close`, or use it in a `with` block."""

    def __init__(self, start: Start, attempts: Attempts, num_texts: int) -> None:
        super().__init__(num_texts)
        self._start = start
        self._attempts = attempts
        self._call: Any = None
        self._has_begun = False

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> TextPiece:
        """The next piece.

        Raises:
            TranslationError: one of its kinds; `texts` has what came before.
        """
        if self._result is not None:
            raise StopIteration
        while True:
            if self._call is None:
                self._call = self._start(self._attempts.remaining_seconds())
            try:
                piece = self._take(next(self._call))
            except grpc.RpcError as error:
                if self._has_begun:
                    raise error_of(error) from error
                self._call = None
                time.sleep(self._attempts.delay_after(error_of(error)))
                continue
            except StopIteration:
                raise self._broken_off() from None
            self._has_begun = True
            if piece is None:
                raise StopIteration
            return piece

    def close(self) -> None:
        """Gives the rest up: the server stops its work."""
        if self._call is not None:
            self._call.cancel()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


class AsyncTranslationStream(_Received):
    """As `TranslationStream`, for `async for` and `async with`."""

    def __init__(self, start: Start, attempts: Attempts, num_texts: int) -> None:
        super().__init__(num_texts)
        self._start = start
        self._attempts = attempts
        self._call: Any = None
        self._has_begun = False

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> TextPiece:
        """The next piece.

        Raises:
            TranslationError: one of its kinds; `texts` has what came before.
        """
        if self._result is not None:
            raise StopAsyncIteration
        while True:
            if self._call is None:
                self._call = self._start(self._attempts.remaining_seconds())
            try:
                message = await self._call.read()
            except grpc.RpcError as error:
                if self._has_begun:
                    raise error_of(error) from error
                self._call = None
                await asyncio.sleep(self._attempts.delay_after(error_of(error)))
                continue
            if message is _END:
                raise self._broken_off()
            self._has_begun = True
            piece = self._take(message)
            if piece is None:
                raise StopAsyncIteration
            return piece

    async def close(self) -> None:
        """Gives the rest up: the server stops its work."""
        if self._call is not None:
            self._call.cancel()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()
