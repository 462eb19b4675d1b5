"""How are the methods of TranslationService answered?

Each call goes one way: admitted (`call_life`), parsed, checked and its model leased, cut and tokenized, submitted,
awaited, answered.
"""

import asyncio
import logging
from collections import deque
from collections.abc import AsyncIterator, Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from typing import TypeVar

from service.admission import Admission
from service.call_life import Call, CallLife, ServingState
from service.caller import Access, OpenAccess
from service.catalog import Catalog, CatalogView, Lease
from service.config import Config
from service.engine_loop import DrainingError
from service.handlers import parse
from service.job import Job, TranslationJob
from service.metrics import Metrics
from service.pb.translation.v1 import translation_pb2 as pb
from service.request import Delivery
from service.scheduler_limits import QueueFullError
from service.stream_writer import Context, StreamWriter
from service.translator import CheckedCall

logger = logging.getLogger(__name__)

Result = TypeVar("Result")

_LONG_CHARACTERS = 8_000  # a text longer than this is cut and joined in another thread: it takes milliseconds


def _has_much_to_spell(options: pb.DecodingOptions) -> bool:
    """Whether there are texts among the options that take long to make tokens of."""
    return bool(options.suppressed_texts) or sum(map(len, options.target_prefixes)) > _LONG_CHARACTERS


class _Ended:
    """Waits for a job to end."""

    def __init__(self, event_loop: asyncio.AbstractEventLoop) -> None:
        self.future: asyncio.Future[None] = event_loop.create_future()

    def tell(self, _: Job) -> None:
        """The `on_done` of the job."""
        if not self.future.done():
            self.future.set_result(None)


