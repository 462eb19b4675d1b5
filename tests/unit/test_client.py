"""The client against a server that answers what the test says."""

import asyncio
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, fields
from typing import Any

import grpc
import pytest

from service.client import (
    AsyncClient,
    Client,
    DeadlineExceededError,
    DecodingOptions,
    InvalidRequestError,
    NotServedError,
    OverloadedError,
    Sampling,
    ServerError,
    TextPiece,
    Translation,
    TranslationError,
    UnavailableError,
    Violation,
    WordPair,
)
from service.client.results import parse_translations
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
    requests: list[Any] = field(default_factory=list)
    timeouts: list[float] = field(default_factory=list)
    hold: threading.Event | None = None
    breaks_off: Exception | None = None
    """A stream ends with it before its result."""
    has_result: bool = True
    """Whether a stream that does not break off has one."""
    was_cancelled: threading.Event = field(default_factory=threading.Event)


class ScriptedServicer(translation_pb2_grpc.TranslationServiceServicer):
    def __init__(self, script: Script) -> None:
        self._script = script

    def TranslateText(self, request: pb.TranslateTextRequest, context: Any) -> pb.TranslateTextResponse:  # noqa: N802
        self._begin(request, context)
        return self._reply(request)

    def StreamTranslateText(self, request: pb.TranslateTextRequest, context: Any) -> Iterator[Any]:  # noqa: N802
        context.add_callback(self._script.was_cancelled.set)
        self._begin(request, context)
        for i, text in enumerate(request.contents):
            for j, character in enumerate(text[::-1]):
                piece = pb.TextPiece(contents_index=i, segment_index=0, text=character)
                if j == len(text) - 1:
                    piece.finish_reason = pb.FINISH_REASON_STOP
                yield pb.StreamTranslateTextResponse(piece=piece)
        if self._script.breaks_off is not None:
            self._fail(self._script.breaks_off, context)
        if self._script.has_result:
            yield pb.StreamTranslateTextResponse(result=self._reply(request))

    def ScoreText(self, request: pb.ScoreTextRequest, context: Any) -> pb.ScoreTextResponse:  # noqa: N802
        self._begin(request, context)
        reply = pb.ScoreTextResponse(metadata=pb.ResponseMetadata(request_id="id-9"))
        for text in request.translated_texts:
            reply.scores.add(
                score=-len(text),
                normalized_score=-1.0,
                target_tokens=[*text, "</s>"],
                token_log_probabilities=[-1.0] * (len(text) + 1),
                model="turner",
                num_source_tokens=4,
            )
        return reply

    def _fail(self, error: Exception, context: Any) -> None:
        failure = failure_of(error, "id-7")
        context.set_trailing_metadata(failure.trailing_metadata("id-7"))
        context.abort(failure.code, failure.message)

    def _begin(self, request: Any, context: Any) -> None:
        self._script.requests.append(request)
        self._script.timeouts.append(context.time_remaining())
        if self._script.hold is not None:
            self._script.hold.wait(30)
        if self._script.errors:
            error = self._script.errors.pop(0)
            if isinstance(error, grpc.StatusCode):
                context.abort(error, "No reason.")
            self._fail(error, context)

    def _reply(self, request: pb.TranslateTextRequest) -> pb.TranslateTextResponse:
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


def test_options_are_sent_as_they_are_given(translate: Translate, script: Script) -> None:
    options = DecodingOptions(
        beam_size=4,
        length_penalty=0.6,
        early_stopping=False,
        suppressed_texts=["a"],
        sampling=Sampling(seed=2**63 - 1, top_p=0.9),
        target_prefixes=["", "x"],
        with_alignment=True,
    )
    translate(["abc", "de"], options=options, max_target_tokens=7)
    expected = pb.DecodingOptions(
        max_target_tokens=7,
        beam_size=4,
        length_penalty=0.6,
        early_stopping=False,
        suppressed_texts=["a"],
        sampling=pb.Sampling(seed=2**63 - 1, top_p=0.9),
        target_prefixes=["", "x"],
        with_alignment=True,
    )
    assert script.requests[0].decoding_options == expected
    translate(["abc"], options=DecodingOptions(sampling=Sampling()))
    assert script.requests[1].decoding_options == pb.DecodingOptions(sampling=pb.Sampling())
    translate(["abc"])
    assert not script.requests[2].HasField("decoding_options")


