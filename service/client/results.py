"""What a call is answered with, as frozen dataclasses."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, cast

from service.pb.translation.v1 import translation_pb2 as pb

FinishReason = Literal["STOP", "LENGTH", "BLANK", "CANCELLED", "REPETITION", "UNSPECIFIED"]
SegmentFlag = Literal["TRUNCATED", "SOURCE_SPLIT", "REPETITION", "PLACEHOLDER_LOST", "UNSPECIFIED"]


@dataclass(frozen=True, kw_only=True)
class WordPair:
    """The source word that a target word looked at most."""

    source_word: int
    """Index in `Alignment.source_words`."""
    target_word: int
    """Index in `Alignment.target_words`."""
    weight: float
    """Share of the target word's attention that the source word got."""


@dataclass(frozen=True, kw_only=True)
class Alignment:
    """Which source tokens the model looked at when it chose each target token."""

    source_tokens: tuple[str, ...]
    """The source tokens, end of sentence included."""
    weights: tuple[tuple[float, ...], ...]
    """[T,S] a row for each target token, end of sentence included; each adds up to 1."""
    source_words: tuple[str, ...]
    """The source words in order."""
    target_words: tuple[str, ...]
    """The target words in order."""
    word_pairs: tuple[WordPair, ...]
    """One for each target word."""


@dataclass(frozen=True, kw_only=True)
class Hypothesis:
    """One of several results of a segment."""

    text: str
    """The translation, without white space around it."""
    score: float
    """Sum of the natural-log probabilities of its target tokens."""
    normalized_score: float
    """What it was ranked by."""
    target_tokens: tuple[str, ...]
    """The target tokens as the vocabulary spells them."""
    token_log_probabilities: tuple[float, ...]
    """Natural-log probability of each target token."""
    finish_reason: FinishReason
    """Why decoding ended."""
    alignment: Alignment | None
    """On demand."""


@dataclass(frozen=True, kw_only=True)
class Segment:
    """A piece of a text that was translated on its own."""

    source_text: str
    """Its source characters, white space around them included."""
    translated_text: str
    """Their translation, white space around it included."""
    score: float
    """Sum of the natural-log probabilities of its target tokens."""
    normalized_score: float
    """What the results were ranked by."""
    target_tokens: tuple[str, ...]
    """The target tokens as the vocabulary spells them ("▁" is a space), end of sentence included."""
    token_log_probabilities: tuple[float, ...]
    """Natural-log probability of each target token."""
    finish_reason: FinishReason
    """Why decoding ended."""
    flags: tuple[SegmentFlag, ...]
    """What a reader should know."""
    num_source_tokens: int
    """Source tokens, end of sentence included."""
    num_target_tokens: int
    """Target tokens, end of sentence included."""
    alignment: Alignment | None
    """On demand."""
    hypotheses: tuple[Hypothesis, ...]
    """All results, best first, where more than one were asked for; the fields above are the first's."""


@dataclass(frozen=True, kw_only=True)
class CallMetadata:
    """What a call cost, for all its texts together; fields as in the interface's `ResponseMetadata`."""

    model_digest: str
    """The served bundle's digest."""
    request_id: str
    """Identity of the call in the server's logs."""
    num_source_tokens: int
    """Source tokens of all segments."""
    num_target_tokens: int
    """Target tokens of all segments."""
    tokenize_seconds: float
    """Segmenting and tokenizing."""
    queue_seconds: float
    """Until the last segment had joined the batch."""
    encode_seconds: float
    """Encoder runs that the call had a part in."""
    decode_seconds: float
    """From the first decoding step to the last."""
    total_seconds: float
    """Everything, as the server saw it."""
    num_steps: int
    """Decoding steps of the segments, summed."""
    max_rows_shared: int
    """The most rows that decoded in one step with this call."""
    num_preemptions: int
    """How often segments of a bulk call were put back for interactive work."""


@dataclass(frozen=True, kw_only=True)
class Translation:
    """The translation of one text."""

    text: str
    """The target text."""
    model: str
    """The model that made it."""
    segments: tuple[Segment, ...]
    """Its segments in order."""
    metadata: CallMetadata
    """What the whole call cost."""


@dataclass(frozen=True, kw_only=True)
class TextPiece:
    """Text of a stream that can no longer change."""

    text_index: int
    """Which of the texts it belongs to."""
    segment_index: int
    """Which segment of that text."""
    text: str
    """The next characters of its translation."""
    finish_reason: FinishReason | None
    """Given with the last piece of a segment."""


