"""How a caller wants a segment decoded: token ids and numbers only, whatever the language or the transport.

docs/decoding.md defines what each option does; `DecodingOptions.problems` is the one place that checks them.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

MAX_BEAM_SIZE = 16
MAX_LISTED_TOKENS = 1024
MAX_LISTED_SEQUENCES = 128


@dataclass(frozen=True, kw_only=True)
class Sampling:
    """Draws each token at random instead of taking the best."""

    top_k: int = 0
    """Only the so many most probable tokens; 0: all."""
    top_p: float = 1.0
    """Only the fewest most probable tokens that have this probability together, (0, 1]; 1: all."""
    temperature: float = 1.0
    """Divides the log-probabilities before the draw, (0, 100]: below 1 sharper, above 1 flatter."""
    seed: int = 0
    """0..2^63-1. Seed, source, options and hypothesis decide a sample; company and time do not."""

    def problems(self) -> list[str]:
        """Every rule these options break, in words; empty when they are sound."""
        return [
            *_outside("sampling.top_k", self.top_k, 0, None),
            *_outside("sampling.top_p", self.top_p, 0, 1, open_below=True),
            *_outside("sampling.temperature", self.temperature, 0, 100, open_below=True),
            *_outside("sampling.seed", self.seed, 0, 2**63 - 1),
        ]


@dataclass(frozen=True, kw_only=True)
class DecodingOptions:
    """One segment's options. The defaults are greedy search without any adjustment."""

    beam_size: int = 1
    """Hypotheses kept open, 1..16; 1 is greedy search."""
    num_hypotheses: int = 1
    """How many results come back, best first: up to `beam_size` of a beam; with sampling so many independent samples,
    with `with_alternatives` so many alternatives, up to 16."""
    length_penalty: float = 1.0
    """Exponent α of the length that a sum of log-probabilities is divided by for ranking, 0..10; 0: none."""
    coverage_penalty: float = 0.0
    """Factor β of the coverage term of the ranking (Wu et al. 2016), 0..10; 0: none."""
    early_stopping: bool = True
    """Whether a beam search also ends once `patience` × `beam_size` hypotheses have ended."""
    patience: float = 1.0
    """See `early_stopping`; (0, 16]."""
    repetition_penalty: float = 1.0
    """Log-probabilities of tokens that the hypothesis has already are multiplied by it, 1..10; 1: none."""
    no_repeat_ngram_size: int = 0
    """No n-gram of this size occurs twice in a hypothesis; 0: allowed."""
    suppressed_tokens: tuple[int, ...] = ()
    """Token ids that are never taken."""
    suppressed_sequences: tuple[tuple[int, ...], ...] = ()
    """Runs of token ids that never occur: the last of each is not taken where the others stand before it."""
    min_target_tokens: int = 0
    """The end of sentence is not taken before so many tokens stand, itself not counted."""
    max_target_tokens: int | None = None
    """The most target tokens, end of sentence included; None: as many as the engine's cache holds."""
    sampling: Sampling | None = None
    """Draws tokens at random; `beam_size` must be 1."""
    target_prefix: tuple[int, ...] = ()
    """Token ids that the target begins with; no adjustment keeps them out."""
    prefix_bias: float = 0.0
    """0: the prefix is forced. In (0, 1): it is favoured, with this weight, for as long as a hypothesis follows it."""
    with_alternatives: bool = False
    """Whether the `num_hypotheses` most probable tokens after the prefix each begin a hypothesis of their own, which
    greedy search then completes; `beam_size` must be 1."""
    is_scoring: bool = False
    """Whether `target_prefix` is the whole target, end of sentence included: it is scored, nothing is searched."""
    with_alignment: bool = False
    """Whether each result carries its attention over the source."""
    guards_repetition: bool = True
    """Whether a loop in the best result is decoded again so that it cannot recur."""

    @property
    def num_rows(self) -> int:
        """Rows of the batch a sequence with these options owns."""
        return max(self.beam_size, self.num_hypotheses)

    @property
    def is_plain_greedy(self) -> bool:
        """Whether every step just takes the most probable token of one row."""
        return (
            self.num_rows == 1
            and self.sampling is None
            and not self.target_prefix
            and not self.adjusts
            and not self.with_alternatives
            and not self.with_alignment
            and self.coverage_penalty == 0
        )

    @property
    def adjusts(self) -> bool:
        """Whether log-probabilities are changed before a choice."""
        return bool(
            self.repetition_penalty != 1
            or self.no_repeat_ngram_size
            or self.suppressed_tokens
            or self.suppressed_sequences
            or self.min_target_tokens
            or self.prefix_bias
        )

    def problems(self, *, max_rows: int | None = None, vocabulary_size: int | None = None) -> list[str]:
        """Every rule these options break, in words; empty when they are sound.

        Args:
            max_rows: rows of the engine; None: not checked.
            vocabulary_size: target token ids are 0..vocabulary_size-1; None: not checked.
        """
        most_rows = MAX_BEAM_SIZE if max_rows is None else min(MAX_BEAM_SIZE, max_rows)
        is_independent = self.sampling is not None or self.with_alternatives
        most_hypotheses = most_rows if is_independent else min(self.beam_size, most_rows)
        problems = [
            *_outside("beam_size", self.beam_size, 1, most_rows),
            *_outside("num_hypotheses", self.num_hypotheses, 1, max(1, most_hypotheses)),
            *_outside("length_penalty", self.length_penalty, 0, 10),
            *_outside("coverage_penalty", self.coverage_penalty, 0, 10),
            *_outside("patience", self.patience, 0, 16, open_below=True),
            *_outside("repetition_penalty", self.repetition_penalty, 1, 10),
            *_outside("no_repeat_ngram_size", self.no_repeat_ngram_size, 0, None),
            *_outside("min_target_tokens", self.min_target_tokens, 0, None),
            *_outside("prefix_bias", self.prefix_bias, 0, 1, open_above=True),
        ]
        if self.max_target_tokens is not None:
            problems += _outside("max_target_tokens", self.max_target_tokens, 1, None)
            if self.min_target_tokens >= self.max_target_tokens >= 1:
                problems.append(
                    f"`min_target_tokens` must be below `max_target_tokens` {self.max_target_tokens}, "
                    f"but is {self.min_target_tokens}."
                )
            if len(self.target_prefix) > self.max_target_tokens >= 1:
                problems.append(
                    f"`target_prefix` must have at most `max_target_tokens` {self.max_target_tokens} tokens, "
                    f"but has {len(self.target_prefix)}."
                )
        if self.sampling is not None:
            problems += self.sampling.problems()
            if self.beam_size != 1:
                problems.append(f"`beam_size` must be 1 with `sampling`, but is {self.beam_size}.")
            if self.with_alternatives:
                problems.append("`with_alternatives` must be off with `sampling`.")
            if self.prefix_bias:
                problems.append("`prefix_bias` must be 0 with `sampling`.")
        if self.with_alternatives and self.beam_size != 1:
            problems.append(f"`beam_size` must be 1 with `with_alternatives`, but is {self.beam_size}.")
        if self.with_alternatives and self.prefix_bias:
            problems.append("`prefix_bias` must be 0 with `with_alternatives`.")
        if self.prefix_bias and not self.target_prefix:
            problems.append("`target_prefix` must be given with `prefix_bias`.")
        problems += self._list_problems(vocabulary_size)
        if self.is_scoring:
            problems += self._scoring_problems()
        return problems

    def _list_problems(self, vocabulary_size: int | None) -> list[str]:
        problems = []
        if len(self.suppressed_tokens) > MAX_LISTED_TOKENS:
            problems.append(
                f"`suppressed_tokens` must have at most {MAX_LISTED_TOKENS} tokens, "
                f"but has {len(self.suppressed_tokens)}."
            )
        if len(self.suppressed_sequences) > MAX_LISTED_SEQUENCES:
            problems.append(
                f"`suppressed_sequences` must have at most {MAX_LISTED_SEQUENCES} sequences, "
                f"but has {len(self.suppressed_sequences)}."
            )
        if any(not sequence for sequence in self.suppressed_sequences):
            problems.append("`suppressed_sequences` must have no empty sequence.")
        if vocabulary_size is not None:
            for name, ids in (
                ("suppressed_tokens", self.suppressed_tokens),
                ("suppressed_sequences", tuple(t for sequence in self.suppressed_sequences for t in sequence)),
                ("target_prefix", self.target_prefix),
            ):
                if ids and (min(ids) < 0 or max(ids) >= vocabulary_size):
                    problems.append(
                        f"`{name}` must have token ids between 0 and {vocabulary_size - 1}, "
                        f"but reaches from {min(ids)} to {max(ids)}."
                    )
        return problems

    def _scoring_problems(self) -> list[str]:
        problems = []
        if not self.target_prefix:
            problems.append("`target_prefix` must be the target to score, but is empty.")
        if self.num_rows != 1 or self.sampling is not None or self.with_alternatives or self.adjusts:
            problems.append("Nothing but lengths and alignment may be asked for when a target is scored.")
        return problems


def _outside(
    name: str,
    value: float,
    least: float,
    most: float | None,
    *,
    open_below: bool = False,
    open_above: bool = False,
) -> list[str]:
    """The problem of a number outside its bounds, or that is no number."""
    if math.isfinite(value):
        is_low = value <= least if open_below else value < least
        is_high = most is not None and (value >= most if open_above else value > most)
        if not is_low and not is_high:
            return []
    if most is None:
        return [f"`{name}` must be at least {least}, but is {value}."]
    words = "above" if open_below else "at least"
    limit = "below" if open_above else "at most"
    return [f"`{name}` must be {words} {least} and {limit} {most}, but is {value}."]
