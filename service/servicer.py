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
from collections.abc import AsyncIterator, Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from typing import Any, NamedTuple, TypeAlias, TypeVar

import grpc

from service.config import Config
from service.engine_loop import DrainingError
from service.errors import REQUEST_ID_KEY, failure_of
from service.job import Job, TranslationJob
from service.metrics import Metrics
from service.pb.translation.v1 import translation_pb2 as pb
from service.pb.translation.v1 import translation_pb2_grpc
from service.refusals import DeadlineError, OverloadedError, UnavailableError
from service.request import Delivery
from service.scheduler import QueueFullError
from service.translator import Translator

logger = logging.getLogger(__name__)

Context: TypeAlias = "grpc.aio.ServicerContext[Any, Any]"
Result = TypeVar("Result")

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


def _has_much_to_spell(options: pb.DecodingOptions) -> bool:
    """Whether there are texts among the options that take long to make tokens of."""
    return bool(options.suppressed_texts) or sum(map(len, options.target_prefixes)) > _LONG_CHARACTERS


class _Call(NamedTuple):
    """A call in progress."""

    request_id: str
    """Its identity."""
    started_at: float
    """When it came."""
    remaining: float | None
    """Seconds it could take then; None: any."""


class _Ended:
    """Waits for a job to end."""

    def __init__(self, event_loop: asyncio.AbstractEventLoop) -> None:
        self.future: asyncio.Future[None] = event_loop.create_future()

    def tell(self, _: Job) -> None:
        """The `on_done` of the job."""
        if not self.future.done():
            self.future.set_result(None)


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
        """Calls in progress."""
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
        self, request: pb.TranslateTextRequest, context: Context
    ) -> pb.TranslateTextResponse:
        """Translates; see the interface."""
        contents = list(request.contents)
        async with self._call(context, num_contents=len(contents)) as call:
            translator, deadline = self._admit(call)
            is_long = sum(map(len, contents)) > _LONG_CHARACTERS
            checked = await self._compute(
                lambda: translator.check(request, contents), is_long=_has_much_to_spell(request.decoding_options)
            )
            ended = _Ended(self._event_loop)
            job = await self._compute(
                lambda: translator.prepare(contents, checked, deadline=deadline, on_done=ended.tell), is_long=is_long
            )
            async with self._running(job):
                if job.sequences:
                    await ended.future
            return await self._reply(job, call, is_long=is_long)

    async def StreamTranslateText(  # noqa: N802  # the interface's name
        self, request: pb.TranslateTextRequest, context: Context
    ) -> None:
        """Translates and hands out text as it becomes certain; see the interface."""
        contents = list(request.contents)
        async with self._call(context, num_contents=len(contents)) as call:
            translator, deadline = self._admit(call)
            is_long = sum(map(len, contents)) > _LONG_CHARACTERS
            checked = await self._compute(
                lambda: translator.check(request, contents), is_long=_has_much_to_spell(request.decoding_options)
            )
            pieces: asyncio.Queue[list[pb.TextPiece] | None] = asyncio.Queue()  # ends with None
            job = await self._compute(
                lambda: translator.prepare_stream(
                    contents,
                    checked,
                    deadline=deadline,
                    on_done=lambda _: pieces.put_nowait(None),
                    on_pieces=pieces.put_nowait,
                ),
                is_long=is_long,
            )
            pieces.put_nowait(job.begin())
            if not job.sequences:
                pieces.put_nowait(None)
            async with self._running(job):
                while (batch := await pieces.get()) is not None:
                    for piece in batch:
                        await context.write(pb.StreamTranslateTextResponse(piece=piece))
                if job.error is not None:
                    for piece in job.cancelled_pieces():
                        await context.write(pb.StreamTranslateTextResponse(piece=piece))
            result = await self._reply(job, call, is_long=is_long)
            await context.write(pb.StreamTranslateTextResponse(result=result))

    async def ScoreText(  # noqa: N802  # the interface's name
        self, request: pb.ScoreTextRequest, context: Context
    ) -> pb.ScoreTextResponse:
        """Scores translations that the caller gives; see the interface."""
        async with self._call(context, num_contents=len(request.contents)) as call:
            translator, deadline = self._admit(call)
            num_characters = sum(map(len, request.contents)) + sum(map(len, request.translated_texts))
            ended = _Ended(self._event_loop)
            job = await self._compute(
                lambda: translator.prepare_scores(request, deadline=deadline, on_done=ended.tell),
                is_long=num_characters > _LONG_CHARACTERS,
            )
            async with self._running(job):
                await ended.future
            metadata = job.metadata(request_id=call.request_id, total_seconds=self._clock() - call.started_at)
            return pb.ScoreTextResponse(scores=job.result(), metadata=metadata)

    async def _reply(self, job: TranslationJob, call: "_Call", *, is_long: bool) -> pb.TranslateTextResponse:
        """The answer, when every sequence has ended."""
        translations = await self._compute(job.result, is_long=is_long)
        if job.num_blank:
            self._metrics.observe_blank(job.num_blank)
        metadata = job.metadata(request_id=call.request_id, total_seconds=self._clock() - call.started_at)
        return pb.TranslateTextResponse(translations=translations, metadata=metadata)

    async def _compute(self, work: Callable[[], Result], *, is_long: bool) -> Result:
        """The result of some work, which is done elsewhere when it would hold up other calls."""
        return await self._event_loop.run_in_executor(self._texts_pool, work) if is_long else work()

    @asynccontextmanager
    async def _call(self, context: Context, *, num_contents: int) -> AsyncIterator["_Call"]:
        """The life of a call: counted from the beginning, ended with a status code, observed."""
        call = _Call(self._request_id(context), self._clock(), context.time_remaining())
        self.num_calls += 1
        self._last_call_at = call.started_at
        self._idle.clear()
        code = "CANCELLED"
        try:
            yield call
            code = "OK"
        except asyncio.CancelledError:  # by gRPC, which does not say why
            if _is_deadline_over(context.time_remaining(), self._clock() - call.started_at):
                code = "DEADLINE_EXCEEDED"
            raise
        except Exception as error:
            failure = failure_of(error, call.request_id)
            code = failure.code.name
            if failure.is_our_fault:
                logger.error("A call failed.", exc_info=error, extra={"request_id": call.request_id})
            await context.abort(failure.code, failure.message, failure.trailing_metadata(call.request_id))
        finally:
            self.num_calls -= 1
            if not self.num_calls:
                self._idle.set()
            seconds = self._clock() - call.started_at
            self._metrics.observe_call(code, seconds)
            if self._log_requests:
                facts = {"request_id": call.request_id, "code": code, "seconds": round(seconds, 6)}
                logger.info("A call ended.", extra={**facts, "num_contents": num_contents})

    @asynccontextmanager
    async def _running(self, job: Job) -> AsyncIterator[None]:
        """While entered, a job's sequences are decoded. At the end those that nobody waits for are cancelled.

        Raises:
            OverloadedError, UnavailableError: when they are not taken.
            DeadlineError: when they did not end in time.
        """
        if job.sequences:
            try:
                job.model.loop.submit(job.sequences)
            except QueueFullError as error:
                message = "The queue of waiting segments is full."
                raise OverloadedError(message, reason="QUEUE_FULL", retry_seconds=self._retry_seconds()) from error
            except DrainingError as error:
                raise self._unavailable(ServingState.DRAINING) from error
        try:
            yield
        finally:
            if job.num_unfinished:  # cancelled, expired or failed: nobody waits for the rest
                job.model.loop.cancel(job.sequences)
        if job.error is not None:
            if isinstance(job.error, DrainingError):
                raise self._unavailable(ServingState.DRAINING) from job.error
            raise job.error

    def _admit(self, call: "_Call") -> tuple[Translator, float | None]:
        """The translator and the call's deadline, if the call may go on.

        Raises:
            UnavailableError: while the server starts or drains.
            OverloadedError: when too many calls are in progress.
            DeadlineError: when the deadline has passed.
        """
        if self.state is not ServingState.SERVING or self._translator is None:
            raise self._unavailable(self.state)
        if self.num_calls > self._limits.max_concurrent_calls:
            message = f"At most {self._limits.max_concurrent_calls} calls may be in progress."
            raise OverloadedError(message, reason="TOO_MANY_CALLS", retry_seconds=self._retry_seconds())
        if call.remaining is not None and call.remaining <= 0:
            raise DeadlineError("The deadline had passed before the call was begun.")
        return self._translator, None if call.remaining is None else call.started_at + call.remaining

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
        context: Context,
    ) -> pb.GetServerInfoResponse:
        """Limits, models and build; see the interface."""
        if self.state is ServingState.STARTING:
            request_id = self._request_id(context)
            failure = failure_of(self._unavailable(self.state), request_id)
            await context.abort(failure.code, failure.message, failure.trailing_metadata(request_id))
        return self._info

    def _request_id(self, context: Context) -> str:
        """The caller's own identity of the call where it is one, else a new one."""
        for key, value in context.invocation_metadata() or ():
            if key == REQUEST_ID_KEY and isinstance(value, str) and _REQUEST_ID.fullmatch(value):
                return value
        return f"{self._request_id_prefix}-{next(self._request_numbers)}"
