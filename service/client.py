"""A small typed client: `Client("127.0.0.1:50051").translate(["Hello."])`, and `AsyncClient` for asyncio.

Calls that a server refuses for the moment (its queue is full, it starts or stops) are tried again after the delay it
asks for, within the call's timeout. Every other refusal is raised as an exception with what the server said.
"""

import asyncio
import contextlib
import json
import random
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Literal, Self, cast

import grpc
from google.rpc import error_details_pb2, status_pb2

from service.pb.translation.v1 import translation_pb2 as pb
from service.pb.translation.v1 import translation_pb2_grpc

DEFAULT_ADDRESS = "127.0.0.1:50051"
_STATUS_DETAILS_KEY = "grpc-status-details-bin"
_PUSHBACK_KEY = "grpc-retry-pushback-ms"
_REQUEST_ID_KEY = "x-request-id"
_FIRST_BACKOFF_SECONDS = 0.2
_MAX_BACKOFF_SECONDS = 5.0

FinishReason = Literal["STOP", "LENGTH", "BLANK", "CANCELLED", "REPETITION", "UNSPECIFIED"]
SegmentFlag = Literal["TRUNCATED", "SOURCE_SPLIT", "REPETITION", "PLACEHOLDER_LOST", "UNSPECIFIED"]


@dataclass(frozen=True, kw_only=True)
class Segment:
    """A piece of a text that was translated on its own."""

    source_text: str
    """Its source characters, white space around them included."""
    translated_text: str
    """Their translation, white space around it included."""
    score: float
    """Sum of the natural-log probabilities of its target tokens."""
    token_log_probabilities: tuple[float, ...]
    """Natural-log probability of each target token."""
    finish_reason: FinishReason
    """Why decoding ended."""
    flags: tuple[SegmentFlag, ...]
    """What a reader should know."""
    num_source_tokens: int
    """Source tokens, end of sentence included."""
    num_target_tokens: int
    """Target tokens, end of sentence included."""


@dataclass(frozen=True, kw_only=True)
class CallMetadata:
    """What a call cost, for all its texts together; fields as in the interface's `ResponseMetadata`."""

    model_digest: str
    """The served bundle's digest."""
    request_id: str
    """Identity of the call in the server's logs."""
    num_source_tokens: int
    """Source tokens of all segments."""
    num_target_tokens: int
    """Target tokens of all segments."""
    tokenize_seconds: float
    """Segmenting and tokenizing."""
    queue_seconds: float
    """Until the last segment had joined the batch."""
    encode_seconds: float
    """Encoder runs that the call had a part in."""
    decode_seconds: float
    """From the first decoding step to the last."""
    total_seconds: float
    """Everything, as the server saw it."""
    num_steps: int
    """Decoding steps of the segments, summed."""
    max_rows_shared: int
    """The most rows that decoded in one step with this call."""


@dataclass(frozen=True, kw_only=True)
class Translation:
    """The translation of one text."""

    text: str
    """The target text."""
    model: str
    """The model that made it."""
    segments: tuple[Segment, ...]
    """Its segments in order."""
    metadata: CallMetadata
    """What the whole call cost."""


@dataclass(frozen=True, kw_only=True)
class Violation:
    """A field of the request that breaks a rule."""

    field: str
    """Path of the field, as in `contents[3]`."""
    description: str
    """What must hold and what was got."""


class TranslationError(Exception):
    """A call that was not answered."""

    def __init__(self, message: str, *, code: str, reason: str = "", request_id: str = "") -> None:
        super().__init__(message)
        self.code = code
        """Name of the gRPC status code."""
        self.reason = reason
        """The server's reason, as in QUEUE_FULL; empty when no server of ours answered."""
        self.request_id = request_id
        """Identity of the call in the server's logs; empty when no server of ours answered."""


class InvalidRequestError(TranslationError):
    """The request can never be answered as it is."""

    violations: tuple[Violation, ...] = ()
    """Every field that is wrong."""


class NotServedError(TranslationError):
    """Nothing there serves the model or the language pair."""

    resource_name: str = ""
    """What was asked for."""
    served: str = ""
    """What is served."""


class TryAgainError(TranslationError):
    """The server cannot take the call for the moment, and could not within the timeout."""

    retry_seconds: float | None = None
    """The delay that the server asked for."""


class OverloadedError(TryAgainError):
    """Its queue is full."""


class UnavailableError(TryAgainError):
    """It starts, stops or cannot be reached."""


class DeadlineExceededError(TranslationError):
    """The timeout passed."""


class ServerError(TranslationError):
    """The server failed."""


