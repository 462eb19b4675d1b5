"""Why a call is not answered with a translation: plain exceptions, raised where it is decided. `service.errors` maps
them to status codes; anything else that is raised is our fault."""

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class FieldViolation:
    """One field of a request that breaks a rule."""

    field: str
    """Path of the field, as in `contents[3]`."""
    description: str
    """What must hold and what was got; never the text itself."""


def shortened(value: str, most: int = 64) -> str:
    """The beginning of a value, as of one that a caller gave, for a message that must stay small."""
    return value if len(value) <= most else value[: most - 1] + "…"


class InvalidRequestError(ValueError):
    """The request can never be answered as it is; `violations` lists every reason."""

    def __init__(self, violations: list[FieldViolation]) -> None:
        super().__init__(" ".join(f"{violation.field}: {violation.description}" for violation in violations))
        self.violations = violations


class MalformedMessageError(ValueError):
    """The bytes of a call are no request."""


class CredentialsError(RuntimeError):
    """The call does not show that its caller may call at all."""

    def __init__(self, message: str, *, reason: str) -> None:
        super().__init__(message)
        self.reason = reason
        """CREDENTIALS_MISSING or CREDENTIALS_INVALID."""


class NotAllowedError(RuntimeError):
    """The caller is known, and may not do this."""


class NotServedError(LookupError):
    """Nothing here serves the model or the language pair that was asked for."""

    def __init__(self, *, resource_type: str, resource_name: str, served: list[str]) -> None:
        resource_name = shortened(resource_name)
        super().__init__(f"No {resource_type} {resource_name!r} is served here, but {', '.join(served)}.")
        self.resource_type = resource_type
        """"model" or "language pair"."""
        self.resource_name = resource_name
        """What was asked for."""
        self.served = served
        """What is served, in the same form."""


class OverloadedError(RuntimeError):
    """Too much is in progress to take this call as well."""

    def __init__(self, message: str, *, reason: str, retry_seconds: float) -> None:
        super().__init__(message)
        self.reason = reason
        """QUEUE_FULL, TOO_MANY_CALLS, TOO_MANY_CALLS_OF_CALLER, STANDING_DELAY or QUOTA_EXCEEDED."""
        self.retry_seconds = retry_seconds
        """When to try again."""


class UnavailableError(RuntimeError):
    """The server does not take calls at the moment."""

    def __init__(self, message: str, *, reason: str, retry_seconds: float) -> None:
        super().__init__(message)
        self.reason = reason
        """STARTING, DRAINING or ACCESS_UNAVAILABLE."""
        self.retry_seconds = retry_seconds
        """When to try again."""


class DeadlineError(RuntimeError):
    """The call's deadline passed before it was answered."""


class UnreachableDeadlineError(RuntimeError):
    """The call's deadline would pass before it could be answered."""


class ClientNotReadingError(RuntimeError):
    """The client of a stream does not read what it asked for."""


class ChangeRefusedError(RuntimeError):
    """What is served is not changed; `problems` lists every reason."""

    def __init__(self, problems: list[str], *, reason: str) -> None:
        super().__init__(" ".join(problems))
        self.problems = problems
        self.reason = reason
        """BUNDLE_REFUSED, CANARY_FAILED, LAST_MODEL, MEMORY_LIMIT or SWAP_IN_PROGRESS."""