def test_the_options_are_the_interfaces() -> None:
    for ours, theirs in ((DecodingOptions, pb.DecodingOptions), (Sampling, pb.Sampling)):
        assert {entry.name for entry in fields(ours)} == {entry.name for entry in theirs.DESCRIPTOR.fields}


def test_options_that_no_message_can_carry(translate: Translate, script: Script) -> None:
    options = DecodingOptions(beam_size=2**40, sampling=Sampling(seed=2**70), suppressed_texts=["ok", "\ud800"])
    with pytest.raises(InvalidRequestError) as caught:
        translate(["abc"], options=options)
    assert [violation.field for violation in caught.value.violations] == [
        "decoding_options.beam_size",
        "decoding_options.suppressed_texts[1]",
        "decoding_options.sampling.seed",
    ]
    for wrong in (DecodingOptions(target_prefixes="abc"), DecodingOptions(beam_size="4")):  # type: ignore[arg-type]
        with pytest.raises(TypeError):
            translate(["abc"], options=wrong)
    assert script.requests == []


def test_results_have_types(translate: Translate) -> None:
    alignment = pb.Alignment(
        source_tokens=["a", "</s>"],
        weights=[0.75, 0.25, 0.5, 0.5, 0, 1],
        source_words=["a"],
        target_words=["xy"],
        word_pairs=[pb.WordPair(source_word=0, target_word=0, weight=0.625)],
    )
    segment = pb.Segment(
        normalized_score=-0.5,
        target_tokens=["x", "y", "</s>"],
        alignment=alignment,
        hypotheses=[
            pb.Hypothesis(text="xy", score=-1, normalized_score=-0.5, finish_reason=pb.FINISH_REASON_STOP),
            pb.Hypothesis(
                text="z", target_tokens=["z"], finish_reason=pb.FINISH_REASON_REPETITION, alignment=alignment
            ),
        ],
    )
    reply = pb.TranslateTextResponse(translations=[pb.Translation(segments=[segment])])
    (parsed,) = parse_translations(reply)[0].segments
    assert (parsed.normalized_score, parsed.target_tokens) == (-0.5, ("x", "y", "</s>"))
    assert parsed.alignment is not None
    assert parsed.alignment.weights == ((0.75, 0.25), (0.5, 0.5), (0.0, 1.0))
    assert parsed.alignment.word_pairs == (WordPair(source_word=0, target_word=0, weight=0.625),)
    first, second = parsed.hypotheses
    assert (first.text, first.score, first.finish_reason, first.alignment) == ("xy", -1.0, "STOP", None)
    assert (second.finish_reason, second.alignment) == ("REPETITION", parsed.alignment)
    assert translate(["abc"])[0].segments[0].alignment is None


Stream = Callable[..., tuple[list[TextPiece], Any]]


@pytest.fixture(params=["threads", "asyncio"])
def stream(request: pytest.FixtureRequest, address: str) -> Stream:
    """Reads a stream with either client: its pieces, and itself or the error that it ended with."""

    def by_thread(texts: Any, *, most: int = 10**6, **arguments: Any) -> tuple[list[TextPiece], Any]:
        pieces = []
        with Client(address) as client, client.stream(texts, **arguments) as made:
            try:
                for piece in made:
                    pieces.append(piece)
                    if len(pieces) == most:
                        break
            except TranslationError as error:
                assert "".join(made.texts) == "".join(piece.text for piece in pieces)
                return pieces, error
        return pieces, made

    def by_asyncio(texts: Any, *, most: int = 10**6, **arguments: Any) -> tuple[list[TextPiece], Any]:
        async def run() -> tuple[list[TextPiece], Any]:
            pieces = []
            async with AsyncClient(address) as client, client.stream(texts, **arguments) as made:
                try:
                    async for piece in made:
                        pieces.append(piece)
                        if len(pieces) == most:
                            break
                except TranslationError as error:
                    assert "".join(made.texts) == "".join(piece.text for piece in pieces)
                    return pieces, error
            return pieces, made

        return asyncio.run(run())

    return by_thread if request.param == "threads" else by_asyncio