_ERRORS: dict[grpc.StatusCode, type[TranslationError]] = {
    grpc.StatusCode.INVALID_ARGUMENT: InvalidRequestError,
    grpc.StatusCode.NOT_FOUND: NotServedError,
    grpc.StatusCode.RESOURCE_EXHAUSTED: OverloadedError,
    grpc.StatusCode.UNAVAILABLE: UnavailableError,
    grpc.StatusCode.DEADLINE_EXCEEDED: DeadlineExceededError,
    grpc.StatusCode.CANCELLED: UnavailableError,  # not by us: the server's end, or a proxy's, cut the call off
}


class Client:
    """Calls a server from ordinary code; may be shared by threads. Close it, or use it in a `with` block."""

    def __init__(self, address: str = DEFAULT_ADDRESS, *, timeout_seconds: float = 60.0, max_retries: int = 4) -> None:
        """Args:
        address: host:port, or any gRPC target such as `dns:///translation:50051`; calls go round its addresses.
        timeout_seconds: for a call with all its retries.
        max_retries: how often a call that was refused for the moment is tried again.
        """
        self._timeout_seconds = timeout_seconds
        self._max_retries = max_retries
        self._channel = grpc.insecure_channel(address, options=channel_options())
        self._stub = cast(Any, translation_pb2_grpc).TranslationServiceStub(self._channel)

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
        max_target_tokens: int = 0,
        timeout_seconds: float | None = None,
    ) -> list[Translation]:
        """The translation of each text, in their order.

        Args:
            texts: at least one.
            source: language of the texts; empty: the model's.
            target: language to translate into; empty: the model's.
            model: name of a served model; empty: the one for the pair.
            max_target_tokens: of one segment; 0: the server's choice.
            timeout_seconds: for this call instead of the client's.

        Raises:
            TranslationError: one of its kinds.
        """
        request = build_request(texts, source, target, model, max_target_tokens)
        attempts = _Attempts(self._timeout_seconds if timeout_seconds is None else timeout_seconds, self._max_retries)
        while True:
            try:
                return parse_reply(self._stub.TranslateText(request, timeout=attempts.remaining_seconds()))
            except grpc.RpcError as error:
                time.sleep(attempts.delay_after(error_of(error)))

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


class AsyncClient:
    """Calls a server from asyncio; belongs to one event loop. Close it, or use it in an `async with` block."""

    def __init__(self, address: str = DEFAULT_ADDRESS, *, timeout_seconds: float = 60.0, max_retries: int = 4) -> None:
        """As `Client`."""
        self._timeout_seconds = timeout_seconds
        self._max_retries = max_retries
        self._channel = grpc.aio.insecure_channel(address, options=channel_options())
        self._stub = cast(Any, translation_pb2_grpc).TranslationServiceStub(self._channel)

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
        max_target_tokens: int = 0,
        timeout_seconds: float | None = None,
    ) -> list[Translation]:
        """As `Client.translate`. Cancelling the task cancels the call, and the server stops its work."""
        request = build_request(texts, source, target, model, max_target_tokens)
        attempts = _Attempts(self._timeout_seconds if timeout_seconds is None else timeout_seconds, self._max_retries)
        while True:
            try:
                return parse_reply(await self._stub.TranslateText(request, timeout=attempts.remaining_seconds()))
            except grpc.RpcError as error:
                await asyncio.sleep(attempts.delay_after(error_of(error)))

    async def info(self, *, timeout_seconds: float | None = None) -> pb.GetServerInfoResponse:
        """As `Client.info`."""
        timeout = self._timeout_seconds if timeout_seconds is None else timeout_seconds
        try:
            return cast(
                pb.GetServerInfoResponse, await self._stub.GetServerInfo(pb.GetServerInfoRequest(), timeout=timeout)
            )
        except grpc.RpcError as error:
            raise error_of(error) from error


class _Attempts:
    """How long a call may still take, and when it is tried again."""

    def __init__(self, timeout_seconds: float, max_retries: int) -> None:
        self._ends_at = time.monotonic() + timeout_seconds
        self._num_left = max_retries
        self._backoff_seconds = _FIRST_BACKOFF_SECONDS

    def remaining_seconds(self) -> float:
        """What is left of the timeout."""
        return max(0.001, self._ends_at - time.monotonic())

    def delay_after(self, error: TranslationError) -> float:
        """How long to wait before the next attempt.

        Raises:
            TranslationError: `error`, when there is none: it is no passing refusal, the retries are used up, or the
                wait would outlast the timeout.
        """
        if not isinstance(error, TryAgainError) or self._num_left == 0:
            raise error
        self._num_left -= 1
        delay = error.retry_seconds
        if delay is None:
            delay = self._backoff_seconds * random.uniform(0.8, 1.2)
            self._backoff_seconds = min(2 * self._backoff_seconds, _MAX_BACKOFF_SECONDS)
        if delay < 0 or delay >= self._ends_at - time.monotonic():  # negative: the server says not to come back
            raise error
        return delay


