"""The client against a server that answers what the test says."""

import asyncio
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

import grpc
import pytest

from service.client import (
    AsyncClient,
    Client,
    DeadlineExceededError,
    InvalidRequestError,
    NotServedError,
    OverloadedError,
    ServerError,
    Translation,
    TranslationError,
    UnavailableError,
    Violation,
)
from service.errors import failure_of
from service.pb.translation.v1 import translation_pb2 as pb
from service.pb.translation.v1 import translation_pb2_grpc
from service.refusals import FieldViolation
from service.refusals import InvalidRequestError as InvalidRequest
from service.refusals import NotServedError as NotServed
from service.refusals import OverloadedError as Overloaded
from service.refusals import UnavailableError as Unavailable

Translate = Callable[..., list[Translation]]


@dataclass
class Script:
    """What the server answers: errors first, one a call, then the texts turned round."""

    errors: list[Exception | grpc.StatusCode] = field(default_factory=list)
    requests: list[pb.TranslateTextRequest] = field(default_factory=list)
    timeouts: list[float] = field(default_factory=list)
    hold: threading.Event | None = None


class ScriptedServicer(translation_pb2_grpc.TranslationServiceServicer):
    def __init__(self, script: Script) -> None:
        self._script = script

    def TranslateText(self, request: pb.TranslateTextRequest, context: Any) -> pb.TranslateTextResponse:  # noqa: N802
        self._script.requests.append(request)
        self._script.timeouts.append(context.time_remaining())
        if self._script.hold is not None:
            self._script.hold.wait(30)
        if self._script.errors:
            error = self._script.errors.pop(0)
            if isinstance(error, grpc.StatusCode):
                context.abort(error, "No reason.")
            failure = failure_of(error, "id-7")
            context.set_trailing_metadata(failure.trailing_metadata("id-7"))
            context.abort(failure.code, failure.message)
        reply = pb.TranslateTextResponse(metadata=pb.ResponseMetadata(request_id="id-8", num_steps=5))
        for text in request.contents:
            translation = reply.translations.add(translated_text=text[::-1], model="turner")
            translation.segments.add(
                source_text=text,
                translated_text=text[::-1],
                score=-0.5,
                token_log_probabilities=[-0.25, -0.25],
                finish_reason=pb.FINISH_REASON_LENGTH,
                flags=[pb.SEGMENT_FLAG_TRUNCATED, pb.SEGMENT_FLAG_PLACEHOLDER_LOST],
                num_source_tokens=3,
                num_target_tokens=2,
            )
        return reply


@pytest.fixture
def script() -> Script:
    return Script()


@pytest.fixture
def address(script: Script) -> Iterator[str]:
    server = grpc.server(ThreadPoolExecutor(4))
    translation_pb2_grpc.add_TranslationServiceServicer_to_server(ScriptedServicer(script), server)  # type: ignore[no-untyped-call]
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    yield f"127.0.0.1:{port}"
    if script.hold is not None:
        script.hold.set()
    server.stop(0).wait()


@pytest.fixture(params=["threads", "asyncio"])
def translate(request: pytest.FixtureRequest, address: str) -> Translate:
    """Both clients behind one call: whatever one does the other must do."""

    def by_thread(texts: Any, *, max_retries: int = 4, **arguments: Any) -> list[Translation]:
        with Client(address, max_retries=max_retries) as client:
            return client.translate(texts, **arguments)

    def by_asyncio(texts: Any, *, max_retries: int = 4, **arguments: Any) -> list[Translation]:
        async def run() -> list[Translation]:
            async with AsyncClient(address, max_retries=max_retries) as client:
                return await client.translate(texts, **arguments)

        return asyncio.run(run())

    return by_thread if request.param == "threads" else by_asyncio


def test_an_answer_has_types(translate: Translate, script: Script) -> None:
    first, second = translate(["abc", "de"], source="en", target="zh", model="m", max_target_tokens=9)
    assert (first.text, first.model, second.text) == ("cba", "turner", "ed")
    (segment,) = first.segments
    assert (segment.source_text, segment.translated_text, segment.score) == ("abc", "cba", -0.5)
    assert segment.token_log_probabilities == (-0.25, -0.25)
    assert (segment.finish_reason, segment.flags) == ("LENGTH", ("TRUNCATED", "PLACEHOLDER_LOST"))
    assert (segment.num_source_tokens, segment.num_target_tokens) == (3, 2)
    assert first.metadata is second.metadata
    assert (first.metadata.request_id, first.metadata.num_steps) == ("id-8", 5)
    (sent,) = script.requests
    assert (sent.source_language_code, sent.target_language_code, sent.model) == ("en", "zh", "m")
    assert sent.decoding_options.max_target_tokens == 9


