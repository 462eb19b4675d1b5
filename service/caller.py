"""Who calls?

`Access` names the caller of each call, or refuses it, before anything of the request is read. The name is for limits,
fair shares and the log; it is never text, because only short names of safe characters are taken.
"""

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Protocol

from service.refusals import FieldViolation, InvalidRequestError, NotAllowedError

CALLER_KEY = "x-caller-id"
"""The metadata key of a caller's name."""
SAFE_NAME = re.compile(r"[A-Za-z0-9._:-]{1,64}")
"""What may stand in a log as it came: the identity of a caller or a call."""


@dataclass(frozen=True, kw_only=True)
class Caller:
    """Whose call it is, and what is due to it."""

    name: str = ""
    """Empty: anonymous."""
    weight: float = 1.0
    """Its share beside other callers'."""
    is_admin: bool = False
    """Whether it may change what is served."""
    models: frozenset[str] = frozenset()
    """Names of the models that it may use; empty: all."""
    max_calls: int = 0
    """Calls that it may have in progress; 0: no limit of its own."""
    segments_per_second: float = 0.0
    """Segments that it may ask for, on average; 0: no limit of its own."""
    tokens_per_second: float = 0.0
    """Source tokens that it may ask for, on average; 0: no limit of its own."""

    def check_model(self, name: str) -> None:
        """That a model may be used.

        Raises:
            NotAllowedError: when it may not.
        """
        if self.models and name not in self.models:
            raise NotAllowedError(
                f"`model` must be one that the caller may use ({', '.join(sorted(self.models))}), but is {name!r}."
            )


ANONYMOUS = Caller()


class Access(Protocol):
    """Knows callers."""

    async def caller_of(
        self, metadata: Iterable[tuple[str, str | bytes]], auth_context: Mapping[str, Iterable[bytes]], *, method: str
    ) -> Caller:
        """Who makes a call.

        Args:
            metadata: of the call, keys in lower case.
            auth_context: what gRPC knows of the connection, as `ServicerContext.auth_context` gives it.
            method: what is called, as in "TranslateText".

        Raises:
            Exception: one of `service.errors.TABLE`, when the call is not to be answered.
        """
        ...


class OpenAccess:
    """Everybody may call, and say who they are."""

    async def caller_of(
        self,
        metadata: Iterable[tuple[str, str | bytes]],
        auth_context: Mapping[str, Iterable[bytes]],  # noqa: ARG002  # of the protocol
        *,
        method: str,  # noqa: ARG002  # of the protocol
    ) -> Caller:
        """See `Access`: whom `x-caller-id` names.

        Raises:
            InvalidRequestError: when that is no name, or there are several.
        """
        names = [value for key, value in metadata if key == CALLER_KEY]
        if not names:
            return ANONYMOUS
        name = names[0]
        if len(names) > 1 or not isinstance(name, str) or not SAFE_NAME.fullmatch(name):
            what = (
                f"was given {len(names)} times" if len(names) > 1 else f"is something else, of {len(name)} characters"
            )
            description = f"It must be one name of 1 to 64 letters, digits and ._:-, but {what}."
            raise InvalidRequestError([FieldViolation(field=CALLER_KEY, description=description)])
        return Caller(name=name)