def channel_options() -> list[tuple[str, Any]]:
    """Options of the clients' channels: round robin over the addresses of a name, keepalive, replies of any size."""
    return [
        ("grpc.service_config", json.dumps({"loadBalancingConfig": [{"round_robin": {}}]})),
        ("grpc.keepalive_time_ms", 60_000),
        ("grpc.keepalive_timeout_ms", 20_000),
        ("grpc.max_receive_message_length", -1),
    ]


def build_request(
    texts: Sequence[str], source: str, target: str, model: str, max_target_tokens: int
) -> pb.TranslateTextRequest:
    """The message of a call.

    Raises:
        InvalidRequestError: when a text has half a surrogate pair, which no message can carry.
        TypeError: when `texts` is one text.
    """
    if isinstance(texts, str):
        raise TypeError("`texts` must be a list of texts, but is one text.")
    violations = [
        Violation(field=f"contents[{i}]", description="It must be valid Unicode, but has half a surrogate pair.")
        for i, text in enumerate(texts)
        if not _is_encodable(text)
    ]
    if violations:
        error = InvalidRequestError(
            f"{violations[0].field}: {violations[0].description}", code="INVALID_ARGUMENT", reason="INVALID_REQUEST"
        )
        error.violations = tuple(violations)
        raise error
    request = pb.TranslateTextRequest(
        contents=texts, source_language_code=source, target_language_code=target, model=model
    )
    if max_target_tokens:
        request.decoding_options.max_target_tokens = max_target_tokens
    return request


def _is_encodable(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def parse_reply(reply: pb.TranslateTextResponse) -> list[Translation]:
    """The message of an answer as the client's types."""
    metadata = CallMetadata(**{name: getattr(reply.metadata, name) for name in CallMetadata.__dataclass_fields__})
    return [
        Translation(
            text=translation.translated_text,
            model=translation.model,
            segments=tuple(_parse_segment(segment) for segment in translation.segments),
            metadata=metadata,
        )
        for translation in reply.translations
    ]


def _parse_segment(segment: pb.Segment) -> Segment:
    reason = pb.FinishReason.Name(segment.finish_reason).removeprefix("FINISH_REASON_")
    flags = (pb.SegmentFlag.Name(flag).removeprefix("SEGMENT_FLAG_") for flag in segment.flags)
    return Segment(
        source_text=segment.source_text,
        translated_text=segment.translated_text,
        score=segment.score,
        token_log_probabilities=tuple(segment.token_log_probabilities),
        finish_reason=cast(FinishReason, reason),
        flags=cast(tuple[SegmentFlag, ...], tuple(flags)),
        num_source_tokens=segment.num_source_tokens,
        num_target_tokens=segment.num_target_tokens,
    )


def error_of(error: grpc.RpcError) -> TranslationError:
    """What a failed call is raised as."""
    call = cast(Any, error)
    trailers = dict(call.trailing_metadata() or ())
    status = status_pb2.Status()
    if isinstance(details := trailers.get(_STATUS_DETAILS_KEY), bytes):
        with contextlib.suppress(Exception):  # a proxy's own details: the code and message remain
            status.ParseFromString(details)
    info = next(_unpacked(status, error_details_pb2.ErrorInfo), error_details_pb2.ErrorInfo())
    kind = _ERRORS.get(call.code(), ServerError)
    if kind is OverloadedError and not info.reason:  # gRPC's own: a message over the size limit, no use to send again
        kind = TranslationError
    raised = kind(
        str(call.details()),
        code=call.code().name,
        reason=info.reason,
        request_id=str(trailers.get(_REQUEST_ID_KEY, "")),
    )
    if isinstance(raised, InvalidRequestError):
        raised.violations = tuple(
            Violation(field=violation.field, description=violation.description)
            for bad_request in _unpacked(status, error_details_pb2.BadRequest)
            for violation in bad_request.field_violations
        )
    if isinstance(raised, NotServedError):
        for resource in _unpacked(status, error_details_pb2.ResourceInfo):
            raised.resource_name, raised.served = resource.resource_name, resource.description
    if isinstance(raised, TryAgainError):
        with contextlib.suppress(ValueError):
            raised.retry_seconds = int(trailers[_PUSHBACK_KEY]) / 1000 if _PUSHBACK_KEY in trailers else None
    return raised


def _unpacked(status: status_pb2.Status, kind: type[Any]) -> Iterator[Any]:
    """The details of one kind in a rich status."""
    for detail in status.details:
        if detail.Is(kind.DESCRIPTOR):
            message = kind()
            detail.Unpack(message)
            yield message
