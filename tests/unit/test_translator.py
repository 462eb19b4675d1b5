"""From a request to sequences, and from finished sequences to a reply."""

from typing import Any, cast

import pytest

from service.call_options import default_max_target_tokens
from service.caller import Caller
from service.config import LimitsConfig
from service.job import Job, StreamingJob, TranslationJob
from service.loop_group import LoopGroup
from service.pb.translation.v1 import translation_pb2 as pb
from service.refusals import DeadlineError, InvalidRequestError, NotServedError
from service.request import FinishReason, Hypothesis, Priority, Sequence
from service.served_model import ServedModel
from service.tokenizer import EOS_ID, Tokenizer, normalize
from service.translator import CheckedCall, Translator


class GrowingLetters:
    """The text of letters as they come."""

    def add(self, ids: list[int]) -> str:
        return "".join(map(chr, ids))

    def end(self) -> str:
        return ""


class Letters:
    """A tokenizer with a token for each character."""

    manifest = type("Manifest", (), {"reserved_symbols": ()})
    target_vocab_size = 128

    def encode_source(self, text: str) -> list[int]:
        return [*self.encode_target(text), EOS_ID]

    def encode_target(self, text: str) -> list[int]:
        return [ord(character) for character in normalize(text)]

    def decode_target(self, ids: list[int]) -> str:
        return "".join(map(chr, ids))

    def source_pieces(self, ids: list[int]) -> list[str]:
        return ["</s>" if i == EOS_ID else chr(i).replace(" ", "▁") for i in ids]

    def target_pieces(self, ids: list[int]) -> list[str]:
        return self.source_pieces(ids)

    def growing_target(self) -> GrowingLetters:
        return GrowingLetters()


def model(name: str = "en-zh", source: str = "en", target: str = "zh", max_target_tokens: int = 60) -> ServedModel:
    return ServedModel(
        name=name,
        digest="d" * 64,
        precision="int8",
        source_language=source,
        target_language=target,
        tokenizer=cast(Tokenizer, Letters()),
        loop=cast(LoopGroup, None),
        max_source_tokens=30,
        max_target_tokens=max_target_tokens,
        max_rows=4,
        is_same_bytes=True,
        provider="cpu",
        num_threads=1,
    )


def translator(*models: ServedModel, **limits: int) -> Translator:
    return Translator(models or (model(),), LimitsConfig(**limits), clock=lambda: 0.0)


def check(made: Translator, *contents: str, **fields: Any) -> CheckedCall:
    call = pb.TranslateTextRequest(contents=contents or ("a",), **fields)
    return made.check(call, list(call.contents))


def fields_of(made: Translator, *contents: str, **fields: Any) -> list[str]:
    with pytest.raises(InvalidRequestError) as caught:
        check(made, *contents, **fields)
    return [violation.field for violation in caught.value.violations]


def hypothesis(text: str, reason: FinishReason = FinishReason.STOP, **fields: Any) -> Hypothesis:
    ids = [*map(ord, text)] + ([EOS_ID] if reason is FinishReason.STOP else [])
    return Hypothesis(
        target_ids=ids,
        token_log_probabilities=[-0.5] * len(ids),
        score=-0.5 * len(ids),
        normalized_score=-0.25,
        finish_reason=reason,
        attention=fields.get("attention"),
    )


def end(sequence: Sequence, reason: FinishReason, *texts: str, error: Exception | None = None) -> None:
    if reason in (FinishReason.STOP, FinishReason.LENGTH, FinishReason.REPETITION):
        sequence.hypotheses = [hypothesis(text, reason) for text in texts]
    sequence.submitted_at, sequence.admitted_at, sequence.encoded_at = 1.0, 2.0, 3.0
    sequence.encode_seconds, sequence.num_steps, sequence.max_rows_shared = 0.25, len(sequence.target_ids), 3
    sequence.finish(reason, 5.0, error)
    sequence.on_finished(sequence)


def prepare(made: Translator, *contents: str, **options: Any) -> tuple[TranslationJob, list[Job]]:
    done: list[Job] = []
    call = check(made, *contents, decoding_options=pb.DecodingOptions(**options))
    return made.prepare(contents, call, deadline=9.0, on_done=done.append), done


