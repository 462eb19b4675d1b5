"""A request to sequences, and finished sequences to a reply: no gRPC, no event loop.

`Translator.prepare` checks a request, picks the model, cuts the texts and makes one `Sequence` for each segment that
has text. Whoever runs them calls `Job.finish_one` as each ends, and `Job.result` once all have.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from service import request
from service.config import LimitsConfig
from service.flags import is_repetitive, lost_placeholders
from service.joining import join_translations
from service.loop_group import LoopGroup
from service.pb.translation.v1 import translation_pb2 as pb
from service.refusals import DeadlineError, FieldViolation, InvalidRequestError, NotServedError, shortened
from service.request import DecodingOptions, FinishReason
from service.segments import Segment, split_item
from service.tokenizer import Tokenizer

PLAIN_TEXT = "text/plain"

_FINISH_REASONS = {
    FinishReason.STOP: pb.FINISH_REASON_STOP,
    FinishReason.LENGTH: pb.FINISH_REASON_LENGTH,
    FinishReason.BLANK: pb.FINISH_REASON_BLANK,
}


@dataclass(frozen=True, kw_only=True)
class ServedModel:
    """A model that is loaded, proven and decoding."""

    name: str
    """Its name in requests."""
    digest: str
    """SHA-256 of its bundle's manifest."""
    precision: str
    """"fp32" or "int8"."""
    source_language: str
    """Language it reads."""
    target_language: str
    """Language it writes."""
    tokenizer: Tokenizer
    """Text to token ids and back."""
    loop: LoopGroup
    """The engines that decode its sequences."""
    max_source_tokens: int
    """The longest segment it takes, end of sentence included."""
    max_target_tokens: int
    """The longest translation it makes, end of sentence included."""
    max_rows: int
    """Sentences it decodes at a time, over all engines."""
    is_same_bytes: bool
    """Whether the same-bytes probe passed on this machine."""
    provider: str
    """Where its graphs run."""
    num_threads: int
    """Threads of its graphs, over all engines."""

    @property
    def language_pair(self) -> str:
        """As in `en-zh`."""
        return f"{self.source_language}-{self.target_language}"


def default_max_target_tokens(num_source_tokens: int, limit: int) -> int:
    """The most target tokens of a segment whose caller did not say.

    Three for each source token and 16 besides: sentences that end by themselves stay below it (such a
    ratio occurs only in very short pairs of the training data), while a translation that loops ends after a bounded
    time. It depends on the segment alone, so a translation does not depend on its company.
    """
    return min(3 * num_source_tokens + 16, limit)


@dataclass(kw_only=True, eq=False, slots=True)
class Job:
    """One call in flight: its segments and their sequences."""

    model: ServedModel
    """What translates it."""
    items: list[list[Segment]]
    """The segments of each item, in order."""
    sequences: list[request.Sequence]
    """One for each segment that is not blank, in order."""
    on_done: Callable[["Job"], None]
    """Called once, when every sequence has ended or one has failed."""
    tokenize_seconds: float = 0.0
    """Time it took to cut and tokenize."""
    num_unfinished: int = 0
    """Sequences that have not ended."""
    error: BaseException | None = field(default=None)
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
            if self.error is not None or self.num_unfinished == 0:
                self.on_done(self)

    def result(self) -> list[pb.Translation]:
        """The translation of each item.

        Raises:
            ValueError: when a token id is outside the vocabulary, which a checked bundle cannot bring about.
        """
        sequences = iter(self.sequences)
        decode = self.model.tokenizer.decode_target
        translations = []
        for segments in self.items:
            owners = [next(sequences) if segment.core else None for segment in segments]
            texts = ["" if owner is None else decode(owner.text_ids) for owner in owners]
            joined = join_translations(segments, texts, self.model.target_language)
            reply = pb.Translation(translated_text="".join(joined), model=self.model.name)
            for segment, owner, text, with_space in zip(segments, owners, texts, joined, strict=True):
                if owner is None:
                    reply.segments.add(
                        source_text=segment.source_text,
                        translated_text=with_space,
                        finish_reason=pb.FINISH_REASON_BLANK,
                    )
                    continue
                assert owner.finish_reason is not None
                reply.segments.add(
                    source_text=segment.source_text,
                    translated_text=with_space,
                    score=owner.score,
                    token_log_probabilities=owner.token_log_probabilities,
                    finish_reason=_FINISH_REASONS[owner.finish_reason],
                    flags=segment_flags(segment, owner, text),
                    num_source_tokens=len(owner.source_ids),
                    num_target_tokens=len(owner.target_ids),
                )
            translations.append(reply)
        return translations

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
        return metadata


