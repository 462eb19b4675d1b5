"""From when a call comes to the status code that it ends with.

Each call gets an identity, and is refused as early as can be: by the server's state, by who calls, because too much is
in progress, or because it is late. All that comes before a byte of its request is read. It ends with one code, counted
and logged once, whatever ends it: an answer, a refusal, a failure, or a client that is gone.
"""

import asyncio
import enum
import itertools
import logging
import math
import os
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass

import grpc

from service.admission import Admission
from service.caller import ANONYMOUS, SAFE_NAME, Access, Caller
from service.config import LimitsConfig
from service.errors import REQUEST_ID_KEY, Failure, failure_of
from service.metrics import Metrics
from service.refusals import DeadlineError, UnavailableError
from service.request import Priority
from service.stream_writer import ClientGoneError, Context

logger = logging.getLogger(__name__)

_QUIET_SECONDS = 0.3
_MAX_QUIET_SECONDS = 2.0
_ABORT_SECONDS = 1.0
"""How long a status may take to leave. Behind messages that nobody reads it stays with gRPC, which sends
it after them."""


class ServingState(enum.Enum):
    """Whether calls are taken."""

    STARTING = "starting"
    SERVING = "serving"
    DRAINING = "draining"


@dataclass(kw_only=True, eq=False, slots=True)
class Call:
    """A call in progress."""

    method: str
    """What is called, as in "TranslateText"."""
    request_id: str
    """Its identity."""
    started_at: float
    """When it came."""
    remaining: float | None
    """Seconds it could take then; None: any."""
    caller: Caller = ANONYMOUS
    """Who makes it."""
    num_contents: int | None = None
    """Items of its request; None before it is read."""
    priority: Priority = Priority.INTERACTIVE
    """Whether it goes before others or after them; interactive before its request is read."""

    @property
    def deadline(self) -> float | None:
        """When it must be answered, by the clock of `started_at`; None: any time."""
        return None if self.remaining is None else self.started_at + self.remaining