def test_a_reply() -> None:
    job, done = prepare(translator(), " One. Two {x}.\n\nX", "", " ")
    assert [sequence.source_ids[-1] for sequence in job.sequences] == [EOS_ID] * 3
    assert [sequence.deadline for sequence in job.sequences] == [9.0] * 3
    end(job.sequences[2], FinishReason.LENGTH, "丙" * 7)
    end(job.sequences[0], FinishReason.STOP, "一。")
    assert done == []
    end(job.sequences[1], FinishReason.STOP, "二。")
    assert done == [job]
    assert job.error is None
    first, empty, blank = job.result()
    assert first.translated_text == " 一。二。\n\n" + "丙" * 7
    assert first.model == "en-zh"
    assert (empty.translated_text, len(empty.segments)) == ("", 0)
    assert (blank.translated_text, len(blank.segments)) == (" ", 1)
    one, two, gap, three = first.segments
    assert [s.source_text for s in first.segments] == [" One. ", "Two {x}.\n", "\n", "X"]
    assert [s.finish_reason for s in first.segments] == [
        pb.FINISH_REASON_STOP,
        pb.FINISH_REASON_STOP,
        pb.FINISH_REASON_BLANK,
        pb.FINISH_REASON_LENGTH,
    ]
    assert list(one.flags) == []
    assert list(two.flags) == [pb.SEGMENT_FLAG_PLACEHOLDER_LOST]
    assert list(three.flags) == [pb.SEGMENT_FLAG_TRUNCATED, pb.SEGMENT_FLAG_REPETITION]
    assert (one.score, one.normalized_score, list(one.token_log_probabilities)) == (-1.5, -0.25, [-0.5] * 3)
    assert list(one.target_tokens) == ["一", "。", "</s>"]
    assert not one.HasField("alignment")
    assert len(one.hypotheses) == 0
    assert (gap.num_source_tokens, gap.num_target_tokens) == (0, 0)
    cost = job.metadata(request_id="id", total_seconds=6.0)
    assert (cost.num_source_tokens, cost.num_target_tokens, cost.num_steps) == (5 + 9 + 2, 3 + 3 + 7, 13)
    assert (cost.queue_seconds, cost.encode_seconds, cost.decode_seconds) == (1.0, 0.25, 2.0)  # one encoder run
    assert (cost.max_rows_shared, cost.total_seconds, cost.model_digest) == (3, 6.0, "d" * 64)


@pytest.mark.parametrize("reason", [FinishReason.FAILED, FinishReason.EXPIRED, FinishReason.CANCELLED])
def test_one_segment_that_has_no_translation_ends_the_call(reason: FinishReason) -> None:
    job, done = prepare(translator(), "One. Two. Three.")
    error = MemoryError("x") if reason is FinishReason.FAILED else None
    end(job.sequences[1], reason, error=error)
    assert done == [job]
    assert job.num_unfinished == 2  # to be cancelled
    assert job.error is error if error else isinstance(job.error, DeadlineError)
    end(job.sequences[0], FinishReason.CANCELLED)
    end(job.sequences[2], FinishReason.STOP, "x")
    assert done == [job]  # told once


def test_a_call_without_text_has_nothing_to_wait_for() -> None:
    job, _ = prepare(translator(), "", "\n")
    assert (job.sequences, job.num_unfinished) == ([], 0)
    assert [translation.translated_text for translation in job.result()] == ["", "\n"]
    assert job.metadata(request_id="id", total_seconds=1.0).num_steps == 0


def test_the_limit_of_target_tokens() -> None:
    def limits(job: Job) -> list[int | None]:
        return [sequence.options.max_target_tokens for sequence in job.sequences]

    job, _ = prepare(translator(), "One. Two three four.")
    assert limits(job) == [3 * 5 + 16, 60]
    job, _ = prepare(translator(), "One. Two three four.", max_target_tokens=7)
    assert limits(job) == [7, 7]
    assert [default_max_target_tokens(n) for n in (1, 10)] == [19, 46]


def test_a_sentence_too_long_is_flagged() -> None:
    job, _ = prepare(translator(), "word " * 20)
    for sequence in job.sequences:
        assert len(sequence.source_ids) <= 30
        end(sequence, FinishReason.STOP, "x")
    (translation,) = job.result()
    assert len(translation.segments) > 1
    assert all(list(segment.flags) == [pb.SEGMENT_FLAG_SOURCE_SPLIT] for segment in translation.segments)


def test_every_violation_is_named() -> None:
    made = translator(max_contents=3, max_characters_per_item=5)
    options = pb.DecodingOptions(max_target_tokens=61)
    found = fields_of(made, "a" * 6, "a" * 5, "", "a" * 7, mime_type="text/html", model="x", decoding_options=options)
    assert found == ["contents", "contents[0]", "contents[3]", "mime_type", "decoding_options.max_target_tokens"]


