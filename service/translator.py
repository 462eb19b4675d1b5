"""A request to sequences: no gRPC, no event loop.

`Translator.check` checks a request and picks the model; `Translator.prepare` cuts the texts and makes one `Sequence`
for each segment that has text; `Translator.prepare_scores` does both for translations to be scored. Whoever runs the
sequences calls `Job.finish_one` as each ends, and the job's `result` once all have.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import NamedTuple

from service import request
from service.call_options import CallOptions
from service.caller import ANONYMOUS, Caller
from service.config import LimitsConfig
from service.job import Job, ScoringJob, StreamingJob, TranslationJob
from service.options_reader import OptionsReader
from service.pb.translation.v1 import translation_pb2 as pb
from service.refusals import FieldViolation, InvalidRequestError, NotServedError, shortened
from service.segments import Segment, split_item
from service.served_model import ServedModel
from service.tokenizer import EOS_ID

PLAIN_TEXT = "text/plain"
_MAX_KEPT_OPTIONS = 256


class CheckedCall(NamedTuple):
    """A request that can be answered."""

    model: ServedModel
    """What serves it."""
    options: CallOptions
    """How to decode it."""
    priority: request.Priority
    """Whether it goes before others or after them."""


class Translator:
    """Checks requests against the models and limits of a server, and prepares their work."""

    def __init__(
        self,
        models: Sequence[ServedModel],
        limits: LimitsConfig,
        *,
        clock: Callable[[], float],
        defaults: Mapping[str, str] = MappingProxyType({}),
    ) -> None:
        """`models` must not be empty; of two that serve one language pair the one that `defaults` names is the pair's
        default, or the first by name. `clock` gives monotonic seconds."""
        self.models = sorted(models, key=lambda model: model.name)
        self.defaults = {model.language_pair: model for model in reversed(self.models)}
        self.defaults |= {
            model.language_pair: model for model in self.models if defaults.get(model.language_pair) == model.name
        }
        self._limits = limits
        self._clock = clock
        self._by_name = {model.name: model for model in self.models}
        self._readers = {
            model.name: OptionsReader(
                model.tokenizer,
                model.default_options,
                limit=model.max_target_tokens,
                max_beam_size=model.max_beam_size,
            )
            for model in self.models
        }
        self._kept: dict[tuple[str, bytes], CallOptions] = {}

    def check(self, call: pb.TranslateTextRequest, contents: Sequence[str]) -> CheckedCall:
        """Whether a request can be answered; `contents` are its own, read once.

        Raises:
            InvalidRequestError: naming every field that is wrong.
            NotServedError: when no model serves what was asked for.
        """
        violations = self._violations(call, contents)
        if not violations and not call.HasField("decoding_options"):
            picked = self._pick(call, violations)
            return CheckedCall(picked, self._readers[picked.name].default, _priority_of(call))
        model, not_served = self._pick_or_note(call, violations)
        options, option_violations = self._read_options(model, call.decoding_options, contents)
        violations += option_violations
        if violations:
            raise InvalidRequestError(violations)
        if model is None:
            assert not_served is not None
            raise not_served
        return CheckedCall(model, options, _priority_of(call))

    def _pick_or_note(
        self, call: pb.TranslateTextRequest | pb.ScoreTextRequest, violations: list[FieldViolation]
    ) -> tuple[ServedModel | None, NotServedError | None]:
        """The model that serves a call, or why there is none: `violations` has grown by it, or it is returned."""
        try:
            return self._pick(call, violations), None
        except NotServedError as error:
            return None, error
        except InvalidRequestError:
            return None, None

    def _read_options(
        self, model: ServedModel | None, given: pb.DecodingOptions, contents: Sequence[str]
    ) -> tuple[CallOptions, list[FieldViolation]]:
        """See `OptionsReader.read`; without a model, what breaks a rule whatever the model. Options read once are kept,
        as most callers always give the same."""
        if model is None:
            reader = max(self._readers.values(), key=lambda reader: reader.limit)
            return reader.read(given, contents, reads_tokens=False)
        reader = self._readers[model.name]
        if given.target_prefixes:
            return reader.read(given, contents)
        key = (model.name, given.SerializeToString(deterministic=True))
        kept = self._kept.get(key)
        if kept is not None:
            return kept, []
        options, violations = reader.read(given, contents)
        if not violations:
            if len(self._kept) >= _MAX_KEPT_OPTIONS:
                self._kept.clear()
            self._kept[key] = options
        return options, violations

    def _violations(self, call: pb.TranslateTextRequest, contents: Sequence[str]) -> list[FieldViolation]:
        """Every rule that the request breaks whatever the model."""
        violations = self._text_violations("contents", contents)
        violations += _priority_violations(call)
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

    def _text_violations(self, name: str, texts: Sequence[str]) -> list[FieldViolation]:
        """What is wrong with the number and the lengths of texts."""
        violations = []
        limits = self._limits
        if not 1 <= len(texts) <= limits.max_contents:
            violations.append(
                FieldViolation(
                    field=name,
                    description=f"It must have between 1 and {limits.max_contents} items, but has {len(texts)}.",
                )
            )
        for i, text in enumerate(texts):
            if len(text) > limits.max_characters_per_item:
                violations.append(
                    FieldViolation(
                        field=f"{name}[{i}]",
                        description=f"It must have at most {limits.max_characters_per_item} characters, "
                        f"but has {len(text)}.",
                    )
                )
        return violations

    def _pick(
        self, call: pb.TranslateTextRequest | pb.ScoreTextRequest, violations: list[FieldViolation]
    ) -> ServedModel:
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
        return matching[0] if call.model else self.defaults[pairs[0]]

    def prepare(
        self,
        contents: Sequence[str],
        call: CheckedCall,
        *,
        deadline: float | None,
        caller: Caller = ANONYMOUS,
        on_done: Callable[[Job], None],
    ) -> TranslationJob:
        """Cuts and tokenizes the texts of a checked request; takes time with their length.

        Raises:
            InvalidRequestError: when the call alone is more than may ever wait.
        """
        started_at = self._clock()
        job = TranslationJob(model=call.model, items=self._cut(contents, call.model), on_done=on_done)
        self._fill(job, call, started_at, deadline=deadline, caller=caller, on_progress=None)
        return job

    def prepare_stream(
        self,
        contents: Sequence[str],
        call: CheckedCall,
        *,
        deadline: float | None,
        caller: Caller = ANONYMOUS,
        on_done: Callable[[Job], None],
        on_pieces: Callable[[list[pb.TextPiece]], None],
    ) -> StreamingJob:
        """As `prepare`, for a call that wants text as it becomes certain."""
        started_at = self._clock()
        items = self._cut(contents, call.model)
        job = StreamingJob(model=call.model, items=items, on_done=on_done, on_pieces=on_pieces)
        # A bulk segment may be decoded more than once: its text is told when it has ended.
        on_progress = None if call.priority is request.Priority.BULK else job.progress_one
        self._fill(job, call, started_at, deadline=deadline, caller=caller, on_progress=on_progress)
        return job

    def _cut(self, contents: Sequence[str], model: ServedModel) -> list[list[Segment]]:
        return [split_item(text, model.tokenizer.encode_source, model.max_source_tokens) for text in contents]

    def _fill(
        self,
        job: TranslationJob,
        call: CheckedCall,
        started_at: float,
        *,
        deadline: float | None,
        caller: Caller,
        on_progress: Callable[[request.Sequence, list[int]], None] | None,
    ) -> None:
        """Makes the sequences of a job."""
        options, finish_one = call.options, job.finish_one
        num_tokens = 0
        for item, segments in enumerate(job.items):
            prefix = options.prefixes[item] if options.prefixes else ()
            for segment in segments:
                if segment.core:
                    length = len(segment.source_ids)
                    num_tokens += length
                    job.sequences.append(
                        request.Sequence(
                            source_ids=segment.source_ids,
                            options=options.for_segment(length, prefix),
                            deadline=deadline,
                            priority=call.priority,
                            caller=caller.name,
                            weight=caller.weight,
                            on_finished=finish_one,
                            on_progress=on_progress,
                        )
                    )
                    prefix = ()
        job.num_unfinished = len(job.sequences)
        self._check_admissible(len(job.sequences), num_tokens, call.priority)
        job.tokenize_seconds = self._clock() - started_at

    def prepare_scores(
        self,
        call: pb.ScoreTextRequest,
        *,
        deadline: float | None,
        caller: Caller = ANONYMOUS,
        on_done: Callable[[Job], None],
    ) -> ScoringJob:
        """Checks and tokenizes a request for scores; takes time with the length of its texts.

        Raises:
            InvalidRequestError: naming every field that is wrong.
            NotServedError: when no model serves what was asked for.
        """
        started_at = self._clock()
        contents, translated = list(call.contents), list(call.translated_texts)
        violations = self._text_violations("contents", contents)
        violations += self._text_violations("translated_texts", translated) if translated else []
        violations += _priority_violations(call)
        if len(translated) != len(contents):
            violations.append(
                FieldViolation(
                    field="translated_texts",
                    description=f"It must have one item for each of the {len(contents)} `contents`, "
                    f"but has {len(translated)}.",
                )
            )
        is_sound = not violations
        model, not_served = self._pick_or_note(call, violations)
        reader = self._readers[(model or self.models[0]).name]
        options, option_violations = reader.read_for_scoring(call.decoding_options)
        pairs: list[tuple[list[int], list[int]]] = []
        if is_sound and model is not None:
            pairs = [
                (model.tokenizer.encode_source(source), [*model.tokenizer.encode_target(target), EOS_ID])
                for source, target in zip(contents, translated, strict=True)
            ]
            violations += _pair_violations(pairs, model)
        violations += option_violations
        if violations:
            raise InvalidRequestError(violations)
        if model is None:
            assert not_served is not None
            raise not_served
        priority = _priority_of(call)
        self._check_admissible(len(pairs), sum(len(source) for source, _ in pairs), priority)
        job = ScoringJob(model=model, on_done=on_done, num_unfinished=len(pairs))
        job.sequences = [
            request.Sequence(
                source_ids=tuple(source),
                options=options.for_segment(len(source), tuple(target)),
                deadline=deadline,
                priority=priority,
                caller=caller.name,
                weight=caller.weight,
                on_finished=job.finish_one,
            )
            for source, target in pairs
        ]
        job.tokenize_seconds = self._clock() - started_at
        return job

    def _check_admissible(self, num_segments: int, num_tokens: int, priority: request.Priority) -> None:
        limits = self._limits
        kept = limits.reserved_share if priority is request.Priority.BULK else 0.0
        violations = [
            FieldViolation(
                field="contents", description=f"All items together must have at most {most} {name}, but have {number}."
            )
            for name, number, most in (
                ("segments", num_segments, limits.max_waiting_segments - int(limits.max_waiting_segments * kept)),
                ("source tokens", num_tokens, limits.max_waiting_tokens - int(limits.max_waiting_tokens * kept)),
            )
            if number > most
        ]
        if violations:
            raise InvalidRequestError(violations)


def _priority_of(call: pb.TranslateTextRequest | pb.ScoreTextRequest) -> request.Priority:
    return request.Priority.BULK if call.priority == pb.PRIORITY_BULK else request.Priority.INTERACTIVE


def _priority_violations(call: pb.TranslateTextRequest | pb.ScoreTextRequest) -> list[FieldViolation]:
    """What is wrong with a priority: another number than the interface has."""
    if call.priority in pb.Priority.values():
        return []
    return [FieldViolation(field="priority", description=f"It must be one of the interface's, but is {call.priority}.")]


def _pair_violations(pairs: Sequence[tuple[list[int], list[int]]], model: ServedModel) -> list[FieldViolation]:
    """What is wrong with the tokens of sources and their translations."""
    violations = []
    for i, (source, _) in enumerate(pairs):
        if len(source) == 1:  # the end of sentence
            violations.append(FieldViolation(field=f"contents[{i}]", description="It must have text, but has none."))
    for name, most, lengths in (
        ("contents", model.max_source_tokens, [len(source) for source, _ in pairs]),
        ("translated_texts", model.max_target_tokens, [len(target) for _, target in pairs]),
    ):
        violations += [
            FieldViolation(
                field=f"{name}[{i}]",
                description=f"It must have at most {most} tokens with the end of sentence, but has {length}.",
            )
            for i, length in enumerate(lengths)
            if length > most
        ]
    return violations


def mean_inter_token_seconds(sequence: request.Sequence) -> float:
    """Mean time between the target tokens of a finished sequence; NaN when it has fewer than two."""
    num_gaps = len(sequence.target_ids) - 1
    return (sequence.finished_at - sequence.first_token_at) / num_gaps if num_gaps > 0 else math.nan
