"""The calls of a client, from ordinary code and from asyncio."""

import asyncio
import json
import time
from collections.abc import Sequence
from dataclasses import replace
from types import TracebackType
from typing import Any, Literal, Self, cast

import grpc

from service.client.attempts import Attempts
from service.client.connection import credentials_of, stub_of
from service.client.errors import error_of, invalid_request
from service.client.options import DecodingOptions, text_violations
from service.client.results import TextScore, Translation, parse_scores, parse_translations
from service.client.streams import AsyncTranslationStream, TranslationStream
from service.pb.translation.v1 import translation_pb2 as pb

DEFAULT_ADDRESS = "127.0.0.1:50051"
Priority = Literal["interactive", "bulk"]
_PRIORITIES: dict[Priority, pb.Priority] = {
    "interactive": pb.PRIORITY_INTERACTIVE,
    "bulk": pb.PRIORITY_BULK,
}


class Client:
    """Calls a server from ordinary code; may be shared by threads. Close it, or use it in a `with` block."""

    def __init__(
        self,
        address: str = DEFAULT_ADDRESS,
        *,
        timeout_seconds: float = 60.0,
        max_retries: int = 4,
        tls: bool = False,
        root_certificates: bytes | None = None,
        certificate: bytes | None = None,
        key: bytes | None = None,
        api_key: str = "",
        allow_plaintext_key: bool = False,
    ) -> None:
        """Args:
            address: host:port, or any gRPC target such as `dns:///translation:50051`; calls go round its addresses.
            timeout_seconds: for a call with all its retries.
            max_retries: how often a call that was refused for the moment is tried again.
            tls: whether connections are encrypted; they are as well when certificates are given.
            root_certificates: who vouches for the server, PEM; None: whom the system trusts.
            certificate: the client's own, PEM, for a server that asks for one; with `key`.
            key: its private key, PEM.
            api_key: the key or token that each call shows.
            allow_plaintext_key: whether that may be sent to another machine without TLS.

        Raises:
            ValueError: when these do not go together.
        """
        self._timeout_seconds = timeout_seconds
        self._max_retries = max_retries
        credentials, metadata = credentials_of(
            address,
            tls=tls,
            root_certificates=root_certificates,
            certificate=certificate,
            key=key,
            api_key=api_key,
            allow_plaintext_key=allow_plaintext_key,
        )
        self._channel = (
            grpc.insecure_channel(address, options=channel_options())
            if credentials is None
            else grpc.secure_channel(address, credentials, options=channel_options())
        )
        self._stub = stub_of(self._channel, metadata)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Ends the connections."""
        self._channel.close()

    def translate(
        self,
        texts: Sequence[str],
        *,
        source: str = "",
        target: str = "",
        model: str = "",
        options: DecodingOptions | None = None,
        max_target_tokens: int = 0,
        priority: Priority = "interactive",
        timeout_seconds: float | None = None,
    ) -> list[Translation]:
        """The translation of each text, in their order.

        Args:
            texts: at least one.
            source: language of the texts; empty: the model's.
            target: language to translate into; empty: the model's.
            model: name of a served model; empty: the one for the pair.
            options: how to decode; None: the model's defaults.
            max_target_tokens: short for the option of this name; 0: not said.
            priority: "bulk" fills the rows that interactive work leaves.
            timeout_seconds: for this call instead of the client's.

        Raises:
            TranslationError: one of its kinds.
        """
        request = build_request(
            texts,
            source=source,
            target=target,
            model=model,
            options=options,
            max_target_tokens=max_target_tokens,
            priority=priority,
        )
        return parse_translations(self._answer(self._stub.TranslateText, request, timeout_seconds))

    def stream(
        self,
        texts: Sequence[str],
        *,
        source: str = "",
        target: str = "",
        model: str = "",
        options: DecodingOptions | None = None,
        priority: Priority = "interactive",
        timeout_seconds: float | None = None,
    ) -> TranslationStream:
        """As `translate`, in pieces as they become certain: iterate over the stream. Those of a text joined are its
        translation; when all have come the stream's `translations` has the whole answer."""
        request = build_request(texts, source=source, target=target, model=model, options=options, priority=priority)
        return TranslationStream(
            lambda seconds: self._stub.StreamTranslateText(request, timeout=seconds),
            self._attempts(timeout_seconds),
            len(texts),
        )

    def score(
        self,
        texts: Sequence[str],
        translations: Sequence[str],
        *,
        source: str = "",
        target: str = "",
        model: str = "",
        options: DecodingOptions | None = None,
        priority: Priority = "interactive",
        timeout_seconds: float | None = None,
    ) -> list[TextScore]:
        """How probable the model finds each translation, in their order.

        Args:
            texts: at least one, each short enough to be one segment.
            translations: as many.
            source: language of the texts; empty: the model's.
            target: language of the translations; empty: the model's.
            model: name of a served model; empty: the one for the pair.
            options: only `length_penalty`, `coverage_penalty` and `with_alignment`.
            priority: as in `translate`.
            timeout_seconds: for this call instead of the client's.

        Raises:
            TranslationError: one of its kinds.
        """
        request = build_score_request(
            texts, translations, source=source, target=target, model=model, options=options, priority=priority
        )
        return parse_scores(self._answer(self._stub.ScoreText, request, timeout_seconds))

    def info(self, *, timeout_seconds: float | None = None) -> pb.GetServerInfoResponse:
        """What the server serves, and its limits.

        Raises:
            TranslationError: one of its kinds.
        """
        timeout = self._timeout_seconds if timeout_seconds is None else timeout_seconds
        try:
            return cast(pb.GetServerInfoResponse, self._stub.GetServerInfo(pb.GetServerInfoRequest(), timeout=timeout))
        except grpc.RpcError as error:
            raise error_of(error) from error

    def _attempts(self, timeout_seconds: float | None) -> Attempts:
        return Attempts(self._timeout_seconds if timeout_seconds is None else timeout_seconds, self._max_retries)

    def _answer(self, method: Any, request: Any, timeout_seconds: float | None) -> Any:
        attempts = self._attempts(timeout_seconds)
        while True:
            try:
                return method(request, timeout=attempts.remaining_seconds())
            except grpc.RpcError as error:
                time.sleep(attempts.delay_after(error_of(error)))