def test_a_glossary_is_refused_and_not_ignored() -> None:
    """Also one that comes as Google's clients write it."""
    glossary = b"projects/p/locations/l/glossaries/g"
    inner = b"\x0a" + bytes([len(glossary)]) + glossary + b"\x10\x01"  # glossary = 1, ignore_case = 2
    call = pb.TranslateTextRequest.FromString(b"\x0a\x01a" + b"\x3a" + bytes([len(inner)]) + inner)  # contents, 7
    with pytest.raises(InvalidRequestError, match="glossaries are not supported") as caught:
        translator().check(call, list(call.contents))
    assert [violation.field for violation in caught.value.violations] == ["glossary_config"]
    assert fields_of(translator(), glossary_config=pb.TranslateTextGlossaryConfig()) == ["glossary_config"]
    assert (call.glossary_config.glossary.encode(), call.glossary_config.ignore_case) == (glossary, True)


def test_limits_are_inclusive() -> None:
    made = translator(max_contents=2, max_characters_per_item=5)
    options = pb.DecodingOptions(max_target_tokens=60)
    call = check(made, "a" * 5, "b", mime_type="text/plain", decoding_options=options)
    assert call.options.max_target_tokens == 60
    assert fields_of(made, decoding_options=pb.DecodingOptions(max_target_tokens=-1)) == [
        "decoding_options.max_target_tokens"
    ]


def test_more_than_may_ever_wait_is_refused() -> None:
    for limits in ({"max_waiting_segments": 2}, {"max_waiting_tokens": 14}):
        with pytest.raises(InvalidRequestError) as caught:
            prepare(translator(**limits), "One. Two.", "Six.")
        assert [violation.field for violation in caught.value.violations] == ["contents"]
    prepare(translator(max_waiting_segments=3, max_waiting_tokens=15), "One. Two.", "Six.")


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({"model": "b"}, "b"),
        ({"source_language_code": "en", "target_language_code": "zh"}, "a"),  # the first by name of two
        ({"source_language_code": "EN", "target_language_code": "Zh"}, "a"),
        ({"target_language_code": "de"}, "c"),
        ({"model": "c", "source_language_code": "en"}, "c"),
    ],
)
def test_the_model_that_serves_a_call(fields: dict[str, str], expected: str) -> None:
    made = translator(model("b"), model("c", target="de"), model("a"))
    assert check(made, **fields).model.name == expected


def test_a_call_must_say_which_of_several_pairs() -> None:
    made = translator(model("a"), model("b", target="de"), model("c", source="fr", target="de"))
    assert fields_of(made) == ["target_language_code"]
    assert fields_of(made, source_language_code="en") == ["target_language_code"]
    assert fields_of(made, target_language_code="de") == ["source_language_code"]
    options = pb.DecodingOptions(max_target_tokens=-1)
    assert fields_of(made, decoding_options=options) == ["target_language_code", "decoding_options.max_target_tokens"]


@pytest.mark.parametrize(
    ("fields", "resource_type", "name"),
    [
        ({"model": "x"}, "model", "x"),
        ({"model": "a", "target_language_code": "de"}, "language pair", "*-de"),
        ({"source_language_code": "zh", "target_language_code": "en"}, "language pair", "zh-en"),
        ({"source_language_code": "en-US"}, "language pair", "en-US-*"),
    ],
)
def test_what_is_not_served(fields: dict[str, str], resource_type: str, name: str) -> None:
    with pytest.raises(NotServedError) as caught:
        check(translator(model("a"), model("b")), **fields)
    assert (caught.value.resource_type, caught.value.resource_name) == (resource_type, name)
    assert caught.value.served == (["a", "b"] if resource_type == "model" else ["en-zh"])


def test_the_options_of_a_call_reach_its_segments() -> None:
    made = translator()
    job, _ = prepare(made, "One. Two.", beam_size=4, length_penalty=0.6, target_prefixes=["ab"])
    first, second = (sequence.options for sequence in job.sequences)
    assert (first.beam_size, first.length_penalty, first.target_prefix) == (4, 0.6, (97, 98))
    assert (second.beam_size, second.length_penalty, second.target_prefix) == (4, 0.6, ())
    plain, _ = prepare(made, "One. Two.")
    assert all(sequence.options.is_plain_greedy for sequence in plain.sequences)
    assert plain.sequences[0].options is plain.sequences[1].options
    again, _ = prepare(made, "Ten.")
    assert again.sequences[0].options is plain.sequences[0].options  # equal options are one object, in all calls