def segment_flags(segment: Segment, sequence: request.Sequence, text: str) -> list["pb.SegmentFlag"]:
    """What a reader should know about a decoded segment, `text` being its translation."""
    flags: list[pb.SegmentFlag] = []
    if sequence.finish_reason is FinishReason.LENGTH:
        flags.append(pb.SEGMENT_FLAG_TRUNCATED)
    if segment.is_split:
        flags.append(pb.SEGMENT_FLAG_SOURCE_SPLIT)
    if is_repetitive(sequence.target_ids, sequence.source_ids):
        flags.append(pb.SEGMENT_FLAG_REPETITION)
    if lost_placeholders(segment.core, text):
        flags.append(pb.SEGMENT_FLAG_PLACEHOLDER_LOST)
    return flags


class Translator:
    """Checks requests against the models and limits of a server, and prepares their work."""

    def __init__(self, models: Sequence[ServedModel], limits: LimitsConfig, *, clock: Callable[[], float]) -> None:
        """`models` must not be empty; of two that serve one language pair the first by name is the pair's default.
        `clock` gives monotonic seconds."""
        self.models = sorted(models, key=lambda model: model.name)
        self._limits = limits
        self._clock = clock
        self._by_name = {model.name: model for model in self.models}
        self._options: dict[int, DecodingOptions] = {}

    def check(self, call: pb.TranslateTextRequest, contents: Sequence[str]) -> tuple[ServedModel, int]:
        """Whether a request can be answered; `contents` are its own, read once.

        Returns:
            The model that serves it and the target tokens asked for (0: not said).

        Raises:
            InvalidRequestError: naming every field that is wrong.
            NotServedError: when no model serves what was asked for.
        """
        violations = self._violations(call, contents)
        max_target_tokens = call.decoding_options.max_target_tokens if call.HasField("decoding_options") else 0
        if not violations and not max_target_tokens:
            return self._pick(call, violations), 0
        not_served: NotServedError | None = None
        try:
            limit = self._pick(call, violations).max_target_tokens
        except NotServedError as error:
            not_served = error
            limit = max(model.max_target_tokens for model in self.models)
        except InvalidRequestError:  # its violation is in the list
            limit = max(model.max_target_tokens for model in self.models)
        if not 0 <= max_target_tokens <= limit:
            violations.append(
                FieldViolation(
                    field="decoding_options.max_target_tokens",
                    description=f"It must be between 0 and {limit}, but is {max_target_tokens}.",
                )
            )
        if violations:
            raise InvalidRequestError(violations)
        if not_served is not None:
            raise not_served
        return self._pick(call, violations), max_target_tokens

    def _violations(self, call: pb.TranslateTextRequest, contents: Sequence[str]) -> list[FieldViolation]:
        """Every rule that the request breaks whatever the model."""
        violations = []
        limits = self._limits
        if not 1 <= len(contents) <= limits.max_contents:
            violations.append(
                FieldViolation(
                    field="contents",
                    description=f"It must have between 1 and {limits.max_contents} items, but has {len(contents)}.",
                )
            )
        for i, text in enumerate(contents):
            if len(text) > limits.max_characters_per_item:
                violations.append(
                    FieldViolation(
                        field=f"contents[{i}]",
                        description=f"It must have at most {limits.max_characters_per_item} characters, "
                        f"but has {len(text)}.",
                    )
                )
        if call.mime_type and call.mime_type != PLAIN_TEXT:
            violations.append(
                FieldViolation(
                    field="mime_type", description=f"It must be {PLAIN_TEXT!r}, but is {shortened(call.mime_type)!r}."
                )
            )
        if call.HasField("glossary_config"):
            violations.append(
                FieldViolation(
                    field="glossary_config", description="It must be left out: glossaries are not supported."
                )
            )
        return violations

    def _pick(self, call: pb.TranslateTextRequest, violations: list[FieldViolation]) -> ServedModel:
        """The model that serves a call.

        Raises:
            NotServedError: when there is none.
            InvalidRequestError: when the call does not say enough to choose; `violations` has grown by the reason.
        """
        source, target = call.source_language_code.lower(), call.target_language_code.lower()
        if call.model:
            named = self._by_name.get(call.model)
            if named is None:
                raise NotServedError(resource_type="model", resource_name=call.model, served=list(self._by_name))
            candidates = [named]
        else:
            candidates = self.models
        matching = [
            model
            for model in candidates
            if source in ("", model.source_language.lower()) and target in ("", model.target_language.lower())
        ]
        if not matching:
            raise NotServedError(
                resource_type="language pair",
                resource_name=f"{call.source_language_code or '*'}-{call.target_language_code or '*'}",
                served=sorted({model.language_pair for model in candidates}),
            )
        pairs = sorted({model.language_pair for model in matching})
        if len(pairs) > 1:
            violations.append(
                FieldViolation(
                    field="target_language_code" if not target else "source_language_code",
                    description=f"It or `model` must be given, because several pairs are served: {', '.join(pairs)}.",
                )
            )
            raise InvalidRequestError(violations)
        return matching[0]

    def prepare(
        self,
        contents: Sequence[str],
        model: ServedModel,
        max_target_tokens: int,
        *,
        deadline: float | None,
        on_done: Callable[[Job], None],
    ) -> Job:
        """Cuts and tokenizes the texts of a checked request; takes time with their length.

        Raises:
            InvalidRequestError: when the call alone is more than may ever wait.
        """
        started_at = self._clock()
        encode = model.tokenizer.encode_source
        items = [split_item(text, encode, model.max_source_tokens) for text in contents]
        job = Job(model=model, items=items, sequences=[], on_done=on_done)
        finish_one = job.finish_one
        num_tokens = 0
        for segments in items:
            for segment in segments:
                if segment.core:
                    length = len(segment.source_ids)
                    num_tokens += length
                    limit = max_target_tokens or default_max_target_tokens(length, model.max_target_tokens)
                    job.sequences.append(
                        request.Sequence(
                            source_ids=segment.source_ids,
                            options=self._options_for(limit),
                            deadline=deadline,
                            on_finished=finish_one,
                        )
                    )
        job.num_unfinished = len(job.sequences)
        self._check_admissible(len(job.sequences), num_tokens)
        job.tokenize_seconds = self._clock() - started_at
        return job

    def _options_for(self, max_target_tokens: int) -> DecodingOptions:
        """Equal options are one object: a call makes none."""
        options = self._options.get(max_target_tokens)
        if options is None:
            options = self._options[max_target_tokens] = DecodingOptions(max_target_tokens=max_target_tokens)
        return options

    def _check_admissible(self, num_segments: int, num_tokens: int) -> None:
        limits = self._limits
        violations = [
            FieldViolation(
                field="contents", description=f"All items together must have at most {most} {name}, but have {number}."
            )
            for name, number, most in (
                ("segments", num_segments, limits.max_waiting_segments),
                ("source tokens", num_tokens, limits.max_waiting_tokens),
            )
            if number > most
        ]
        if violations:
            raise InvalidRequestError(violations)


def mean_inter_token_seconds(sequence: request.Sequence) -> float:
    """Mean time between the target tokens of a finished sequence; NaN when it has fewer than two."""
    num_gaps = len(sequence.target_ids) - 1
    return (sequence.finished_at - sequence.first_token_at) / num_gaps if num_gaps > 0 else math.nan