class CallLife:
    """The lives of all calls of a server; belongs to its event loop."""

    def __init__(
        self,
        limits: LimitsConfig,
        metrics: Metrics,
        *,
        access: Access,
        admission: Admission,
        logs_calls: bool,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """`logs_calls`: whether every call is logged. `clock` gives monotonic seconds."""
        self.state = ServingState.STARTING
        """Whether calls are taken."""
        self.num_calls = 0
        """Calls in progress."""
        self._limits = limits
        self._metrics = metrics
        self._access = access
        self._admission = admission
        self._logs_calls = logs_calls
        self._clock = clock
        self._last_call_at = -math.inf
        self._idle = asyncio.Event()
        self._idle.set()
        self._request_id_prefix = os.urandom(5).hex()
        self._request_numbers = itertools.count(1)

    def elapsed_seconds(self, call: Call) -> float:
        """How long a call has taken so far."""
        return self._clock() - call.started_at

    async def wait_idle(self) -> None:
        """Returns when no call is in progress."""
        await self._idle.wait()

    async def wait_quiet(self) -> None:
        """Returns when no call has come for a moment, or at last after a few of them."""
        ends_at = self._clock() + _MAX_QUIET_SECONDS
        while (now := self._clock()) < min(self._last_call_at + _QUIET_SECONDS, ends_at):
            await asyncio.sleep(min(self._last_call_at + _QUIET_SECONDS, ends_at) - now)

    @asynccontextmanager
    async def call(self, context: Context, *, method: str) -> AsyncIterator[Call]:
        """The life of a call that decodes: entered when it is admitted, ended with a status code, observed."""
        call = self._begin(context, method)
        self.num_calls += 1
        self._last_call_at = call.started_at
        self._idle.clear()
        code, reason = "CANCELLED", None
        has_entered = is_rejection = False
        try:
            if self.state is not ServingState.SERVING:
                raise self.unavailable()
            call.caller = await self._access.caller_of(
                context.invocation_metadata() or (), context.auth_context(), method=method
            )
            self._admission.enter(call)
            has_entered = True
            if call.remaining is not None and call.remaining <= 0:
                raise DeadlineError("The deadline had passed before the call was begun.")
            yield call
            code = "OK"
        except (asyncio.CancelledError, ClientGoneError) as error:  # gRPC does not say why
            if _is_deadline_over(context.time_remaining(), self.elapsed_seconds(call)):
                code = "DEADLINE_EXCEEDED"
            if isinstance(error, ClientGoneError):
                raise asyncio.CancelledError from error
            raise
        except Exception as error:
            failure = failure_of(error, call.request_id)
            code, reason, is_rejection = failure.code.name, failure.reason, failure.is_rejection
            await self._abort(context, call, failure, error)
        finally:
            if has_entered:
                self._admission.leave(call)
            self.num_calls -= 1
            if not self.num_calls:
                self._idle.set()
            self._observe(call, code, reason, is_rejection=is_rejection)

    @asynccontextmanager
    async def question(self, context: Context, *, method: str) -> AsyncIterator[Call]:
        """The life of a call that asks about the server: it costs nothing, is not counted, and is answered while the
        server drains."""
        call = self._begin(context, method)
        try:
            if self.state is ServingState.STARTING:
                raise self.unavailable()
            call.caller = await self._access.caller_of(
                context.invocation_metadata() or (), context.auth_context(), method=method
            )
            yield call
        except Exception as error:
            await self._abort(context, call, failure_of(error, call.request_id), error)

    def unavailable(self) -> UnavailableError:
        """The refusal of a call while the server starts or drains."""
        if self.state is ServingState.STARTING:
            message = "The server is loading its models."
            return UnavailableError(message, reason="STARTING", retry_seconds=max(1.0, self._limits.retry_seconds))
        message = "The server is stopping and takes no new calls."
        return UnavailableError(message, reason="DRAINING", retry_seconds=self._limits.retry_seconds)

    def _begin(self, context: Context, method: str) -> Call:
        return Call(
            method=method,
            request_id=self._request_id(context),
            started_at=self._clock(),
            remaining=context.time_remaining(),
        )

    async def _abort(self, context: Context, call: Call, failure: Failure, error: Exception) -> None:
        """Answers a call with what went wrong; always raises."""
        if failure.is_our_fault:
            logger.error("A call failed.", exc_info=error, extra={"request_id": call.request_id})
        try:
            async with asyncio.timeout(_ABORT_SECONDS):
                await context.abort(failure.code, failure.message, failure.trailing_metadata(call.request_id))
        except (TimeoutError, grpc.aio.InternalError):  # not taken yet, or nobody is there any more
            raise asyncio.CancelledError from error

    def _observe(self, call: Call, code: str, reason: str | None, *, is_rejection: bool) -> None:
        seconds = self.elapsed_seconds(call)
        self._metrics.observe_call(code, seconds)
        if is_rejection:
            assert reason is not None
            self._metrics.observe_rejection(reason, seconds)
        if self._logs_calls:
            facts = {"request_id": call.request_id, "code": code, "seconds": round(seconds, 6)}
            others = {"caller": call.caller.name or None, "reason": reason, "num_contents": call.num_contents}
            facts |= {name: value for name, value in others.items() if value is not None}
            logger.info("A call ended.", extra=facts)

    def _request_id(self, context: Context) -> str:
        """The caller's own identity of the call where it is one, else a new one."""
        for key, value in context.invocation_metadata() or ():
            if key == REQUEST_ID_KEY and isinstance(value, str) and SAFE_NAME.fullmatch(value):
                return value
        return f"{self._request_id_prefix}-{next(self._request_numbers)}"


def _is_deadline_over(remaining: float | None, elapsed: float) -> bool:
    """Whether a cancelled call has come to its deadline, and was not given up by its caller before.

    The caller's own clock ends the call too, and may do so a little before ours: gRPC rounds the time it sends up, by
    as much as a hundredth. A call cancelled within that and 10 ms of its deadline is taken to have reached it.
    """
    return remaining is not None and remaining <= 0.01 + 0.01 * (remaining + elapsed)
