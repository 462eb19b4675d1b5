"""The one table from exceptions to status codes and details."""

import grpc
import pytest
from google.rpc import error_details_pb2, status_pb2

from service.errors import DOMAIN, PUSHBACK_KEY, REQUEST_ID_KEY, STATUS_DETAILS_KEY, TABLE, Failure, failure_of
from service.refusals import (
    ChangeRefusedError,
    ClientNotReadingError,
    CredentialsError,
    DeadlineError,
    FieldViolation,
    InvalidRequestError,
    MalformedMessageError,
    NotAllowedError,
    NotServedError,
    OverloadedError,
    UnavailableError,
    UnreachableDeadlineError,
)


def details_of(failure: Failure) -> dict[str, object]:
    """The details by the last part of their type's name, as a client unpacks them."""
    trailers = dict(failure.trailing_metadata("id-1"))
    assert trailers[REQUEST_ID_KEY] == "id-1"
    binary = trailers[STATUS_DETAILS_KEY]
    assert isinstance(binary, bytes)
    status = status_pb2.Status.FromString(binary)
    assert status.code == failure.code.value[0]
    assert status.message == failure.message
    found: dict[str, object] = {}
    for packed in status.details:
        name = packed.type_url.rpartition(".")[2]
        message = getattr(error_details_pb2, name)()
        assert packed.Unpack(message)
        found[name] = message
    info = found["ErrorInfo"]
    assert isinstance(info, error_details_pb2.ErrorInfo)
    assert (info.reason, info.domain, info.metadata["request_id"]) == (failure.reason, DOMAIN, "id-1")
    return found


EXAMPLES = [
    (InvalidRequestError([FieldViolation(field="contents", description="It must.")]), "INVALID_ARGUMENT"),
    (MalformedMessageError("None."), "INVALID_ARGUMENT"),
    (CredentialsError("None.", reason="CREDENTIALS_MISSING"), "UNAUTHENTICATED"),
    (NotAllowedError("Not yours."), "PERMISSION_DENIED"),
    (NotServedError(resource_type="model", resource_name="x", served=["en-zh"]), "NOT_FOUND"),
    (OverloadedError("Full.", reason="QUEUE_FULL", retry_seconds=2), "RESOURCE_EXHAUSTED"),
    (UnavailableError("Not yet.", reason="STARTING", retry_seconds=2), "UNAVAILABLE"),
    (DeadlineError("Late."), "DEADLINE_EXCEEDED"),
    (UnreachableDeadlineError("Late."), "DEADLINE_EXCEEDED"),
    (ClientNotReadingError("Reads nothing."), "ABORTED"),
    (ChangeRefusedError(["Altered.", "Missing."], reason="BUNDLE_REFUSED"), "FAILED_PRECONDITION"),
    (RuntimeError("secret"), "INTERNAL"),
]


@pytest.mark.parametrize(("error", "code"), EXAMPLES, ids=[code for _, code in EXAMPLES])
def test_codes(error: Exception, code: str) -> None:
    failure = failure_of(error, "id-1")
    assert failure.code is grpc.StatusCode[code]
    assert failure.reason == failure.reason.upper()
    details_of(failure)


def test_the_examples_cover_the_table() -> None:
    assert {type(error) for error, _ in EXAMPLES} == {*TABLE, RuntimeError}


def test_all_violations_are_named() -> None:
    violations = [FieldViolation(field=f"contents[{i}]", description="It is long.") for i in range(3)]
    failure = failure_of(InvalidRequestError(violations), "id-1")
    bad_request = details_of(failure)["BadRequest"]
    assert isinstance(bad_request, error_details_pb2.BadRequest)
    named = [(violation.field, violation.description) for violation in bad_request.field_violations]
    assert named == [(violation.field, violation.description) for violation in violations]
    assert failure.message.startswith("contents[0]: It is long.")