def test_refusals_for_the_moment_are_tried_again(translate: Translate, script: Script) -> None:
    script.errors = [
        Overloaded("Full.", reason="QUEUE_FULL", retry_seconds=0.001),
        Unavailable("Not yet.", reason="STARTING", retry_seconds=0.001),
        Unavailable("Stopping.", reason="DRAINING", retry_seconds=0.001),
    ]
    assert translate(["abc"])[0].text == "cba"
    assert len(script.requests) == 4


def test_all_attempts_share_one_timeout(translate: Translate, script: Script) -> None:
    script.errors = [Overloaded("Full.", reason="QUEUE_FULL", retry_seconds=0.2) for _ in range(8)]
    with pytest.raises((OverloadedError, DeadlineExceededError)):
        translate(["abc"], timeout_seconds=0.5, max_retries=10)
    assert len(script.requests) <= 3


def test_a_call_that_was_cut_off_is_tried_again(translate: Translate, script: Script) -> None:
    script.errors = [grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.CANCELLED]
    assert translate(["abc"])[0].text == "cba"


def test_retries_are_bounded(translate: Translate, script: Script) -> None:
    script.errors = [Overloaded("Full.", reason="QUEUE_FULL", retry_seconds=0.001) for _ in range(10)]
    with pytest.raises(OverloadedError) as caught:
        translate(["abc"], max_retries=2)
    assert len(script.requests) == 3
    assert (caught.value.code, caught.value.reason) == ("RESOURCE_EXHAUSTED", "QUEUE_FULL")
    assert caught.value.request_id == "id-7"


def test_a_delay_beyond_the_timeout_is_not_waited_for(translate: Translate, script: Script) -> None:
    script.errors = [Overloaded("Full.", reason="QUEUE_FULL", retry_seconds=1000.0)]
    with pytest.raises(OverloadedError) as caught:
        translate(["abc"])
    assert caught.value.retry_seconds is not None
    assert caught.value.retry_seconds >= 1000.0
    assert len(script.requests) == 1


@pytest.mark.parametrize(
    ("error", "kind"),
    [
        (InvalidRequest([FieldViolation(field="contents[3]", description="Too long.")]), InvalidRequestError),
        (NotServed(resource_type="model", resource_name="x", served=["en-zh"]), NotServedError),
        (RuntimeError("x"), ServerError),
        (grpc.StatusCode.UNIMPLEMENTED, ServerError),
        (grpc.StatusCode.RESOURCE_EXHAUSTED, TranslationError),  # gRPC's own: the message was too large
    ],
)
def test_other_refusals_are_raised_at_once(
    translate: Translate, script: Script, error: Exception, kind: type[TranslationError]
) -> None:
    script.errors = [error]
    with pytest.raises(TranslationError) as caught:
        translate(["abc"])
    assert type(caught.value) is kind
    assert len(script.requests) == 1


def test_violations_and_what_is_served_are_told(translate: Translate, script: Script) -> None:
    script.errors = [InvalidRequest([FieldViolation(field=f"contents[{i}]", description="Too long.") for i in (1, 3)])]
    with pytest.raises(InvalidRequestError) as invalid:
        translate(["abc"])
    assert invalid.value.violations == tuple(Violation(field=f"contents[{i}]", description="Too long.") for i in (1, 3))
    script.errors = [NotServed(resource_type="model", resource_name="x", served=["en-zh"])]
    with pytest.raises(NotServedError) as not_served:
        translate(["abc"])
    assert (not_served.value.resource_name, not_served.value.served) == ("x", "Served: en-zh")


def test_the_timeout_passes(translate: Translate, script: Script) -> None:
    script.hold = threading.Event()
    with pytest.raises(DeadlineExceededError):
        translate(["abc"], timeout_seconds=0.05)


def test_half_a_surrogate_pair_is_refused_before_it_is_sent(translate: Translate, script: Script) -> None:
    with pytest.raises(InvalidRequestError) as caught:
        translate(["fine", "bad \ud800"])
    assert [violation.field for violation in caught.value.violations] == ["contents[1]"]
    assert script.requests == []


def test_one_text_instead_of_a_list_is_a_mistake(translate: Translate) -> None:
    with pytest.raises(TypeError, match="must be a list of texts"):
        translate("abc")


def test_nobody_there() -> None:
    with Client("127.0.0.1:1", max_retries=0, timeout_seconds=5) as client, pytest.raises(UnavailableError):
        client.translate(["abc"])


async def test_cancelling_the_task_cancels_the_call(address: str, script: Script) -> None:
    script.hold = threading.Event()
    async with AsyncClient(address) as client:
        task = asyncio.create_task(client.translate(["abc"]))
        while not script.requests:
            await asyncio.sleep(0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
