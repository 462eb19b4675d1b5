"""TranslationService on grpc.aio: admission, the call's life, and how it ends."""

import asyncio
import enum
import itertools
import logging
import math
import os
import re
import time
from collections import deque
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import grpc

from service.config import Config
from service.engine_loop import DrainingError
from service.errors import REQUEST_ID_KEY, failure_of
from service.metrics import Metrics
from service.pb.translation.v1 import translation_pb2 as pb
from service.pb.translation.v1 import translation_pb2_grpc
from service.refusals import DeadlineError, OverloadedError, UnavailableError
from service.request import Delivery
from service.scheduler import QueueFullError
from service.translator import Job, Translator

logger = logging.getLogger(__name__)

SERVICE_NAME = pb.DESCRIPTOR.services_by_name["TranslationService"].full_name
_REQUEST_ID = re.compile(r"[A-Za-z0-9._:-]{1,64}")
_LONG_CHARACTERS = 8_000  # a text longer than this is cut and joined in another thread: it takes milliseconds
_MAX_RETRY_SECONDS = 30.0
_QUIET_SECONDS = 0.3
_MAX_QUIET_SECONDS = 2.0


def _is_deadline_over(remaining: float | None, elapsed: float) -> bool:
    """Whether a cancelled call has come to its deadline, and was not given up by its caller before.

    The caller's own clock ends the call too, and may do so a little before ours: gRPC rounds the time it sends up, by
    as much as a hundredth. A call cancelled within that and 10 ms of its deadline is taken to have reached it.
    """
    return remaining is not None and remaining <= 0.01 + 0.01 * (remaining + elapsed)


class ServingState(enum.Enum):
    """Whether calls are taken."""

    STARTING = "starting"
    SERVING = "serving"
    DRAINING = "draining"