class AsyncClient:
    """Calls a server from asyncio; belongs to one event loop. Close it, or use it in an `async with` block."""

    def __init__(
        self,
        address: str = DEFAULT_ADDRESS,
        *,
        timeout_seconds: float = 60.0,
        max_retries: int = 4,
        tls: bool = False,
        root_certificates: bytes | None = None,
        certificate: bytes | None = None,
        key: bytes | None = None,
        api_key: str = "",
        allow_plaintext_key: bool = False,
    ) -> None:
        """As `Client`."""
        self._timeout_seconds = timeout_seconds
        self._max_retries = max_retries
        credentials, metadata = credentials_of(
            address,
            tls=tls,
            root_certificates=root_certificates,
            certificate=certificate,
            key=key,
            api_key=api_key,
            allow_plaintext_key=allow_plaintext_key,
        )
        self._channel = (
            grpc.aio.insecure_channel(address, options=channel_options())
            if credentials is None
            else grpc.aio.secure_channel(address, credentials, options=channel_options())
        )
        self._stub = stub_of(self._channel, metadata)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    async def close(self) -> None:
        """Ends the connections."""
        await self._channel.close(None)

    async def translate(
        self,
        texts: Sequence[str],
        *,
        source: str = "",
        target: str = "",
        model: str = "",
        options: DecodingOptions | None = None,
        max_target_tokens: int = 0,
        priority: Priority = "interactive",
        timeout_seconds: float | None = None,
    ) -> list[Translation]:
        """As `Client.translate`. Cancelling the task cancels the call, and the server stops its work."""
        request = build_request(
            texts,
            source=source,
            target=target,
            model=model,
            options=options,
            max_target_tokens=max_target_tokens,
            priority=priority,
        )
        return parse_translations(await self._answer(self._stub.TranslateText, request, timeout_seconds))

    def stream(
        self,
        texts: Sequence[str],
        *,
        source: str = "",
        target: str = "",
        model: str = "",
        options: DecodingOptions | None = None,
        priority: Priority = "interactive",
        timeout_seconds: float | None = None,
    ) -> AsyncTranslationStream:
        """As `Client.stream`."""
        request = build_request(texts, source=source, target=target, model=model, options=options, priority=priority)
        return AsyncTranslationStream(
            lambda seconds: self._stub.StreamTranslateText(request, timeout=seconds),
            self._attempts(timeout_seconds),
            len(texts),
        )

    async def score(
        self,
        texts: Sequence[str],
        translations: Sequence[str],
        *,
        source: str = "",
        target: str = "",
        model: str = "",
        options: DecodingOptions | None = None,
        priority: Priority = "interactive",
        timeout_seconds: float | None = None,
    ) -> list[TextScore]:
        """As `Client.score`."""
        request = build_score_request(
            texts, translations, source=source, target=target, model=model, options=options, priority=priority
        )
        return parse_scores(await self._answer(self._stub.ScoreText, request, timeout_seconds))

    async def info(self, *, timeout_seconds: float | None = None) -> pb.GetServerInfoResponse:
        """As `Client.info`."""
        timeout = self._timeout_seconds if timeout_seconds is None else timeout_seconds
        try:
            return cast(
                pb.GetServerInfoResponse, await self._stub.GetServerInfo(pb.GetServerInfoRequest(), timeout=timeout)
            )
        except grpc.RpcError as error:
            raise error_of(error) from error

    def _attempts(self, timeout_seconds: float | None) -> Attempts:
        return Attempts(self._timeout_seconds if timeout_seconds is None else timeout_seconds, self._max_retries)

    async def _answer(self, method: Any, request: Any, timeout_seconds: float | None) -> Any:
        attempts = self._attempts(timeout_seconds)
        while True:
            try:
                return await method(request, timeout=attempts.remaining_seconds())
            except grpc.RpcError as error:
                await asyncio.sleep(attempts.delay_after(error_of(error)))