@dataclass(frozen=True, kw_only=True)
class TextScore:
    """How probable the model finds a translation."""

    score: float
    """Sum of the natural-log probabilities of the target tokens."""
    normalized_score: float
    """What a search would have ranked it by."""
    target_tokens: tuple[str, ...]
    """The target tokens as the vocabulary spells them, end of sentence included."""
    token_log_probabilities: tuple[float, ...]
    """Natural-log probability of each target token."""
    alignment: Alignment | None
    """On demand."""
    model: str
    """The model that was asked."""
    num_source_tokens: int
    """Source tokens, end of sentence included."""
    metadata: CallMetadata
    """What the whole call cost."""


def parse_translations(reply: pb.TranslateTextResponse) -> list[Translation]:
    """The answer to a call that translates."""
    metadata = _parse_metadata(reply.metadata)
    return [
        Translation(
            text=translation.translated_text,
            model=translation.model,
            segments=tuple(_parse_segment(segment) for segment in translation.segments),
            metadata=metadata,
        )
        for translation in reply.translations
    ]


def parse_scores(reply: pb.ScoreTextResponse) -> list[TextScore]:
    """The answer to a call that scores."""
    metadata = _parse_metadata(reply.metadata)
    return [
        TextScore(
            score=score.score,
            normalized_score=score.normalized_score,
            target_tokens=tuple(score.target_tokens),
            token_log_probabilities=tuple(score.token_log_probabilities),
            alignment=_parse_alignment(score),
            model=score.model,
            num_source_tokens=score.num_source_tokens,
            metadata=metadata,
        )
        for score in reply.scores
    ]


def parse_piece(piece: pb.TextPiece) -> TextPiece:
    """A piece of a stream."""
    return TextPiece(
        text_index=piece.contents_index,
        segment_index=piece.segment_index,
        text=piece.text,
        finish_reason=_parse_finish_reason(piece.finish_reason) if piece.finish_reason else None,
    )


def _parse_metadata(metadata: pb.ResponseMetadata) -> CallMetadata:
    return CallMetadata(**{name: getattr(metadata, name) for name in CallMetadata.__dataclass_fields__})


def _parse_segment(segment: pb.Segment) -> Segment:
    flags = (pb.SegmentFlag.Name(flag).removeprefix("SEGMENT_FLAG_") for flag in segment.flags)
    return Segment(
        source_text=segment.source_text,
        translated_text=segment.translated_text,
        score=segment.score,
        normalized_score=segment.normalized_score,
        target_tokens=tuple(segment.target_tokens),
        token_log_probabilities=tuple(segment.token_log_probabilities),
        finish_reason=_parse_finish_reason(segment.finish_reason),
        flags=cast(tuple[SegmentFlag, ...], tuple(flags)),
        num_source_tokens=segment.num_source_tokens,
        num_target_tokens=segment.num_target_tokens,
        alignment=_parse_alignment(segment),
        hypotheses=tuple(_parse_hypothesis(hypothesis) for hypothesis in segment.hypotheses),
    )


def _parse_hypothesis(hypothesis: pb.Hypothesis) -> Hypothesis:
    return Hypothesis(
        text=hypothesis.text,
        score=hypothesis.score,
        normalized_score=hypothesis.normalized_score,
        target_tokens=tuple(hypothesis.target_tokens),
        token_log_probabilities=tuple(hypothesis.token_log_probabilities),
        finish_reason=_parse_finish_reason(hypothesis.finish_reason),
        alignment=_parse_alignment(hypothesis),
    )


def _parse_alignment(owner: pb.Segment | pb.Hypothesis | pb.TextScore) -> Alignment | None:
    if not owner.HasField("alignment"):
        return None
    alignment = owner.alignment
    width = len(alignment.source_tokens)
    weights: Sequence[float] = alignment.weights
    return Alignment(
        source_tokens=tuple(alignment.source_tokens),
        weights=tuple(tuple(weights[i : i + width]) for i in range(0, len(weights), width)) if width else (),
        source_words=tuple(alignment.source_words),
        target_words=tuple(alignment.target_words),
        word_pairs=tuple(
            WordPair(source_word=pair.source_word, target_word=pair.target_word, weight=pair.weight)
            for pair in alignment.word_pairs
        ),
    )


def _parse_finish_reason(reason: "pb.FinishReason") -> FinishReason:
    return cast(FinishReason, pb.FinishReason.Name(reason).removeprefix("FINISH_REASON_"))
