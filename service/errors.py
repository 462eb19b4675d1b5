"""The one table from exceptions to gRPC status codes and their details. docs/behaviour.md shows it to users."""

import random
from collections.abc import Callable
from dataclasses import dataclass

import grpc
from google.protobuf import any_pb2, duration_pb2
from google.protobuf.message import Message
from google.rpc import error_details_pb2, status_pb2

from service.refusals import (
    ChangeRefusedError,
    ClientNotReadingError,
    CredentialsError,
    DeadlineError,
    InvalidRequestError,
    MalformedMessageError,
    NotAllowedError,
    NotServedError,
    OverloadedError,
    UnavailableError,
    UnreachableDeadlineError,
    shortened,
)

DOMAIN = "dragoman"
STATUS_DETAILS_KEY = "grpc-status-details-bin"
PUSHBACK_KEY = "grpc-retry-pushback-ms"
REQUEST_ID_KEY = "x-request-id"
_MAX_VIOLATION_CHARACTERS = 3_000  # of all violations together: clients take 8 KiB of trailers, and base64 adds a third
_MAX_PROBLEMS = 7  # of a change of models, for the same reason


@dataclass(frozen=True, kw_only=True)
class Failure:
    """How a call that failed is answered."""

    code: grpc.StatusCode
    """The status code."""
    reason: str
    """`google.rpc.ErrorInfo.reason`."""
    message: str
    """For people; never contains text of the request."""
    details: tuple[Message, ...] = ()
    """Details beside the ErrorInfo."""
    retry_seconds: float | None = None
    """When to try again; None: trying again is no use."""
    is_our_fault: bool = False
    """Whether it must be logged with its cause."""
    is_rejection: bool = False
    """Whether the call was sound, but there was too much to do."""

    def trailing_metadata(self, request_id: str) -> tuple[tuple[str, str | bytes], ...]:
        """The trailers that carry the details: the rich status, the delay to retry after, the identity of the call."""
        info = error_details_pb2.ErrorInfo(reason=self.reason, domain=DOMAIN, metadata={"request_id": request_id})
        details: list[Message] = [info, *self.details]
        trailers: list[tuple[str, str | bytes]] = [(REQUEST_ID_KEY, request_id)]
        if self.retry_seconds is not None:
            milliseconds = max(1, round(self.retry_seconds * 1000))
            delay = duration_pb2.Duration()
            delay.FromMilliseconds(milliseconds)
            details.append(error_details_pb2.RetryInfo(retry_delay=delay))
            trailers.append((PUSHBACK_KEY, str(milliseconds)))
        status = status_pb2.Status(code=self.code.value[0], message=self.message)
        for detail in details:
            packed = any_pb2.Any()
            packed.Pack(detail)
            status.details.append(packed)
        trailers.append((STATUS_DETAILS_KEY, status.SerializeToString()))
        return tuple(trailers)


def _invalid(error: InvalidRequestError) -> Failure:
    violations: list[error_details_pb2.BadRequest.FieldViolation] = []
    num_characters = 0
    for violation in error.violations:
        num_characters += len(violation.field) + len(violation.description)
        if num_characters > _MAX_VIOLATION_CHARACTERS:
            left = len(error.violations) - len(violations)
            violations.append(
                error_details_pb2.BadRequest.FieldViolation(field="", description=f"{left} more fields are wrong.")
            )
            break
        violations.append(
            error_details_pb2.BadRequest.FieldViolation(field=violation.field, description=violation.description)
        )
    first = error.violations[0]
    more = f" ({len(error.violations) - 1} more field(s) are wrong, see the details.)" if error.violations[1:] else ""
    return Failure(
        code=grpc.StatusCode.INVALID_ARGUMENT,
        reason="INVALID_REQUEST",
        message=f"{first.field}: {first.description}{more}",
        details=(error_details_pb2.BadRequest(field_violations=violations),),
    )


def _malformed(error: MalformedMessageError) -> Failure:
    return Failure(code=grpc.StatusCode.INVALID_ARGUMENT, reason="MALFORMED_MESSAGE", message=str(error))


def _no_credentials(error: CredentialsError) -> Failure:
    return Failure(code=grpc.StatusCode.UNAUTHENTICATED, reason=error.reason, message=str(error))