def channel_options() -> list[tuple[str, Any]]:
    """Options of the clients' channels: round robin over the addresses of a name, keepalive, replies of any size."""
    return [
        ("grpc.service_config", json.dumps({"loadBalancingConfig": [{"round_robin": {}}]})),
        ("grpc.keepalive_time_ms", 60_000),
        ("grpc.keepalive_timeout_ms", 20_000),
        ("grpc.max_receive_message_length", -1),
    ]


def build_request(
    texts: Sequence[str],
    *,
    source: str = "",
    target: str = "",
    model: str = "",
    options: DecodingOptions | None = None,
    max_target_tokens: int = 0,
    priority: Priority = "interactive",
) -> pb.TranslateTextRequest:
    """The message of a call that translates.

    Raises:
        InvalidRequestError: when a text has half a surrogate pair, or an option is such that no message can carry it.
        TypeError: when `texts` is one text.
        ValueError: when `priority` is none.
    """
    _check_texts(texts=("contents", texts))
    request = pb.TranslateTextRequest(
        contents=texts,
        source_language_code=source,
        target_language_code=target,
        model=model,
        priority=_priority(priority),
    )
    if max_target_tokens:
        options = replace(options or DecodingOptions(), max_target_tokens=max_target_tokens)
    if options is not None:
        request.decoding_options.CopyFrom(options.to_message())
    return request


def build_score_request(
    texts: Sequence[str],
    translations: Sequence[str],
    *,
    source: str = "",
    target: str = "",
    model: str = "",
    options: DecodingOptions | None = None,
    priority: Priority = "interactive",
) -> pb.ScoreTextRequest:
    """The message of a call that scores; raises as `build_request`."""
    _check_texts(texts=("contents", texts), translations=("translated_texts", translations))
    request = pb.ScoreTextRequest(
        contents=texts,
        translated_texts=translations,
        source_language_code=source,
        target_language_code=target,
        model=model,
        priority=_priority(priority),
    )
    if options is not None:
        request.decoding_options.CopyFrom(options.to_message())
    return request


def _priority(priority: Priority) -> pb.Priority:
    """As a message carries it.

    Raises:
        ValueError: when it is none.
    """
    if priority not in _PRIORITIES:
        raise ValueError(f"`priority` must be one of {', '.join(_PRIORITIES)}, but is {priority!r}.")
    return _PRIORITIES[priority]


def _check_texts(**arguments: tuple[str, Sequence[str]]) -> None:
    """That texts, by argument and by field, can be sent."""
    violations = []
    for argument, (name, texts) in arguments.items():
        if isinstance(texts, str):
            raise TypeError(f"`{argument}` must be a list of texts, but is one text.")
        violations += text_violations(name, texts)
    if violations:
        raise invalid_request(violations)