def test_a_stream_gives_pieces_and_then_the_answer(stream: Stream, translate: Translate, script: Script) -> None:
    pieces, made = stream(["abc", "de"], source="en", options=DecodingOptions(beam_size=2))
    assert [(p.text_index, p.segment_index, p.text, p.finish_reason) for p in pieces] == [
        (0, 0, "c", None),
        (0, 0, "b", None),
        (0, 0, "a", "STOP"),
        (1, 0, "e", None),
        (1, 0, "d", "STOP"),
    ]
    assert made.texts == ["cba", "ed"]
    assert made.translations == translate(["abc", "de"])
    assert (script.requests[0].source_language_code, script.requests[0].decoding_options.beam_size) == ("en", 2)


def test_a_stream_is_begun_again_while_nothing_has_come(stream: Stream, script: Script) -> None:
    script.errors = [
        Overloaded("Full.", reason="QUEUE_FULL", retry_seconds=0.001),
        Unavailable("Not yet.", reason="STARTING", retry_seconds=0.001),
    ]
    pieces, made = stream(["abc"])
    assert (len(pieces), made.texts, len(script.requests)) == (3, ["cba"], 3)


def test_a_stream_that_breaks_off_is_not_begun_again(stream: Stream, script: Script) -> None:
    script.breaks_off = Unavailable("Stopping.", reason="DRAINING", retry_seconds=0.001)
    pieces, error = stream(["abc"])
    assert (len(pieces), len(script.requests)) == (3, 1)
    assert isinstance(error, UnavailableError)
    script.breaks_off, script.has_result = None, False
    pieces, error = stream(["abc"])
    assert isinstance(error, ServerError)
    assert "without a result" in str(error)


def test_a_stream_that_is_left_stops_the_server(stream: Stream, script: Script) -> None:
    pieces, made = stream(["abc" * 1000], most=2)
    assert len(pieces) == 2
    assert script.was_cancelled.wait(30)
    with pytest.raises(RuntimeError, match="to its end"):
        _ = made.translations


@pytest.mark.parametrize("kind", ["threads", "asyncio"])
def test_scores_have_types(kind: str, address: str, script: Script) -> None:
    def by_thread(*arguments: Any, **named: Any) -> Any:
        with Client(address) as client:
            return client.score(*arguments, **named)

    def by_asyncio(*arguments: Any, **named: Any) -> Any:
        async def run() -> Any:
            async with AsyncClient(address) as client:
                return await client.score(*arguments, **named)

        return asyncio.run(run())

    score = by_thread if kind == "threads" else by_asyncio
    script.errors = [Overloaded("Full.", reason="QUEUE_FULL", retry_seconds=0.001)]
    first, second = score(["a", "b"], ["xy", ""], model="m", options=DecodingOptions(length_penalty=0.5))
    assert (first.score, first.normalized_score, first.target_tokens) == (-2.0, -1.0, ("x", "y", "</s>"))
    assert (first.token_log_probabilities, first.model, first.num_source_tokens) == ((-1.0,) * 3, "turner", 4)
    assert (first.alignment, first.metadata.request_id, second.target_tokens) == (None, "id-9", ("</s>",))
    sent = script.requests[1]
    assert (list(sent.contents), list(sent.translated_texts), sent.model) == (["a", "b"], ["xy", ""], "m")
    assert sent.decoding_options == pb.DecodingOptions(length_penalty=0.5)
    with pytest.raises(TypeError, match="translations"):
        score(["a"], "x")
    with pytest.raises(InvalidRequestError, match=r"translated_texts\[1\]"):
        score(["a", "b"], ["x", "\udfff"])


def test_the_priority_is_sent(translate: Translate, stream: Stream, address: str, script: Script) -> None:
    translate(["abc"])
    translate(["abc"], priority="bulk")
    stream(["abc"], priority="bulk")
    with Client(address) as client:
        client.score(["a"], ["b"], priority="bulk")
        client.score(["a"], ["b"])
    bulk, interactive = pb.PRIORITY_BULK, pb.PRIORITY_INTERACTIVE
    assert [request.priority for request in script.requests] == [interactive, bulk, bulk, bulk, interactive]
    with pytest.raises(ValueError, match="one of interactive, bulk, but is 'urgent'"):
        translate(["abc"], priority="urgent")
