"""How a caller wants texts decoded, and the message that says so. What is left out is the model's default."""

from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Any

from service.client.errors import Violation, invalid_request
from service.pb.translation.v1 import translation_pb2 as pb


@dataclass(frozen=True, kw_only=True)
class Sampling:
    """Draws each token at random instead of taking the best; None: not said."""

    top_k: int | None = None
    """Only the so many most probable tokens; 0: all."""
    top_p: float | None = None
    """Only the fewest most probable tokens that have this probability together: above 0, at most 1."""
    temperature: float | None = None
    """Divides the log-probabilities: below 1 sharper, above 1 flatter; above 0, at most 100."""
    seed: int | None = None
    """From 0: the same seed, source and options give the same sample, whatever else is being translated."""


@dataclass(frozen=True, kw_only=True)
class DecodingOptions:
    """How to decode each segment; None: not said. docs/decoding.md defines each option."""

    max_target_tokens: int | None = None
    """The most target tokens, end of sentence included."""
    min_target_tokens: int | None = None
    """The fewest target tokens, end of sentence not included."""
    max_target_ratio: float | None = None
    """The most target tokens for each source token."""
    min_target_ratio: float | None = None
    """The fewest target tokens for each source token."""
    beam_size: int | None = None
    """Hypotheses kept open, 1 to 16; 1: greedy search."""
    num_hypotheses: int | None = None
    """How many results each segment has."""
    length_penalty: float | None = None
    """Exponent of the length that a score is divided by for ranking, 0 to 10."""
    coverage_penalty: float | None = None
    """Factor of the coverage term of the ranking, 0 to 10."""
    early_stopping: bool | None = None
    """Whether a beam search also ends once `patience` × `beam_size` hypotheses have ended."""
    patience: float | None = None
    """See `early_stopping`; above 0, at most 16."""
    repetition_penalty: float | None = None
    """What the log-probability of a token that is there already is multiplied by, 1 to 10."""
    no_repeat_ngram_size: int | None = None
    """No run of so many tokens occurs twice; 0: allowed."""
    suppressed_tokens: Sequence[str] = ()
    """Tokens that never occur, as `Segment.target_tokens` spells them."""
    suppressed_texts: Sequence[str] = ()
    """Texts that are kept out: as runs of whole tokens, and as words inside a longer one."""
    no_unknown: bool | None = None
    """Whether the unknown token never occurs."""
    sampling: Sampling | None = None
    """Draws each token at random."""
    target_prefixes: Sequence[str] = ()
    """What the translation of each text begins with: as many as texts, empty for none."""
    prefix_bias: float | None = None
    """0: prefixes are forced; above 0 and below 1: they are favoured with this weight."""
    with_alternatives: bool = False
    """Whether the `num_hypotheses` most probable tokens after the prefix each begin a result of their own."""
    with_alignment: bool = False
    """Whether results carry their alignment with the source."""
    guards_repetition: bool | None = None
    """Whether a result that loops is decoded again so that the loop cannot recur."""

    def to_message(self) -> pb.DecodingOptions:
        """The message that says the same.

        Raises:
            InvalidRequestError: naming every option that no message can carry.
            TypeError: when an option is of another type than it must be.
        """
        violations: list[Violation] = []
        message = pb.DecodingOptions()
        for entry in fields(self):
            value = getattr(self, entry.name)
            if isinstance(value, Sampling):
                message.sampling.SetInParent()
                for part in fields(value):
                    _set(message.sampling, part.name, getattr(value, part.name), "sampling.", violations)
            elif entry.name in ("suppressed_tokens", "suppressed_texts", "target_prefixes"):
                if isinstance(value, str):
                    raise TypeError(f"`{entry.name}` must be a list of texts, but is one text.")
                violations += text_violations(f"decoding_options.{entry.name}", value)
                getattr(message, entry.name).extend(text for text in value if is_encodable(text))
            else:
                _set(message, entry.name, value, "", violations)
        if violations:
            raise invalid_request(violations)
        return message


def _set(message: Any, name: str, value: object, path: str, violations: list[Violation]) -> None:
    """Sets a field to a value that is not None, or notes why it cannot be."""
    if value is None:
        return
    try:
        setattr(message, name, value)
    except ValueError:
        description = f"It must fit the interface's number, but is {value}."
        violations.append(Violation(field=f"decoding_options.{path}{name}", description=description))


def text_violations(name: str, texts: Sequence[str]) -> list[Violation]:
    """The texts that no message can carry."""
    return [
        Violation(field=f"{name}[{i}]", description="It must be valid Unicode, but has half a surrogate pair.")
        for i, text in enumerate(texts)
        if not is_encodable(text)
    ]


def is_encodable(text: str) -> bool:
    """Whether a text is valid Unicode."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True