class TranslationServicer:
    """Answers calls in one event loop. Everything but `deliver` belongs to that loop's thread."""

    def __init__(
        self,
        config: Config,
        metrics: Metrics,
        *,
        event_loop: asyncio.AbstractEventLoop,
        access: Access | None = None,
    ) -> None:
        """`access` knows callers; left out: everybody may call."""
        self.catalog = Catalog()
        """What is served."""
        self.admission = Admission(config.limits, lambda: self.catalog.models)
        """Which calls are taken."""
        self.calls = CallLife(
            config.limits,
            metrics,
            access=access or OpenAccess(),
            admission=self.admission,
            logs_calls=config.logs.log_requests,
        )
        """Every call's beginning and end."""
        self._limits = config.limits
        self._metrics = metrics
        self._event_loop = event_loop
        self._deliveries: deque[list[Delivery]] = deque()
        self._is_waking = False
        self._texts_pool = ThreadPoolExecutor(max_workers=2, thread_name_prefix="texts")

    def begin_serving(self, view: CatalogView) -> None:
        """Takes calls from now on."""
        self.catalog.replace(view)
        self.calls.state = ServingState.SERVING

    def begin_draining(self) -> None:
        """Refuses new calls from now on; those in progress go on."""
        self.calls.state = ServingState.DRAINING

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

    async def TranslateText(self, data: bytes, context: Context) -> pb.TranslateTextResponse:  # noqa: N802  # its name
        """Translates; see the interface."""
        async with self.calls.call(context, method="TranslateText") as call:
            request, contents = self._read(call, data)
            num_characters = sum(map(len, contents))
            with self.catalog.lease() as lease:
                checked = await self._check(call, request, contents, lease)
                ended = _Ended(self._event_loop)
                job = await self._cut(
                    lambda: lease.view.translator.prepare(
                        contents, checked, deadline=call.deadline, caller=call.caller, on_done=ended.tell
                    ),
                    num_characters,
                )
                async with self._running(call, job):
                    if job.sequences:
                        await ended.future
                return await self._reply(job, call, is_long=num_characters > _LONG_CHARACTERS)

    async def StreamTranslateText(self, data: bytes, context: Context) -> None:  # noqa: N802  # its name
        """Translates and hands out text as it becomes certain; see the interface."""
        async with self.calls.call(context, method="StreamTranslateText") as call:
            request, contents = self._read(call, data)
            num_characters = sum(map(len, contents))
            writer = StreamWriter(context, max_stall_seconds=self._limits.max_stream_stall_seconds)
            with self.catalog.lease() as lease:
                checked = await self._check(call, request, contents, lease)
                pieces: asyncio.Queue[list[pb.TextPiece] | None] = asyncio.Queue()  # ends with None
                job = await self._cut(
                    lambda: lease.view.translator.prepare_stream(
                        contents,
                        checked,
                        deadline=call.deadline,
                        caller=call.caller,
                        on_done=lambda _: pieces.put_nowait(None),
                        on_pieces=pieces.put_nowait,
                    ),
                    num_characters,
                )
                pieces.put_nowait(job.begin())
                if not job.sequences:
                    pieces.put_nowait(None)
                async with self._running(call, job):
                    while (batch := await pieces.get()) is not None:
                        for piece in batch:
                            await writer.write(pb.StreamTranslateTextResponse(piece=piece))
                    if job.error is not None:
                        for piece in job.cancelled_pieces():
                            await writer.write(pb.StreamTranslateTextResponse(piece=piece))
                result = await self._reply(job, call, is_long=num_characters > _LONG_CHARACTERS)
                await writer.write(pb.StreamTranslateTextResponse(result=result))

    async def ScoreText(self, data: bytes, context: Context) -> pb.ScoreTextResponse:  # noqa: N802  # its name
        """Scores translations that the caller gives; see the interface."""
        async with self.calls.call(context, method="ScoreText") as call:
            request = parse(pb.ScoreTextRequest, data)
            call.num_contents = len(request.contents)
            num_characters = sum(map(len, request.contents)) + sum(map(len, request.translated_texts))
            with self.catalog.lease() as lease:
                ended = _Ended(self._event_loop)
                job = await self._cut(
                    lambda: lease.view.translator.prepare_scores(
                        request, deadline=call.deadline, caller=call.caller, on_done=ended.tell
                    ),
                    num_characters,
                )
                call.caller.check_model(job.model.name)
                self.catalog.keep(lease, job.model)
                call.priority = job.sequences[0].priority
                self.admission.check(call, job.model)
                async with self._running(call, job):
                    await ended.future
                return pb.ScoreTextResponse(scores=job.result(), metadata=self._metadata(job, call))

    async def GetServerInfo(self, data: bytes, context: Context) -> pb.GetServerInfoResponse:  # noqa: N802  # its name
        """Limits, models and build; see the interface."""
        async with self.calls.question(context, method="GetServerInfo"):
            parse(pb.GetServerInfoRequest, data)
            return self.catalog.view.info

    def _read(self, call: Call, data: bytes) -> tuple[pb.TranslateTextRequest, list[str]]:
        """The request and its texts.

        Raises:
            MalformedMessageError: when the bytes are none.
        """
        request = parse(pb.TranslateTextRequest, data)
        contents = list(request.contents)
        call.num_contents = len(contents)
        return request, contents

    async def _check(
        self, call: Call, request: pb.TranslateTextRequest, contents: list[str], lease: Lease
    ) -> CheckedCall:
        """Checks a request against the models of a lease, which then keeps the one that answers it.

        Raises:
            InvalidRequestError, NotServedError: when it cannot be answered.
            NotAllowedError: when its caller may not use the model.
            OverloadedError, UnreachableDeadlineError: when its model has too much to do.
        """
        checked = await self._compute(
            lambda: lease.view.translator.check(request, contents), is_long=_has_much_to_spell(request.decoding_options)
        )
        call.caller.check_model(checked.model.name)
        self.catalog.keep(lease, checked.model)
        call.priority = checked.priority
        self.admission.check(call, checked.model)
        return checked

    async def _reply(self, job: TranslationJob, call: Call, *, is_long: bool) -> pb.TranslateTextResponse:
        """The answer, when every sequence has ended."""
        translations = await self._compute(job.result, is_long=is_long)
        if job.num_blank:
            self._metrics.observe_blank(job.num_blank)
        return pb.TranslateTextResponse(translations=translations, metadata=self._metadata(job, call))

    def _metadata(self, job: Job, call: Call) -> pb.ResponseMetadata:
        return job.metadata(request_id=call.request_id, total_seconds=self.calls.elapsed_seconds(call))

    async def _compute(self, work: Callable[[], Result], *, is_long: bool) -> Result:
        """The result of some work, which is done elsewhere when it would hold up other calls."""
        return await self._event_loop.run_in_executor(self._texts_pool, work) if is_long else work()

    async def _cut(self, work: Callable[[], Result], num_characters: int) -> Result:
        """The result of work that cuts and tokenizes texts of so many characters.

        Raises:
            OverloadedError: when too many wait for it.
        """
        if num_characters <= _LONG_CHARACTERS:
            return work()
        with self.admission.cutting(num_characters):
            return await self._compute(work, is_long=True)

    @asynccontextmanager
    async def _running(self, call: Call, job: Job) -> AsyncIterator[None]:
        """While entered, a job's sequences are decoded. At the end those that nobody waits for are cancelled.

        Raises:
            OverloadedError, UnavailableError, UnreachableDeadlineError: when they are not taken.
            DeadlineError: when they did not end in time.
        """
        if job.sequences:
            self.admission.check_sequences(call, job.model, job.sequences)
            try:
                job.model.loop.submit(job.sequences)
            except QueueFullError as error:
                raise self.admission.queue_full() from error
            except DrainingError as error:
                raise self.calls.unavailable() from error
        try:
            yield
        finally:
            if job.num_unfinished:  # cancelled, expired or failed: nobody waits for the rest
                job.model.loop.cancel(job.sequences)
        if job.error is not None:
            if isinstance(job.error, DrainingError):
                raise self.calls.unavailable() from job.error
            raise job.error