def test_very_many_violations_still_fit_into_the_trailers() -> None:
    """gRPC clients take 8 KiB of metadata; what does not fit is counted."""
    violations = [FieldViolation(field=f"contents[{i}]", description="It is much too long." * 3) for i in range(1000)]
    failure = failure_of(InvalidRequestError(violations), "id-1")
    bad_request = details_of(failure)["BadRequest"]
    assert isinstance(bad_request, error_details_pb2.BadRequest)
    num_named = len(bad_request.field_violations) - 1
    assert bad_request.field_violations[-1].description == f"{1000 - num_named} more fields are wrong."
    binary = dict(failure.trailing_metadata("id-1"))[STATUS_DETAILS_KEY]
    assert len(binary) * 4 / 3 + len(failure.message) < 7000


@pytest.mark.parametrize("kind", [OverloadedError, UnavailableError])
def test_a_passing_refusal_says_when_to_come_back(kind: type[OverloadedError | UnavailableError]) -> None:
    failure = failure_of(kind("No.", reason="SOME_REASON", retry_seconds=2.0), "id-1")
    retry = details_of(failure)["RetryInfo"]
    assert isinstance(retry, error_details_pb2.RetryInfo)
    milliseconds = int(dict(failure.trailing_metadata("id-1"))[PUSHBACK_KEY])
    assert 2000 <= milliseconds <= 2500  # spread, so that callers refused together do not come back together
    assert failure.retry_seconds is not None
    assert retry.retry_delay.ToMilliseconds() == milliseconds
    assert failure.reason == "SOME_REASON"


@pytest.mark.parametrize("error", [DeadlineError("Late."), RuntimeError("x")])
def test_others_have_no_delay(error: Exception) -> None:
    failure = failure_of(error, "id-1")
    assert "RetryInfo" not in details_of(failure)
    assert PUSHBACK_KEY not in dict(failure.trailing_metadata("id-1"))


def test_what_is_served_is_named() -> None:
    error = NotServedError(resource_type="language pair", resource_name="en-fr", served=["en-zh", "zh-en"])
    failure = failure_of(error, "id-1")
    resource = details_of(failure)["ResourceInfo"]
    assert isinstance(resource, error_details_pb2.ResourceInfo)
    assert (resource.resource_type, resource.resource_name) == ("language pair", "en-fr")
    assert resource.description == "Served: en-zh, zh-en"
    assert failure.reason == "LANGUAGE_PAIR_NOT_FOUND"


def test_a_name_of_any_length_stays_small() -> None:
    error = NotServedError(resource_type="model", resource_name="n" * 100_000, served=["en-zh"])
    assert len(failure_of(error, "id-1").message) < 300


def test_our_fault_says_nothing_but_the_request() -> None:
    failure = failure_of(RuntimeError("secret"), "id-1")
    assert failure.is_our_fault
    assert "secret" not in str(failure.trailing_metadata("id-1"))
    assert "id-1" in failure.message


def test_a_kind_of_a_refusal_is_answered_like_it() -> None:
    class OwnDeadlineError(DeadlineError):
        pass

    assert failure_of(OwnDeadlineError("Late."), "id-1").code is grpc.StatusCode.DEADLINE_EXCEEDED


def test_a_change_that_is_refused_names_its_problems() -> None:
    failure = failure_of(ChangeRefusedError([f"{i} " + "x" * 500 for i in range(9)], reason="CANARY_FAILED"), "id-1")
    assert failure.message.endswith("… (2 more problem(s) are in the log.)")
    (details,) = failure.details
    assert isinstance(details, error_details_pb2.PreconditionFailure)
    assert [each.description[:2] for each in details.violations] == [f"{i} " for i in range(7)]
    assert len(dict(failure.trailing_metadata("id-1"))["grpc-status-details-bin"]) < 6_000
    assert failure_of(ChangeRefusedError(["Busy."], reason="SWAP_IN_PROGRESS"), "id").code is grpc.StatusCode.ABORTED
