"""What came out of decoding as messages of the interface: scores, tokens, hypotheses, alignments, flags."""

from collections.abc import Sequence as Items

import numpy as np
import numpy.typing as npt

from service.alignment import word_pairs, words_of
from service.flags import lost_placeholders
from service.pb.translation.v1 import translation_pb2 as pb
from service.repetition import is_repetitive
from service.request import FinishReason, Hypothesis, Sequence
from service.segments import Segment
from service.tokenizer import EOS_ID, Tokenizer

FINISH_REASONS = {
    FinishReason.STOP: pb.FINISH_REASON_STOP,
    FinishReason.LENGTH: pb.FINISH_REASON_LENGTH,
    FinishReason.REPETITION: pb.FINISH_REASON_REPETITION,
}
"""Of hypotheses."""


def add_segment(
    reply: pb.Translation, segment: Segment, sequence: Sequence, *, text: str, with_space: str, tokenizer: Tokenizer
) -> None:
    """Adds a segment that was decoded to its item's translation.

    Args:
        reply: the item's translation.
        segment: what was translated.
        sequence: what came of it.
        text: its translation.
        with_space: the same with the white space around it.
        tokenizer: the model's.
    """
    hypotheses = sequence.hypotheses
    best = hypotheses[0]
    pieces = tokenizer.target_pieces(best.target_ids)
    message = reply.segments.add(
        source_text=segment.source_text,
        translated_text=with_space,
        score=best.score,
        normalized_score=best.normalized_score,
        token_log_probabilities=best.token_log_probabilities,
        target_tokens=pieces,
        finish_reason=FINISH_REASONS[best.finish_reason],
        flags=segment_flags(segment, sequence, text),
        num_source_tokens=len(sequence.source_ids),
        num_target_tokens=len(best.target_ids),
    )
    is_aligned = best.attention is not None
    source_pieces = tokenizer.source_pieces(sequence.source_ids) if is_aligned else []
    if best.attention is not None:
        message.alignment.CopyFrom(alignment_of(best.attention, sequence.source_ids, source_pieces, best, pieces))
    if len(hypotheses) > 1 or sequence.options.num_hypotheses > 1:
        for hypothesis in hypotheses:
            pieces = tokenizer.target_pieces(hypothesis.target_ids)
            added = message.hypotheses.add(
                text=tokenizer.decode_target(hypothesis.text_ids),
                score=hypothesis.score,
                normalized_score=hypothesis.normalized_score,
                target_tokens=pieces,
                token_log_probabilities=hypothesis.token_log_probabilities,
                finish_reason=FINISH_REASONS[hypothesis.finish_reason],
            )
            if hypothesis.attention is not None:
                added.alignment.CopyFrom(
                    alignment_of(hypothesis.attention, sequence.source_ids, source_pieces, hypothesis, pieces)
                )


def text_score(sequence: Sequence, tokenizer: Tokenizer, model: str) -> pb.TextScore:
    """The score of a translation that was given, from its finished sequence."""
    (given,) = sequence.hypotheses
    pieces = tokenizer.target_pieces(given.target_ids)
    message = pb.TextScore(
        score=given.score,
        normalized_score=given.normalized_score,
        target_tokens=pieces,
        token_log_probabilities=given.token_log_probabilities,
        model=model,
        num_source_tokens=len(sequence.source_ids),
    )
    if given.attention is not None:
        source_pieces = tokenizer.source_pieces(sequence.source_ids)
        message.alignment.CopyFrom(alignment_of(given.attention, sequence.source_ids, source_pieces, given, pieces))
    return message


def alignment_of(
    attention: npt.NDArray[np.float32],
    source_ids: Items[int],
    source_pieces: Items[str],
    hypothesis: Hypothesis,
    target_pieces: Items[str],
) -> pb.Alignment:
    """Soft weights and pairs of words.

    Args:
        attention: [T,S], of the hypothesis.
        source_ids: S of them, end of sentence last.
        source_pieces: the same as the vocabulary spells them.
        hypothesis: whose T target tokens it is about.
        target_pieces: the same as the vocabulary spells them.

    Raises:
        ValueError: when there is not one row for each target token and one column for each source token.
    """
    if attention.shape != (len(target_pieces), len(source_pieces)):
        raise ValueError(
            f"An alignment must have {len(target_pieces)} rows of {len(source_pieces)}, but has {attention.shape}."
        )
    num_source = len(source_ids) - (source_ids[-1] == EOS_ID)
    source_words = words_of(source_pieces[:num_source])
    target_words = words_of(target_pieces[: len(hypothesis.text_ids)])
    return pb.Alignment(
        source_tokens=source_pieces,
        weights=attention.ravel().tolist(),
        source_words=[word.text for word in source_words],
        target_words=[word.text for word in target_words],
        word_pairs=[
            pb.WordPair(source_word=pair.source_word, target_word=pair.target_word, weight=pair.weight)
            for pair in word_pairs(attention, source_words, target_words)
        ],
    )


def segment_flags(segment: Segment, sequence: Sequence, text: str) -> list["pb.SegmentFlag"]:
    """What a reader should know about a decoded segment, `text` being its translation."""
    flags: list[pb.SegmentFlag] = []
    best = sequence.hypotheses[0]
    is_cut = best.finish_reason in (FinishReason.LENGTH, FinishReason.REPETITION)
    if is_cut:
        flags.append(pb.SEGMENT_FLAG_TRUNCATED)
    if segment.is_split:
        flags.append(pb.SEGMENT_FLAG_SOURCE_SPLIT)
    if sequence.was_guarded or is_repetitive(best.target_ids, sequence.source_ids):
        flags.append(pb.SEGMENT_FLAG_REPETITION)
    if lost_placeholders(segment.core, text):
        flags.append(pb.SEGMENT_FLAG_PLACEHOLDER_LOST)
    return flags
