"""Who may call: those with a key, those whom a hook knows, those with a certificate, or everybody?

Settings choose one of them. With keys or a hook every call shows a token, whatever certificate it comes with; with
certificates alone the name in the client's certificate is the caller. Health checks need neither.
"""

import asyncio
import hashlib
import importlib
import inspect
import logging
from collections.abc import Awaitable, Callable, Iterable, Mapping
from typing import Any, cast

from service.api_keys import ApiKeys, is_key
from service.caller import SAFE_NAME, Access, Caller, OpenAccess
from service.config import Config
from service.refusals import CredentialsError, OverloadedError, UnavailableError
from service.watched_files import FilesError

logger = logging.getLogger(__name__)

Hook = Callable[[str, str], Awaitable[Caller | None]]
"""Gives the caller whom a token belongs to, or None when it is nobody's: `async def hook(token, method)`."""
MAX_HOOK_SECONDS = 1.0
"""How long the hook may take for a call."""
_AUTHORIZATION_KEY, _API_KEY_KEY = "authorization", "x-api-key"
_COMMON_NAME, _ALTERNATIVE_NAMES = "x509_common_name", "x509_subject_alternative_name"
Metadata = Iterable[tuple[str, str | bytes]]
AuthContext = Mapping[str, Iterable[bytes]]


def access_of(config: Config, *, on_failure: Callable[[], None] = lambda: None) -> Access:
    """Who may call by these settings. `on_failure` is called when changed keys cannot be used.

    Raises:
        FilesError: when the keys or the hook cannot be used.
    """
    settings = config.access
    if settings.api_keys_file or settings.bearer_hook:
        return TokenAccess(
            keys=ApiKeys(settings.api_keys_file, on_failure=on_failure) if settings.api_keys_file else None,
            hook=find_hook(settings.bearer_hook) if settings.bearer_hook else None,
            max_waiting=config.limits.max_concurrent_calls,
            retry_seconds=config.limits.retry_seconds,
        )
    return CertificateAccess() if config.tls.tls_client_ca else OpenAccess()


def find_hook(name: str) -> Hook:
    """The coroutine function that "module:function" names.

    Raises:
        FilesError: when there is none.
    """
    module_name, _, function_name = name.partition(":")
    try:
        hook: Any = getattr(importlib.import_module(module_name), function_name)
    except Exception as error:  # of whatever the module does when it is imported
        raise FilesError(
            [f"`bearer_hook` must name module:function, but {name} is none: {type(error).__name__}."]
        ) from error
    if not inspect.iscoroutinefunction(hook):
        raise FilesError([f"`bearer_hook` must name an async function, but {name} is none."])
    return cast(Hook, hook)


class TokenAccess:
    """Those may call who show a key, or a token that the hook knows."""

    def __init__(self, *, keys: ApiKeys | None, hook: Hook | None, max_waiting: int, retry_seconds: float) -> None:
        """At least one of `keys` and `hook` must be given. A token that says that it is a key is never shown to the
        hook where there are keys.

        Args:
            max_waiting: calls that may wait for the hook.
            retry_seconds: when to try again if it does not answer.
        """
        self._keys = keys
        self._hook = hook
        self._max_waiting = max_waiting
        self._retry_seconds = retry_seconds
        self._num_waiting = 0

    async def caller_of(self, metadata: Metadata, auth_context: AuthContext, *, method: str) -> Caller:  # noqa: ARG002  # of the protocol
        """See `Access`.

        Raises:
            CredentialsError: when there is no token, or it is nobody's.
            UnavailableError: when the hook did not say.
            OverloadedError: when too many calls wait for it.
        """
        token = token_of(metadata)
        if self._keys is not None and (self._hook is None or is_key(token)):
            return self._keys.caller_of(token)
        assert self._hook is not None
        return await self._ask(self._hook, token, method)

    async def _ask(self, hook: Hook, token: str, method: str) -> Caller:
        if self._num_waiting >= self._max_waiting:
            message = f"At most {self._max_waiting} calls may be in progress."
            raise OverloadedError(message, reason="TOO_MANY_CALLS", retry_seconds=self._retry_seconds)
        self._num_waiting += 1
        try:
            async with asyncio.timeout(MAX_HOOK_SECONDS):
                caller = await hook(token, method)
            if caller is not None and not (isinstance(caller, Caller) and SAFE_NAME.fullmatch(caller.name)):
                raise TypeError("The hook must return a Caller with a safe name, or None.")
        except Exception as error:
            logger.error("The bearer hook failed.", exc_info=error)
            message = "The server could not find out whose call this is."
            raise UnavailableError(message, reason="ACCESS_UNAVAILABLE", retry_seconds=self._retry_seconds) from error
        finally:
            self._num_waiting -= 1
        if caller is None:
            raise CredentialsError(
                "The token must be one that is known here, but is not.", reason="CREDENTIALS_INVALID"
            )
        return caller


class CertificateAccess:
    """Those may call who have a certificate; gRPC has verified it."""

    async def caller_of(self, metadata: Metadata, auth_context: AuthContext, *, method: str) -> Caller:  # noqa: ARG002  # of the protocol
        """See `Access`: whom the certificate names.

        Raises:
            CredentialsError: when it names nobody.
        """
        for key in (_COMMON_NAME, _ALTERNATIVE_NAMES):
            for value in auth_context.get(key, ()):
                if value:
                    return Caller(name=_safe_name(value))
        raise CredentialsError("The certificate must name its owner, but does not.", reason="CREDENTIALS_INVALID")


def _safe_name(value: bytes) -> str:
    """A name of a certificate where it is safe in a log, else one made from its hash."""
    name = value.decode("utf-8", errors="replace")
    return name if SAFE_NAME.fullmatch(name) else f"sha256:{hashlib.sha256(value).hexdigest()[:32]}"


def token_of(metadata: Metadata) -> str:
    """The token that a call shows: `authorization: Bearer TOKEN`, or `x-api-key: TOKEN`.

    Raises:
        CredentialsError: when there is none, or it is not clear which it is.
    """
    given = [(key, value) for key, value in metadata if key in (_AUTHORIZATION_KEY, _API_KEY_KEY)]
    if not given:
        message = (
            f"The call must have `{_AUTHORIZATION_KEY}: Bearer TOKEN` or `{_API_KEY_KEY}: TOKEN`, but has neither."
        )
        raise CredentialsError(message, reason="CREDENTIALS_MISSING")
    if len(given) > 1:
        message = f"The call must show one token, but has {len(given)}."
        raise CredentialsError(message, reason="CREDENTIALS_INVALID")
    key, value = given[0]
    token = value if isinstance(value, str) else ""
    if key == _AUTHORIZATION_KEY:
        scheme, _, token = token.partition(" ")
        if scheme.lower() != "bearer":
            message = f"`{_AUTHORIZATION_KEY}` must be `Bearer TOKEN`, but is of another scheme."
            raise CredentialsError(message, reason="CREDENTIALS_INVALID")
    if not token.strip():
        raise CredentialsError("The token must not be empty, but is.", reason="CREDENTIALS_INVALID")
    return token.strip()