class TranslationServicer(translation_pb2_grpc.TranslationServiceServicer):
    """Answers calls in one event loop. Everything but `deliver` belongs to that loop's thread."""

    def __init__(
        self,
        config: Config,
        metrics: Metrics,
        *,
        event_loop: asyncio.AbstractEventLoop,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.state = ServingState.STARTING
        self.num_calls = 0
        """Translate calls in progress."""
        self._limits = config.limits
        self._log_requests = config.logs.log_requests
        self._metrics = metrics
        self._event_loop = event_loop
        self._clock = clock
        self._translator: Translator | None = None
        self._info = pb.GetServerInfoResponse()
        self._last_call_at = -math.inf
        self._idle = asyncio.Event()
        self._idle.set()
        self._deliveries: deque[list[Delivery]] = deque()
        self._is_waking = False
        self._texts_pool = ThreadPoolExecutor(max_workers=2, thread_name_prefix="texts")
        self._request_id_prefix = os.urandom(5).hex()
        self._request_numbers = itertools.count(1)

    def begin_serving(self, translator: Translator, info: pb.GetServerInfoResponse) -> None:
        """Takes calls from now on."""
        self._translator = translator
        self._info = info
        self.state = ServingState.SERVING

    def begin_draining(self) -> None:
        """Refuses new calls from now on; those in progress go on."""
        self.state = ServingState.DRAINING

    async def wait_idle(self) -> None:
        """Returns when no translate call is in progress."""
        await self._idle.wait()

    async def wait_quiet(self) -> None:
        """Returns when no call has come for a moment, or at last after a few of them."""
        ends_at = self._clock() + _MAX_QUIET_SECONDS
        while (now := self._clock()) < min(self._last_call_at + _QUIET_SECONDS, ends_at):
            await asyncio.sleep(min(self._last_call_at + _QUIET_SECONDS, ends_at) - now)

    def deliver(self, deliveries: list[Delivery]) -> None:
        """Takes what an engine's thread has to tell, and wakes the event loop unless it is about to wake."""
        self._deliveries.append(deliveries)
        if self._is_waking:  # it empties the queue after it has said that it is awake: nothing is left behind
            return
        self._is_waking = True
        try:
            self._event_loop.call_soon_threadsafe(self._hand_over)
        except RuntimeError:
            logger.warning("Finished segments came after the event loop had ended.")

    def _hand_over(self) -> None:
        """Tells each sequence's owner; one that fails does not keep the others from it."""
        self._is_waking = False
        while self._deliveries:
            for delivery in self._deliveries.popleft():
                try:
                    delivery.make()
                except Exception as error:
                    logger.error("A segment's news could not be handed over.", exc_info=error)

    async def TranslateText(  # noqa: N802  # the interface's name
        self, request: pb.TranslateTextRequest, context: "grpc.aio.ServicerContext[Any, Any]"
    ) -> pb.TranslateTextResponse:
        """Translates; see the interface."""
        started_at = self._clock()
        request_id = self._request_id(context)
        self.num_calls += 1
        self._last_call_at = started_at
        self._idle.clear()
        code = "CANCELLED"
        try:
            reply = await self._translate(request, context, request_id, started_at)
            code = "OK"
            return reply
        except asyncio.CancelledError:  # by gRPC, which does not say why
            if _is_deadline_over(context.time_remaining(), self._clock() - started_at):
                code = "DEADLINE_EXCEEDED"
            raise
        except Exception as error:
            failure = failure_of(error, request_id)
            code = failure.code.name
            if failure.is_our_fault:
                logger.error("A call failed.", exc_info=error, extra={"request_id": request_id})
            await context.abort(failure.code, failure.message, failure.trailing_metadata(request_id))
        finally:
            self.num_calls -= 1
            if not self.num_calls:
                self._idle.set()
            seconds = self._clock() - started_at
            self._metrics.observe_call(code, seconds)
            if self._log_requests:
                facts = {"request_id": request_id, "code": code, "seconds": round(seconds, 6)}
                logger.info("A call ended.", extra={**facts, "num_contents": len(request.contents)})

    async def _translate(
        self,
        call: pb.TranslateTextRequest,
        context: "grpc.aio.ServicerContext[Any, Any]",
        request_id: str,
        started_at: float,
    ) -> pb.TranslateTextResponse:
        translator = self._admit()
        contents = list(call.contents)
        model, max_target_tokens = translator.check(call, contents)
        remaining = context.time_remaining()
        deadline = None if remaining is None else started_at + remaining
        if remaining is not None and remaining <= 0:
            raise DeadlineError("The deadline had passed before the call was begun.")
        is_long = sum(map(len, contents)) > _LONG_CHARACTERS
        done: asyncio.Future[None] = self._event_loop.create_future()

        def on_done(_: Job) -> None:
            if not done.done():
                done.set_result(None)

        def prepare() -> Job:
            return translator.prepare(contents, model, max_target_tokens, deadline=deadline, on_done=on_done)

        job = await self._event_loop.run_in_executor(self._texts_pool, prepare) if is_long else prepare()
        if job.sequences:
            try:
                model.loop.submit(job.sequences)
            except QueueFullError as error:
                message = "The queue of waiting segments is full."
                raise OverloadedError(message, reason="QUEUE_FULL", retry_seconds=self._retry_seconds()) from error
            except DrainingError as error:
                raise self._unavailable(ServingState.DRAINING) from error
            try:
                await done
            finally:
                if job.num_unfinished:  # cancelled, expired or failed: nobody waits for the rest
                    model.loop.cancel(job.sequences)
        if job.error is not None:
            if isinstance(job.error, DrainingError):
                raise self._unavailable(ServingState.DRAINING) from job.error
            raise job.error
        result = job.result
        translations = await self._event_loop.run_in_executor(self._texts_pool, result) if is_long else result()
        num_blank = sum(not segment.core for segments in job.items for segment in segments)
        if num_blank:
            self._metrics.observe_blank(num_blank)
        metadata = job.metadata(request_id=request_id, total_seconds=self._clock() - started_at)
        return pb.TranslateTextResponse(translations=translations, metadata=metadata)

    def _admit(self) -> Translator:
        """The translator, if the call may go on.

        Raises:
            UnavailableError: while the server starts or drains.
            OverloadedError: when too many calls are in progress.
        """
        if self.state is not ServingState.SERVING or self._translator is None:
            raise self._unavailable(self.state)
        if self.num_calls > self._limits.max_concurrent_calls:
            message = f"At most {self._limits.max_concurrent_calls} calls may be in progress."
            raise OverloadedError(message, reason="TOO_MANY_CALLS", retry_seconds=self._retry_seconds())
        return self._translator

    def _unavailable(self, state: ServingState) -> UnavailableError:
        if state is ServingState.DRAINING:
            message = "The server is stopping and takes no new calls."
            return UnavailableError(message, reason="DRAINING", retry_seconds=self._limits.retry_seconds)
        message = "The server is loading its models."
        return UnavailableError(message, reason="STARTING", retry_seconds=max(1.0, self._limits.retry_seconds))

    def _retry_seconds(self) -> float:
        """When room can be expected: half of what the segment that waits longest has waited by now."""
        assert self._translator is not None
        oldest = max(model.loop.oldest_wait_seconds() for model in self._translator.models)
        return min(max(self._limits.retry_seconds, oldest / 2), _MAX_RETRY_SECONDS)

    async def GetServerInfo(  # noqa: N802  # the interface's name
        self,
        request: pb.GetServerInfoRequest,  # noqa: ARG002
        context: "grpc.aio.ServicerContext[Any, Any]",
    ) -> pb.GetServerInfoResponse:
        """Limits, models and build; see the interface."""
        if self.state is ServingState.STARTING:
            request_id = self._request_id(context)
            failure = failure_of(self._unavailable(self.state), request_id)
            await context.abort(failure.code, failure.message, failure.trailing_metadata(request_id))
        return self._info

    def _request_id(self, context: "grpc.aio.ServicerContext[Any, Any]") -> str:
        """The caller's own identity of the call where it is one, else a new one."""
        for key, value in context.invocation_metadata() or ():
            if key == REQUEST_ID_KEY and isinstance(value, str) and _REQUEST_ID.fullmatch(value):
                return value
        return f"{self._request_id_prefix}-{next(self._request_numbers)}"
