"""Finished sequences as messages of the interface."""

from typing import Any

import numpy as np
import pytest

from service.options import DecodingOptions
from service.pb.translation.v1 import translation_pb2 as pb
from service.request import FinishReason, Hypothesis, Sequence
from service.results import FINISH_REASONS, add_segment, alignment_of, segment_flags, text_score
from service.segments import Segment
from service.tokenizer import EOS_ID, Tokenizer
from tests.synthetic.toy_language import make_tokenizer


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    return make_tokenizer(tmp_path_factory.mktemp("tokenizer") / "tokenizer")


def segment(core: str = "The file opens the list.", **fields: Any) -> Segment:
    return Segment(leading=" ", core=core, trailing="\n", source_ids=(), **fields)


def hypothesis(
    ids: list[int], reason: FinishReason = FinishReason.STOP, attention: Any = None, score: float = -1.5
) -> Hypothesis:
    target_ids = [*ids, EOS_ID] if reason is FinishReason.STOP else ids
    return Hypothesis(
        target_ids=target_ids,
        token_log_probabilities=[score / len(target_ids)] * len(target_ids),
        score=score,
        normalized_score=score / 2,
        finish_reason=reason,
        attention=attention,
    )


def finished(tokenizer: Tokenizer, *hypotheses: Hypothesis, was_guarded: bool = False, **options: Any) -> Sequence:
    source_ids = tuple(tokenizer.encode_source("The file opens the list."))
    sequence = Sequence(source_ids=source_ids, options=DecodingOptions(**options))
    sequence.hypotheses = list(hypotheses)
    sequence.was_guarded = was_guarded
    return sequence


def message(tokenizer: Tokenizer, sequence: Sequence) -> pb.Segment:
    reply = pb.Translation()
    text = tokenizer.decode_target(sequence.text_ids)
    add_segment(reply, segment(), sequence, text=text, with_space=f" {text}\n", tokenizer=tokenizer)
    return reply.segments[0]


def test_one_result(tokenizer: Tokenizer) -> None:
    ids = tokenizer.encode_target("文件打开列表。")
    made = message(tokenizer, finished(tokenizer, hypothesis(ids)))
    assert (made.source_text, made.translated_text) == (" The file opens the list.\n", " 文件打开列表。\n")
    assert "".join(made.target_tokens) == "文件打开列表。</s>"
    assert len(made.target_tokens) == len(made.token_log_probabilities) == made.num_target_tokens == len(ids) + 1
    assert (made.score, made.normalized_score, made.finish_reason) == (-1.5, -0.75, pb.FINISH_REASON_STOP)
    assert (list(made.flags), len(made.hypotheses), made.HasField("alignment")) == ([], 0, False)


def test_several_results_are_all_there(tokenizer: Tokenizer) -> None:
    first, second = tokenizer.encode_target("文件打开。"), tokenizer.encode_target("文件")
    sequence = finished(
        tokenizer,
        hypothesis(first),
        hypothesis(second, FinishReason.LENGTH, score=-3.0),
        beam_size=3,
        num_hypotheses=3,
    )
    made = message(tokenizer, sequence)
    assert [found.text for found in made.hypotheses] == ["文件打开。", "文件"]
    assert [found.finish_reason for found in made.hypotheses] == [pb.FINISH_REASON_STOP, pb.FINISH_REASON_LENGTH]
    assert [found.score for found in made.hypotheses] == [-1.5, -3.0]
    assert list(made.hypotheses[0].target_tokens) == list(made.target_tokens)
    assert list(made.flags) == []  # the second is cut, the segment's own is not
    only = finished(tokenizer, hypothesis(first), beam_size=3, num_hypotheses=3)  # the search found no more
    assert len(message(tokenizer, only).hypotheses) == 1


def test_alignments_of_every_result(tokenizer: Tokenizer) -> None:
    ids = tokenizer.encode_target("文件打开列表。")
    num_source = len(tokenizer.encode_source("The file opens the list."))
    generator = np.random.default_rng(0)
    both = [generator.dirichlet(np.ones(num_source), len(ids) + ends).astype(np.float32) for ends in (1, 0)]
    first, second = hypothesis(ids, attention=both[0]), hypothesis(ids, FinishReason.LENGTH, attention=both[1])
    made = message(tokenizer, finished(tokenizer, first, second, beam_size=2, num_hypotheses=2, with_alignment=True))
    for alignment, attention in ((made.alignment, both[0]), (made.hypotheses[1].alignment, both[1])):
        assert np.array_equal(np.array(alignment.weights, np.float32).reshape(attention.shape), attention)
        assert len(alignment.source_tokens) == num_source
        assert " ".join(alignment.source_words) == "The file opens the list ."
        assert "".join(alignment.target_words) == "文件打开列表。"
        assert [pair.target_word for pair in alignment.word_pairs] == list(range(len(alignment.target_words)))
    assert made.alignment == made.hypotheses[0].alignment
    scored = text_score(finished(tokenizer, first), tokenizer, "m")
    assert (scored.alignment, scored.model, scored.num_source_tokens) == (made.alignment, "m", num_source)
    assert list(scored.target_tokens) == list(made.target_tokens)


def test_attention_of_another_shape_is_an_error() -> None:
    made = hypothesis([9, 9])
    with pytest.raises(ValueError, match=r"3 rows of 2, but has \(2, 3\)"):
        alignment_of(np.zeros((2, 3), np.float32), (7, EOS_ID), ["a", "</s>"], made, ["x", "y", "</s>"])


@pytest.mark.parametrize(
    ("ids", "reason", "was_guarded", "expected"),
    [
        ([9, 8, 7], FinishReason.STOP, False, []),
        ([9, 8, 7], FinishReason.LENGTH, False, [pb.SEGMENT_FLAG_TRUNCATED]),
        ([9] * 8, FinishReason.STOP, False, [pb.SEGMENT_FLAG_REPETITION]),
        ([9, 8, 7], FinishReason.STOP, True, [pb.SEGMENT_FLAG_REPETITION]),  # it looped, and does not any more
        ([9] * 8, FinishReason.REPETITION, True, [pb.SEGMENT_FLAG_TRUNCATED, pb.SEGMENT_FLAG_REPETITION]),
    ],
)
def test_flags(
    tokenizer: Tokenizer, ids: list[int], reason: FinishReason, was_guarded: bool, expected: list[int]
) -> None:
    sequence = finished(tokenizer, hypothesis(ids, reason), was_guarded=was_guarded)
    assert segment_flags(segment(), sequence, "text") == expected
    with_all = segment_flags(segment("{x}", is_split=True), sequence, "text")
    assert with_all == sorted([*expected, pb.SEGMENT_FLAG_SOURCE_SPLIT, pb.SEGMENT_FLAG_PLACEHOLDER_LOST])


def test_every_reason_that_a_hypothesis_can_have_has_a_name() -> None:
    results = {FinishReason.STOP, FinishReason.LENGTH, FinishReason.REPETITION}
    assert set(FINISH_REASONS) == results
    for reason, number in FINISH_REASONS.items():
        assert pb.FinishReason.Name(number) == f"FINISH_REASON_{reason.name}"
