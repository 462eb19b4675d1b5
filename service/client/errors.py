"""What a call that was not answered is raised as."""

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, cast

import grpc
from google.rpc import error_details_pb2, status_pb2

_STATUS_DETAILS_KEY = "grpc-status-details-bin"
_PUSHBACK_KEY = "grpc-retry-pushback-ms"
_REQUEST_ID_KEY = "x-request-id"


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


class CredentialsError(TranslationError):
    """The server wants a key or token, and this is none that it knows."""


class NotAllowedError(TranslationError):
    """The server knows the key, which is not for this."""


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
    grpc.StatusCode.UNAUTHENTICATED: CredentialsError,
    grpc.StatusCode.PERMISSION_DENIED: NotAllowedError,
    grpc.StatusCode.NOT_FOUND: NotServedError,
    grpc.StatusCode.RESOURCE_EXHAUSTED: OverloadedError,
    grpc.StatusCode.UNAVAILABLE: UnavailableError,
    grpc.StatusCode.DEADLINE_EXCEEDED: DeadlineExceededError,
    grpc.StatusCode.CANCELLED: UnavailableError,  # not by us: the server's end, or a proxy's, cut the call off
}


def invalid_request(violations: list[Violation]) -> InvalidRequestError:
    """The error of a request that no message can carry: as if a server had refused it."""
    error = InvalidRequestError(
        f"{violations[0].field}: {violations[0].description}", code="INVALID_ARGUMENT", reason="INVALID_REQUEST"
    )
    error.violations = tuple(violations)
    return error


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