def test_bad_options_are_told_with_all_else() -> None:
    made = translator(max_characters_per_item=5)
    options = pb.DecodingOptions(beam_size=17, length_penalty=-1, suppressed_tokens=["a", "nothing"])
    assert fields_of(made, "a" * 6, decoding_options=options) == [
        "contents[0]",
        "decoding_options.suppressed_tokens[1]",
        "decoding_options.beam_size",
        "decoding_options.length_penalty",
    ]
    with pytest.raises(NotServedError):  # whether the token exists depends on the model
        check(made, model="x", decoding_options=pb.DecodingOptions(suppressed_tokens=["nothing"]))
    assert fields_of(made, model="x", decoding_options=pb.DecodingOptions(beam_size=17)) == [
        "decoding_options.beam_size"
    ]


def stream(made: Translator, *contents: str) -> tuple[StreamingJob, list[pb.TextPiece]]:
    pieces: list[pb.TextPiece] = []
    call = check(made, *contents)
    job = made.prepare_stream(contents, call, deadline=None, on_done=lambda _: None, on_pieces=pieces.extend)
    pieces += job.begin()
    return job, pieces


def test_a_stream_hands_out_text_by_item_and_segment() -> None:
    job, pieces = stream(translator(), " One. Two.", "", "\n", "X")
    one, two, three = job.sequences

    def told() -> list[tuple[int, int, str, str]]:
        found = [
            (p.contents_index, p.segment_index, p.text, pb.FinishReason.Name(p.finish_reason)[14:]) for p in pieces
        ]
        pieces.clear()
        return found

    assert told() == [(0, 0, " ", "UNSPECIFIED"), (2, 0, "\n", "BLANK")]
    assert two.on_progress is not None
    two.on_progress(two, [*map(ord, "二")])
    assert told() == []  # its turn comes after the first
    end(three, FinishReason.LENGTH, "丙")
    assert told() == [(3, 0, "丙", "LENGTH")]
    assert one.on_progress is not None
    one.on_progress(one, [*map(ord, "一")])
    assert told() == [(0, 0, "一", "UNSPECIFIED")]
    end(one, FinishReason.STOP, "一。")
    assert told() == [(0, 0, "。", "STOP"), (0, 1, "二", "UNSPECIFIED")]
    end(two, FinishReason.STOP, "二。")
    assert told() == [(0, 1, "。", "STOP")]
    assert [translation.translated_text for translation in job.result()] == [" 一。二。", "", "\n", "丙"]
    assert job.cancelled_pieces() == []


def test_segments_without_an_end_are_told_when_a_stream_breaks_off() -> None:
    job, _ = stream(translator(), "One. Two.", "X")
    end(job.sequences[1], FinishReason.STOP, "二。")
    end(job.sequences[0], FinishReason.EXPIRED)
    assert isinstance(job.error, DeadlineError)
    assert [(p.contents_index, p.segment_index, p.finish_reason) for p in job.cancelled_pieces()] == [
        (0, 0, pb.FINISH_REASON_CANCELLED),
        (0, 1, pb.FINISH_REASON_CANCELLED),
        (1, 0, pb.FINISH_REASON_CANCELLED),
    ]


def test_a_result_that_contradicts_the_stream_fails_the_call() -> None:
    job, _ = stream(translator(), "One.")
    assert job.sequences[0].on_progress is not None
    job.sequences[0].on_progress(job.sequences[0], [65])
    end(job.sequences[0], FinishReason.STOP, "B")
    assert type(job.error).__name__ == "CertainTokensError"


def scores(made: Translator, contents: list[str], translated: list[str], **fields: Any) -> list[Sequence]:
    call = pb.ScoreTextRequest(contents=contents, translated_texts=translated, **fields)
    return made.prepare_scores(call, deadline=9.0, on_done=lambda _: None).sequences


def score_violations(made: Translator, contents: list[str], translated: list[str], **fields: Any) -> list[str]:
    with pytest.raises(InvalidRequestError) as caught:
        scores(made, contents, translated, **fields)
    return [violation.field for violation in caught.value.violations]


def test_a_translation_to_score_is_a_prefix_to_its_end() -> None:
    options = pb.DecodingOptions(length_penalty=0.6, with_alignment=True)
    one, two = scores(translator(), ["One. Two.\nThree."], ["一\n二"], decoding_options=options) + scores(
        translator(), ["a"], [""]
    )
    assert one.source_ids == (*map(ord, "One. Two. Three."), EOS_ID)
    assert one.options.target_prefix == (*map(ord, "一 二"), EOS_ID)
    assert (one.options.is_scoring, one.options.length_penalty, one.options.with_alignment) == (True, 0.6, True)
    assert two.options.target_prefix == (EOS_ID,)
    for sequence in (one, two):
        assert sequence.options.problems(max_rows=4) == []


