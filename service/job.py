"""One call in flight: its segments, their sequences, and how they become its reply."""

from collections.abc import Callable
from dataclasses import dataclass, field

from service import request
from service.joining import join_translations
from service.pb.translation.v1 import translation_pb2 as pb
from service.refusals import DeadlineError
from service.request import FinishReason
from service.results import FINISH_REASONS, add_segment, text_score
from service.segments import Segment
from service.served_model import ServedModel
from service.stream import ItemStream


@dataclass(kw_only=True, eq=False)
class Job:
    """One call in flight: its sequences, and when they have all ended."""

    model: ServedModel
    """What decodes it."""
    on_done: Callable[["Job"], None]
    """Called once, when every sequence has ended or one has failed."""
    sequences: list[request.Sequence] = field(default_factory=list)
    """What is to be decoded, in order."""
    tokenize_seconds: float = 0.0
    """Time it took to cut and tokenize."""
    num_unfinished: int = 0
    """Sequences that have not ended."""
    error: BaseException | None = None
    """Why there is no result."""

    def finish_one(self, sequence: request.Sequence) -> None:
        """The `on_finished` of the sequences; called by one thread."""
        self.num_unfinished -= 1
        if self.error is None:
            if sequence.finish_reason is FinishReason.FAILED:
                self.error = sequence.error or RuntimeError("A sequence failed without an error.")
            elif sequence.finish_reason is FinishReason.EXPIRED:
                self.error = DeadlineError("The deadline passed before the translation was finished.")
            elif sequence.finish_reason is FinishReason.CANCELLED:
                self.error = DeadlineError("The call was cancelled before the translation was finished.")
            if self.error is None:
                try:
                    self._take(sequence)
                except Exception as error:
                    self.error = error
            if self.error is not None or self.num_unfinished == 0:
                self.on_done(self)

    def _take(self, sequence: request.Sequence) -> None:
        """What else is done with a sequence that ended well."""

    def metadata(self, *, request_id: str, total_seconds: float) -> pb.ResponseMetadata:
        """What the call cost; all zero but the first fields when nothing had to be decoded."""
        metadata = pb.ResponseMetadata(
            model_digest=self.model.digest,
            request_id=request_id,
            tokenize_seconds=self.tokenize_seconds,
            total_seconds=total_seconds,
        )
        sequences = self.sequences
        if sequences:
            metadata.num_source_tokens = sum(len(sequence.source_ids) for sequence in sequences)
            metadata.num_target_tokens = sum(len(sequence.target_ids) for sequence in sequences)
            metadata.queue_seconds = max(s.admitted_at for s in sequences) - sequences[0].submitted_at
            # Sequences encoded together share one run, told apart by when it ended.
            metadata.encode_seconds = sum({s.encoded_at: s.encode_seconds for s in sequences}.values())
            metadata.decode_seconds = max(s.finished_at for s in sequences) - min(s.encoded_at for s in sequences)
            metadata.num_steps = sum(sequence.num_steps for sequence in sequences)
            metadata.max_rows_shared = max(sequence.max_rows_shared for sequence in sequences)
            metadata.num_preemptions = sum(sequence.num_preemptions for sequence in sequences)
        return metadata


@dataclass(kw_only=True, eq=False)
class TranslationJob(Job):
    """A call that translates."""

    items: list[list[Segment]]
    """The segments of each item, in order; each that is not blank has a sequence."""

    @property
    def num_blank(self) -> int:
        """Segments without text."""
        return sum(not segment.core for segments in self.items for segment in segments)

    def result(self) -> list[pb.Translation]:
        """The translation of each item.

        Raises:
            ValueError: when a token id is outside the vocabulary, which a checked bundle cannot bring about.
        """
        sequences = iter(self.sequences)
        tokenizer = self.model.tokenizer
        translations = []
        for segments in self.items:
            owners = [next(sequences) if segment.core else None for segment in segments]
            texts = ["" if owner is None else tokenizer.decode_target(owner.text_ids) for owner in owners]
            joined = join_translations(segments, texts, self.model.target_language)
            reply = pb.Translation(translated_text="".join(joined), model=self.model.name)
            for segment, owner, text, with_space in zip(segments, owners, texts, joined, strict=True):
                if owner is None:
                    reply.segments.add(
                        source_text=segment.source_text,
                        translated_text=with_space,
                        finish_reason=pb.FINISH_REASON_BLANK,
                    )
                else:
                    add_segment(reply, segment, owner, text=text, with_space=with_space, tokenizer=tokenizer)
            translations.append(reply)
        return translations


def ignore_pieces(pieces: list[pb.TextPiece]) -> None:
    """The `on_pieces` of a job whose reader has not come yet."""


@dataclass(kw_only=True, eq=False)
class StreamingJob(TranslationJob):
    """A call that translates, and hands out text as it becomes certain."""

    on_pieces: Callable[[list[pb.TextPiece]], None] = ignore_pieces
    """Called with pieces in order, never with none."""
    _places: dict[request.Sequence, tuple[int, int]] = field(default_factory=dict)
    _owners: dict[tuple[int, int], request.Sequence] = field(default_factory=dict)
    _streams: list[ItemStream] = field(default_factory=list)

    def begin(self) -> list[pb.TextPiece]:
        """What is certain before anything is decoded: white space. To be called once, when the sequences are made."""
        sequences = iter(self.sequences)
        for item, segments in enumerate(self.items):
            self._streams.append(ItemStream(segments, self.model.tokenizer, self.model.target_language))
            for index, segment in enumerate(segments):
                if segment.core:
                    owner = next(sequences)
                    self._places[owner] = (item, index)
                    self._owners[item, index] = owner
        return [piece for item in range(len(self.items)) for piece in self._pieces(item)]

    def progress_one(self, sequence: request.Sequence, ids: list[int]) -> None:
        """The `on_progress` of the sequences."""
        item, index = self._places[sequence]
        self._streams[item].add(index, ids)
        self._tell(item)

    def _take(self, sequence: request.Sequence) -> None:
        item, index = self._places[sequence]
        self._streams[item].complete(index, sequence.text_ids)
        self._tell(item)

    def cancelled_pieces(self) -> list[pb.TextPiece]:
        """What ends each segment whose text is not complete, when the call ends before it."""
        return [
            pb.TextPiece(contents_index=item, segment_index=index, finish_reason=pb.FINISH_REASON_CANCELLED)
            for item, stream in enumerate(self._streams)
            for index in stream.unfinished
        ]

    def _tell(self, item: int) -> None:
        pieces = self._pieces(item)
        if pieces:
            self.on_pieces(pieces)

    def _pieces(self, item: int) -> list[pb.TextPiece]:
        made = []
        for piece in self._streams[item].take():
            message = pb.TextPiece(contents_index=item, segment_index=piece.segment_index, text=piece.text)
            if piece.is_last:
                message.finish_reason = self._finish_reason(item, piece.segment_index)
            made.append(message)
        return made

    def _finish_reason(self, item: int, index: int) -> "pb.FinishReason":
        owner = self._owners.get((item, index))
        if owner is None:
            return pb.FINISH_REASON_BLANK
        assert owner.finish_reason is not None
        return FINISH_REASONS[owner.finish_reason]


@dataclass(kw_only=True, eq=False)
class ScoringJob(Job):
    """A call that scores: a sequence for each item."""

    def result(self) -> list[pb.TextScore]:
        """The score of each item."""
        return [text_score(sequence, self.model.tokenizer, self.model.name) for sequence in self.sequences]