def _not_allowed(error: NotAllowedError) -> Failure:
    return Failure(code=grpc.StatusCode.PERMISSION_DENIED, reason="NOT_ALLOWED", message=str(error))


def _not_served(error: NotServedError) -> Failure:
    return Failure(
        code=grpc.StatusCode.NOT_FOUND,
        reason="MODEL_NOT_FOUND" if error.resource_type == "model" else "LANGUAGE_PAIR_NOT_FOUND",
        message=str(error),
        details=(
            error_details_pb2.ResourceInfo(
                resource_type=error.resource_type,
                resource_name=error.resource_name,
                description=f"Served: {', '.join(error.served)}",
            ),
        ),
    )


def _overloaded(error: OverloadedError) -> Failure:
    return Failure(
        code=grpc.StatusCode.RESOURCE_EXHAUSTED,
        reason=error.reason,
        message=str(error),
        retry_seconds=_spread(error.retry_seconds),
        is_rejection=True,
    )


def _unavailable(error: UnavailableError) -> Failure:
    return Failure(
        code=grpc.StatusCode.UNAVAILABLE,
        reason=error.reason,
        message=str(error),
        retry_seconds=_spread(error.retry_seconds),
    )


def _deadline(error: DeadlineError) -> Failure:
    return Failure(code=grpc.StatusCode.DEADLINE_EXCEEDED, reason="DEADLINE_EXCEEDED", message=str(error))


def _unreachable(error: UnreachableDeadlineError) -> Failure:
    return Failure(
        code=grpc.StatusCode.DEADLINE_EXCEEDED, reason="DEADLINE_UNREACHABLE", message=str(error), is_rejection=True
    )


def _not_reading(error: ClientNotReadingError) -> Failure:
    return Failure(code=grpc.StatusCode.ABORTED, reason="CLIENT_NOT_READING", message=str(error))


def _change_refused(error: ChangeRefusedError) -> Failure:
    violations = [
        error_details_pb2.PreconditionFailure.Violation(type=error.reason, description=shortened(problem, 400))
        for problem in error.problems[:_MAX_PROBLEMS]
    ]
    more = len(error.problems) - len(violations)
    return Failure(
        code=CHANGE_CODES[error.reason],
        reason=error.reason,
        message=shortened(error.problems[0], 400) + (f" ({more} more problem(s) are in the log.)" if more else ""),
        details=(error_details_pb2.PreconditionFailure(violations=violations),),
    )


def _spread(seconds: float) -> float:
    """A delay up to a quarter longer, so that callers refused together do not come back together."""
    return seconds * random.uniform(1.0, 1.25)


CHANGE_CODES = {
    "BUNDLE_REFUSED": grpc.StatusCode.FAILED_PRECONDITION,
    "CANARY_FAILED": grpc.StatusCode.FAILED_PRECONDITION,
    "LAST_MODEL": grpc.StatusCode.FAILED_PRECONDITION,
    "MEMORY_LIMIT": grpc.StatusCode.RESOURCE_EXHAUSTED,
    "SWAP_IN_PROGRESS": grpc.StatusCode.ABORTED,
}
"""How a change of models is refused, by reason."""

TABLE: dict[type[Exception], Callable[..., Failure]] = {
    InvalidRequestError: _invalid,
    MalformedMessageError: _malformed,
    CredentialsError: _no_credentials,
    NotAllowedError: _not_allowed,
    NotServedError: _not_served,
    OverloadedError: _overloaded,
    UnavailableError: _unavailable,
    DeadlineError: _deadline,
    UnreachableDeadlineError: _unreachable,
    ClientNotReadingError: _not_reading,
    ChangeRefusedError: _change_refused,
}
"""Exception to answer; whatever is not here is INTERNAL."""


def failure_of(error: Exception, request_id: str) -> Failure:
    """How a call that ended with `error` is answered."""
    for kind in type(error).__mro__:
        if kind in TABLE:
            return TABLE[kind](error)
    return Failure(
        code=grpc.StatusCode.INTERNAL,
        reason="INTERNAL",
        message=f"The server failed; its log has the cause under request {request_id}.",
        is_our_fault=True,
    )