def test_what_cannot_be_scored() -> None:
    made = translator()
    assert score_violations(made, [], []) == ["contents"]
    assert score_violations(made, ["a", "b"], ["a"]) == ["translated_texts"]
    assert score_violations(made, ["a", " ", "x" * 30], ["y" * 60, "", "b"]) == [
        "contents[1]",
        "contents[2]",
        "translated_texts[0]",
    ]
    options = pb.DecodingOptions(beam_size=2, length_penalty=11, target_prefixes=["a"])
    assert score_violations(made, ["a"], ["b"], decoding_options=options) == [
        "decoding_options.beam_size",
        "decoding_options.target_prefixes",
        "decoding_options.length_penalty",
    ]
    assert score_violations(translator(max_waiting_tokens=2), ["abc"], ["b"]) == ["contents"]
    with pytest.raises(NotServedError):
        scores(made, ["a"], ["b"], model="x")


def test_a_pairs_default_is_the_one_that_is_said_or_the_first_by_name() -> None:
    models = [model("b"), model("a"), model("c", "de", "en"), model("d", "de", "en")]
    given = Translator(models, LimitsConfig(), clock=lambda: 0.0, defaults={"en-zh": "b", "de-en": "a", "x-y": "c"})
    for translator, wanted in ((Translator(models, LimitsConfig(), clock=lambda: 0.0), "ac"), (given, "bc")):
        for source, name in zip(("en", "DE"), wanted, strict=True):
            call = pb.TranslateTextRequest(contents=["x"], source_language_code=source)
            assert translator.check(call, ["x"]).model.name == name
        named = pb.TranslateTextRequest(contents=["x"], model="d")
        assert translator.check(named, ["x"]).model.name == "d"
        assert {pair: each.name for pair, each in translator.defaults.items()} == {
            "en-zh": wanted[0],
            "de-en": wanted[1],
        }


def test_priority_and_share_reach_the_segments() -> None:
    made, caller = translator(), Caller(name="shop", weight=2.5)
    for given, expected in (
        (pb.PRIORITY_UNSPECIFIED, Priority.INTERACTIVE),
        (pb.PRIORITY_INTERACTIVE, Priority.INTERACTIVE),
        (pb.PRIORITY_BULK, Priority.BULK),
    ):
        checked = check(made, "One. Two.", priority=given)
        assert checked.priority is expected
        job = made.prepare(["One. Two."], checked, deadline=None, caller=caller, on_done=lambda _: None)
        stream = made.prepare_stream(
            ["One."], checked, deadline=None, caller=caller, on_done=lambda _: None, on_pieces=lambda _: None
        )
        request = pb.ScoreTextRequest(contents=["One."], translated_texts=["."], priority=given)
        scoring = made.prepare_scores(request, deadline=None, caller=caller, on_done=lambda _: None)
        for sequence in [*job.sequences, *stream.sequences, *scoring.sequences]:
            assert (sequence.priority, sequence.caller, sequence.weight) == (expected, "shop", 2.5)
        # A bulk segment may be decoded more than once: its text is told when it has ended.
        assert (stream.sequences[0].on_progress is None) == (expected is Priority.BULK)


def test_a_priority_that_is_none_is_refused() -> None:
    options = pb.DecodingOptions(max_target_tokens=-1)
    assert fields_of(translator(), priority=7, decoding_options=options) == [
        "priority",
        "decoding_options.max_target_tokens",
    ]
    with pytest.raises(InvalidRequestError) as caught:
        translator().prepare_scores(
            pb.ScoreTextRequest(contents=["a"], translated_texts=["b"], priority=-1),  # type: ignore[arg-type]
            deadline=None,
            on_done=lambda _: None,
        )
    assert [violation.field for violation in caught.value.violations] == ["priority"]


def test_a_bulk_call_that_would_need_the_reserve_could_never_wait() -> None:
    made = Translator([model()], LimitsConfig(max_waiting_segments=4, reserved_share=0.25), clock=lambda: 0.0)
    contents = ["One."] * 4
    for priority, fits in ((pb.PRIORITY_INTERACTIVE, True), (pb.PRIORITY_BULK, False)):
        checked = check(made, *contents, priority=priority)
        if fits:
            made.prepare(contents, checked, deadline=None, on_done=lambda _: None)
        else:
            with pytest.raises(InvalidRequestError, match="at most 3 segments, but have 4"):
                made.prepare(contents, checked, deadline=None, on_done=lambda _: None)
