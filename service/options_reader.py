"""The options of a call, as the interface has them, to those of the engine; every problem by its field.

What a call leaves out is the model's default: what its bundle's manifest says, else what is built in. A default gives
way where a call asks for something that it contradicts:

- `beam_size` is 1 with `sampling` and with `with_alternatives`, else at least `num_hypotheses`;
- either maximum length that a call gives replaces the defaults of both, and either minimum those of both;
- a minimum never keeps a segment from ending at its maximum.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import fields, replace
from typing import Any

from service.call_options import CallOptions, Ids
from service.options import MAX_BEAM_SIZE, MAX_LISTED_SEQUENCES, DecodingOptions, Sampling
from service.pb.translation.v1 import translation_pb2 as pb
from service.refusals import FieldViolation
from service.spellings import TargetVocabulary
from service.tokenizer import UNK_ID, Tokenizer

MAX_SUPPRESSED_CHARACTERS = 32
"""Of one of `suppressed_texts`."""
MAX_RATIO = 1000.0
"""Target tokens for each source token."""

_SCALARS = tuple(
    entry.name for entry in pb.DecodingOptions.DESCRIPTOR.fields if entry.has_presence and entry.message_type is None
)
_ENGINE_SCALARS = tuple(entry.name for entry in fields(DecodingOptions) if entry.name in _SCALARS)
_SAMPLING_FIELDS = tuple(entry.name for entry in fields(Sampling))
_FIELDS = {"target_prefix": "target_prefixes", "suppressed_sequences": "suppressed_texts"}
_NAME_FIRST = re.compile(r"`([a-z_.]+)` ")
_SCORING_FIELDS = ("length_penalty", "coverage_penalty", "with_alignment")


def built_in_defaults() -> pb.DecodingOptions:
    """What holds where neither the call nor the bundle says anything: greedy search with the repetition guard."""
    options = DecodingOptions()
    defaults = pb.DecodingOptions(min_target_ratio=0.0, no_unknown=False)
    for name in _ENGINE_SCALARS:
        setattr(defaults, name, getattr(options, name))
    return defaults


def model_defaults(decoding: object, *, limit: int, max_beam_size: int) -> pb.DecodingOptions:
    """What holds for the calls to a model.

    Args:
        decoding: the manifest's `decoding`: an attribute for each option it can say, None where it does not; or None.
        limit: the most target tokens of a segment; a default above it is lowered.
        max_beam_size: the most rows that a segment can have; a default above it is lowered.

    Raises:
        ValueError: listing every option that breaks a rule.
    """
    defaults = built_in_defaults()
    for name in ("max_target_tokens", *_SCALARS):
        value = getattr(decoding, name, None)
        if value is not None:
            setattr(defaults, name, value)
    defaults.max_target_tokens = min(defaults.max_target_tokens, limit)
    defaults.beam_size = min(defaults.beam_size, max_beam_size)
    defaults.num_hypotheses = min(defaults.num_hypotheses, max_beam_size)
    reading = _Reading(pb.DecodingOptions(), defaults)
    reading.check_lengths(limit)
    reading.check(reading.engine_options(), max_beam_size=max_beam_size)
    if reading.violations:
        raise ValueError("\n".join(f"`{found.field}`: {found.description}" for found in reading.violations))
    return defaults


class OptionsReader:
    """Reads the options of calls to one model."""

    def __init__(
        self, tokenizer: Tokenizer, defaults: pb.DecodingOptions, *, limit: int, max_beam_size: int = MAX_BEAM_SIZE
    ) -> None:
        """`defaults` are `model_defaults`; `limit`: the most target tokens of a segment; `max_beam_size`: the most rows
        that one segment can have."""
        self.limit = limit
        """The most target tokens of a segment."""
        self._tokenizer = tokenizer
        self._vocabulary = TargetVocabulary(tokenizer)
        self._defaults = defaults
        self._max_beam_size = max_beam_size
        self.default, _ = self.read(pb.DecodingOptions(), ())
        """What holds for a call that gives no options."""

    def read(
        self, given: pb.DecodingOptions, contents: Sequence[str], *, reads_tokens: bool = True
    ) -> tuple[CallOptions, list[FieldViolation]]:
        """The options of a call, to be used only when nothing is wrong with them, and all that is.

        Args:
            given: what the call says.
            contents: its items.
            reads_tokens: whether texts are made tokens; not where the call does not say which model is meant.
        """
        reading = _Reading(given, self._defaults)
        reading.check_lengths(self.limit)
        prefixes: tuple[Ids, ...] = ()
        tokens: list[int] = []
        sequences: list[Ids] = []
        if given.suppressed_tokens and reads_tokens:
            tokens += self._suppressed_tokens(reading)
        if given.suppressed_texts:
            ways = self._suppressed_texts(reading, reads_tokens=reads_tokens)
            tokens += [way[0] for way in ways if len(way) == 1]
            sequences = [way for way in ways if len(way) > 1]
        if reading.value("no_unknown"):
            tokens.append(UNK_ID)
        if given.target_prefixes:
            prefixes = self._prefixes(reading, contents, reads_tokens=reads_tokens)
        base = reading.engine_options(
            suppressed_tokens=tuple(dict.fromkeys(tokens)), suppressed_sequences=tuple(sequences)
        )
        reading.check(base, max_beam_size=self._max_beam_size)
        return reading.call_options(base, limit=self.limit, prefixes=prefixes), reading.violations

    def read_for_scoring(self, given: pb.DecodingOptions) -> tuple[CallOptions, list[FieldViolation]]:
        """As `read`, where a translation is scored: only what has a meaning there may be given, and only that of the
        defaults holds."""
        defaults = built_in_defaults()
        allowed = pb.DecodingOptions()
        for name in _SCORING_FIELDS:
            setattr(defaults, name, getattr(self._defaults, name))
            if name in _named(given):
                setattr(allowed, name, getattr(given, name))
        reading = _Reading(allowed, defaults)
        for entry, _ in given.ListFields():
            if entry.name not in _SCORING_FIELDS:
                reading.refuse(entry.name, "It must be left out when a translation is scored.")
        base = reading.engine_options(is_scoring=True, guards_repetition=False)
        reading.check(base, max_beam_size=1)
        return reading.call_options(base, limit=self.limit, prefixes=()), reading.violations

    def _prefixes(self, reading: _Reading, contents: Sequence[str], *, reads_tokens: bool) -> tuple[Ids, ...]:
        given = reading.given.target_prefixes
        if len(given) != len(contents):
            reading.refuse(
                "target_prefixes",
                f"It must have one item for each of the {len(contents)} `contents`, or none, but has {len(given)}.",
            )
            return ()
        most = reading.given.max_target_tokens or self.limit
        prefixes = []
        for i, (prefix, text) in enumerate(zip(given, contents, strict=True)):
            ids = tuple(self._tokenizer.encode_target(prefix)) if reads_tokens and prefix else ()
            if len(ids) > most:
                reading.refuse(f"target_prefixes[{i}]", f"It must have at most {most} tokens, but has {len(ids)}.")
            if prefix.strip() and not text.strip():
                reading.refuse(f"target_prefixes[{i}]", f"It must be empty, because `contents[{i}]` has no text.")
            prefixes.append(ids)
        return tuple(prefixes)

    def _suppressed_tokens(self, reading: _Reading) -> list[int]:
        ids = []
        for i, piece in enumerate(reading.given.suppressed_tokens):
            known = self._vocabulary.ids.get(piece)
            if known is None:
                reading.refuse(f"suppressed_tokens[{i}]", "It must be a token of the model's target side, but is none.")
            else:
                ids.append(known)
        return ids

    def _suppressed_texts(self, reading: _Reading, *, reads_tokens: bool) -> list[Ids]:
        given = reading.given.suppressed_texts
        if len(given) > MAX_LISTED_SEQUENCES:
            reading.refuse(
                "suppressed_texts", f"It must have at most {MAX_LISTED_SEQUENCES} texts, but has {len(given)}."
            )
            return []
        ways: dict[Ids, None] = {}
        for i, text in enumerate(given):
            if not text.strip():
                reading.refuse(f"suppressed_texts[{i}]", "It must have text, but has none.")
            elif len(text) > MAX_SUPPRESSED_CHARACTERS:
                reading.refuse(
                    f"suppressed_texts[{i}]",
                    f"It must have at most {MAX_SUPPRESSED_CHARACTERS} characters, but has {len(text)}.",
                )
            elif reads_tokens:
                ways.update(dict.fromkeys(self._vocabulary.spellings(text)))
        return list(ways)


class _Reading:
    """What one call says over the defaults, and what is wrong with it."""

    def __init__(self, given: pb.DecodingOptions, defaults: pb.DecodingOptions) -> None:
        self.given = given
        self._problems: dict[str, str] = {}
        self._defaults = defaults
        self._names = _named(given)

    def refuse(self, name: str, description: str) -> None:
        """Notes that a field breaks a rule."""
        before = self._problems.get(name)
        self._problems[name] = f"{before} {description}" if before else description

    @property
    def violations(self) -> list[FieldViolation]:
        """What is wrong, one for each field, in the order in which it was found."""
        return [
            FieldViolation(field=f"decoding_options.{name}", description=description)
            for name, description in self._problems.items()
        ]

    def value(self, name: str) -> Any:
        """What the call says of an option, else the default."""
        return getattr(self.given if name in self._names else self._defaults, name)

    def engine_options(self, **others: Any) -> DecodingOptions:
        """The engine's options, not checked, without lengths and prefix; `others` are those that are no scalars."""
        given = self.given
        values = {name: self.value(name) for name in _ENGINE_SCALARS}
        is_single = given.HasField("sampling") or given.with_alternatives
        if "beam_size" not in self._names:
            values["beam_size"] = 1 if is_single else max(values["beam_size"], values["num_hypotheses"])
        values["min_target_tokens"] = 0
        values["prefix_bias"] = 0.0
        values |= {"with_alternatives": given.with_alternatives, "with_alignment": given.with_alignment}
        if given.HasField("sampling"):
            said = _named(given.sampling)
            values["sampling"] = Sampling(
                **{name: getattr(given.sampling, name) for name in _SAMPLING_FIELDS if name in said}
            )
        return DecodingOptions(**{**values, **others})

    def call_options(self, base: DecodingOptions, *, limit: int, prefixes: tuple[Ids, ...]) -> CallOptions:
        """The options of the call, lengths and prefixes included."""
        most, fewest = self._sources()
        return CallOptions(
            base=base,
            limit=limit,
            max_target_tokens=most.max_target_tokens,
            max_target_ratio=most.max_target_ratio if most.HasField("max_target_ratio") else None,
            min_target_tokens=fewest.min_target_tokens,
            min_target_ratio=fewest.min_target_ratio,
            prefixes=prefixes,
            prefix_bias=self.value("prefix_bias") if any(prefixes) else 0.0,
        )

    def _sources(self) -> tuple[pb.DecodingOptions, pb.DecodingOptions]:
        """Where the maximum and the minimum lengths come from: the call or the defaults."""
        gives_most = self._names & {"max_target_tokens", "max_target_ratio"}
        gives_fewest = self._names & {"min_target_tokens", "min_target_ratio"}
        return (self.given if gives_most else self._defaults), (self.given if gives_fewest else self._defaults)

    def check_lengths(self, limit: int) -> None:
        """Notes what is wrong with the lengths, each for itself and together."""
        most, fewest = self._sources()
        is_one_source = most is fewest  # else one is a default, which gives way
        if not 0 <= most.max_target_tokens <= limit:
            self.refuse("max_target_tokens", f"It must be between 0 and {limit}, but is {most.max_target_tokens}.")
        if not 0 <= fewest.min_target_tokens < limit:
            self.refuse(
                "min_target_tokens", f"It must be between 0 and {limit - 1}, but is {fewest.min_target_tokens}."
            )
        elif is_one_source and fewest.min_target_tokens >= most.max_target_tokens > 0:
            self.refuse(
                "min_target_tokens",
                f"It must be below `max_target_tokens` {most.max_target_tokens}, but is {fewest.min_target_tokens}.",
            )
        has_most = most.HasField("max_target_ratio")
        if has_most and not 0 < most.max_target_ratio <= MAX_RATIO:
            self.refuse(
                "max_target_ratio", f"It must be above 0 and at most {MAX_RATIO:g}, but is {most.max_target_ratio}."
            )
        if not 0 <= fewest.min_target_ratio <= MAX_RATIO:
            self.refuse(
                "min_target_ratio", f"It must be between 0 and {MAX_RATIO:g}, but is {fewest.min_target_ratio}."
            )
        elif is_one_source and has_most and fewest.min_target_ratio >= most.max_target_ratio > 0:
            self.refuse(
                "min_target_ratio",
                f"It must be below `max_target_ratio` {most.max_target_ratio}, but is {fewest.min_target_ratio}.",
            )

    def check(self, base: DecodingOptions, *, max_beam_size: int) -> None:
        """Notes what is wrong with all other options, each for itself and together."""
        has_prefix = any(self.given.target_prefixes)
        probe = replace(
            base,
            target_prefix=(UNK_ID,) if has_prefix or base.is_scoring else (),  # in the place of each segment's own
            prefix_bias=self.value("prefix_bias") if has_prefix or "prefix_bias" in self._names else 0.0,
        )
        for problem in probe.problems(max_rows=max_beam_size):
            name = _NAME_FIRST.match(problem)
            if name is None:
                raise RuntimeError(f"A problem must begin with its option's name, but does not: {problem}")
            self.refuse(_FIELDS.get(name[1], name[1]), problem.replace(name[0], "It ", 1))


def _named(message: pb.DecodingOptions | pb.Sampling) -> set[str]:
    """The fields that a message has."""
    return {entry.name for entry, _ in message.ListFields()}
