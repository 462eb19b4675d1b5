"""The plain reference of decoding: greedy and beam search as docs/decoding.md defines them, slow and obvious.

It knows nothing of rows, batches, caches or steps in company. A search is a generator over one source: it yields the
target tokens of one hypothesis at a time and is sent what the model says comes next. `search` answers from a function;
`search_together` answers many searches at a time, so that a model can be asked in batches: what is asked, and what is
made of the answers, is the same. The repetition guard and sampling are not covered.

Axes: V vocabulary, S source positions, T target positions.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from service.options import DecodingOptions
from service.tokenizer import EOS_ID

Ids = tuple[int, ...]
Vector = npt.NDArray[np.floating]


@dataclass(frozen=True, kw_only=True)
class Prediction:
    """What the model says of the token after a hypothesis."""

    log_probabilities: Vector
    """[V] natural logarithms; -inf for what cannot occur."""
    attention: Vector
    """[S] attention of the alignment layer's heads over the source, their mean."""


@dataclass(frozen=True, kw_only=True)
class Hypothesis:
    """A target, or the beginning of one."""

    target_ids: Ids = ()
    """Its tokens, end of sentence included."""
    token_log_probabilities: tuple[float, ...] = ()
    """The model's own log-probability of each."""
    search_score: float = 0.0
    """Sum of their adjusted log-probabilities."""
    attention: tuple[Vector, ...] = ()
    """[T] of [S]: each token's attention."""
    finish_reason: str | None = None
    """"stop", "length" or, while it goes on, None."""
    normalized_score: float = math.nan
    """What it was ranked by; set when it has ended."""

    @property
    def score(self) -> float:
        """Sum of the model's own log-probabilities."""
        return math.fsum(self.token_log_probabilities)


@dataclass(frozen=True, kw_only=True)
class Found:
    """What a search came to."""

    hypotheses: tuple[Hypothesis, ...]
    """The results, best first."""
    closest_call: float
    """The smallest difference of two scores that decided anything: below a model's accuracy, another result is as
    right."""


Search = Generator[Ids, Prediction, Found]
Model = Callable[[Ids, Ids], Prediction]
"""(source ids, target ids so far) -> prediction."""


def search(model: Model, source_ids: Ids, options: DecodingOptions) -> Found:
    """The results for one source, the model asked about one hypothesis at a time."""
    running = start_search(options)
    target_ids = next(running)
    while True:
        try:
            target_ids = running.send(model(source_ids, target_ids))
        except StopIteration as stopped:
            found: Found = stopped.value
            return found


def search_together(
    model: Callable[[Sequence[tuple[Ids, Ids]]], Sequence[Prediction]], searches: Sequence[tuple[Ids, Search]]
) -> list[Found]:
    """The results of many searches (source ids, search), in their order.

    Args:
        model: answers many (source ids, target ids so far) at a time; it is asked about each pair once.
    """
    answers: dict[tuple[Ids, Ids], Prediction] = {}
    found: dict[int, Found] = {}
    questions = {index: (source, next(running)) for index, (source, running) in enumerate(searches)}
    while questions:
        unknown = [question for question in dict.fromkeys(questions.values()) if question not in answers]
        answers.update(zip(unknown, model(unknown) if unknown else [], strict=True))
        for index, question in list(questions.items()):
            source, running = searches[index]
            try:
                questions[index] = (source, running.send(answers[question]))
            except StopIteration as stopped:
                found[index] = stopped.value
                del questions[index]
    return [found[index] for index in range(len(searches))]


def start_search(options: DecodingOptions) -> Search:
    """The search that `options` ask for.

    Raises:
        ValueError: when they ask for what the reference does not have, or leave `max_target_tokens` open.
    """
    if options.sampling is not None or options.guards_repetition or options.max_target_tokens is None:
        raise ValueError("The reference needs `max_target_tokens`, and neither samples nor guards repetition.")
    if options.is_scoring:
        return _score(options)
    if options.with_alternatives:
        return _alternatives(options)
    return greedy_search(options) if options.beam_size == 1 else beam_search(options)


def greedy_search(options: DecodingOptions) -> Search:
    """Section "Greedy search"."""
    calls = _Calls()
    hypothesis = yield from _complete((yield from _forced(options)), options, calls)
    return Found(hypotheses=(_ended(hypothesis, options),), closest_call=calls.closest)


def beam_search(options: DecodingOptions) -> Search:
    """Section "Beam search", for any beam size, 1 included."""
    beam_size, calls = options.beam_size, _Calls()
    start = yield from _forced(options)
    ended = [_ended(start, options)] if start.finish_reason else []
    beam = [] if ended else [start]
    while beam:
        continuations: list[_Continuation] = []
        for place, hypothesis in enumerate(beam):
            prediction = yield hypothesis.target_ids
            values = adjusted(prediction.log_probabilities, hypothesis.target_ids, options)
            continuations += [
                _Continuation(hypothesis, place, token, float(values[token]), prediction)
                for token in _best_tokens(values, 2 * beam_size + 1)
            ]
        continuations.sort(key=lambda one: (-one.search_score, one.place, one.token))
        calls.note_cut(continuations, beam_size)
        kept = continuations[: 2 * beam_size]
        ended += [_ended(one.taken("stop"), options) for one in kept[:beam_size] if one.token == EOS_ID]
        others = [one for one in kept if one.token != EOS_ID][:beam_size]
        if others and len(others[0].hypothesis.target_ids) + 1 == options.max_target_tokens:
            calls.note([one.search_score for one in continuations[beam_size - 1 : beam_size + 1]])
            ended += [_ended(one.taken("length"), options) for one in others if one in kept[:beam_size]]
            break
        beam = [one.taken(None) for one in others]
        if options.early_stopping and len(ended) >= max(
            options.num_hypotheses, math.floor(options.patience * beam_size + 0.5)
        ):
            break
        if beam and len(ended) >= options.num_hypotheses:
            worst = _ranked(ended)[options.num_hypotheses - 1].normalized_score
            most = max(one.search_score for one in beam) / float(_most(options)) ** options.length_penalty
            calls.note([most, worst])
            if most <= worst:
                break
    results = _ranked(ended)
    calls.note([one.normalized_score for one in results[: options.num_hypotheses + 1]])
    return Found(hypotheses=tuple(results[: options.num_hypotheses]), closest_call=calls.closest)


def _alternatives(options: DecodingOptions) -> Search:
    """The n best tokens after the prefix, each completed by greedy search; in the order of those tokens."""
    calls = _Calls()
    start = yield from _forced(options)
    if start.finish_reason is not None:
        return Found(hypotheses=(_ended(start, options),), closest_call=math.inf)
    prediction = yield start.target_ids
    values = adjusted(prediction.log_probabilities, start.target_ids, options)
    tokens = [token for token in _best_tokens(values, options.num_hypotheses + 2) if token != EOS_ID]
    calls.note([float(values[token]) for token in tokens[: options.num_hypotheses + 1]])
    hypotheses = []
    for token in tokens[: options.num_hypotheses] or [EOS_ID]:
        begun = _extended(start, token, float(values[token]), prediction, options)
        hypotheses.append(_ended((yield from _complete(begun, options, calls)), options))
    return Found(hypotheses=tuple(hypotheses), closest_call=calls.closest)


def _score(options: DecodingOptions) -> Search:
    """The given target as a forced prefix."""
    hypothesis = yield from _forced(options)
    return Found(hypotheses=(_ended(hypothesis, options),), closest_call=math.inf)


def _forced(options: DecodingOptions) -> Generator[Ids, Prediction, Hypothesis]:
    """The hypothesis that a search starts from: empty, or the forced prefix with the model's own log-probabilities."""
    hypothesis = Hypothesis()
    for token in () if options.prefix_bias else options.target_prefix:
        prediction = yield hypothesis.target_ids
        own = float(prediction.log_probabilities[token])
        hypothesis = _extended(hypothesis, token, own, prediction, options)
        if hypothesis.finish_reason is not None:
            break
    return hypothesis


def _complete(
    hypothesis: Hypothesis, options: DecodingOptions, calls: _Calls
) -> Generator[Ids, Prediction, Hypothesis]:
    """The best adjusted token at each step, to the end."""
    while hypothesis.finish_reason is None:
        prediction = yield hypothesis.target_ids
        values = adjusted(prediction.log_probabilities, hypothesis.target_ids, options)
        tokens = _best_tokens(values, 2)
        calls.note([float(values[token]) for token in tokens])
        hypothesis = _extended(hypothesis, tokens[0], float(values[tokens[0]]), prediction, options)
    return hypothesis


def adjusted(log_probabilities: Vector, target_ids: Ids, options: DecodingOptions) -> npt.NDArray[np.float64]:
    """Section "Adjustments": the adjusted log-probabilities [V] of the token after `target_ids`."""
    values = log_probabilities.astype(np.float64)  # a copy
    prefix = options.target_prefix
    if options.prefix_bias and len(target_ids) < len(prefix) and target_ids == prefix[: len(target_ids)]:
        expected = prefix[len(target_ids)]
        probability = (1 - options.prefix_bias) * math.exp(values[expected])
        values += math.log(1 - options.prefix_bias)
        values[expected] = math.log(probability + options.prefix_bias)
    for token in set(target_ids):
        values[token] *= options.repetition_penalty
    end_of_sentence = values[EOS_ID]
    for token in _ends_of_repeated_ngrams(target_ids, options.no_repeat_ngram_size):
        values[token] = -math.inf
    for token in options.suppressed_tokens:
        values[token] = -math.inf
    for *others, last in options.suppressed_sequences:
        if list(target_ids[len(target_ids) - len(others) :]) == others:
            values[last] = -math.inf
    if len(target_ids) < options.min_target_tokens:
        values[EOS_ID] = -math.inf
    if np.all(values == -math.inf):
        values[EOS_ID] = end_of_sentence
    return values


def normalized_score(hypothesis: Hypothesis, options: DecodingOptions) -> float:
    """What ended hypotheses are ranked by."""
    length = len(hypothesis.target_ids)
    coverage = np.sum(np.asarray(hypothesis.attention, np.float64), axis=0)  # [T,S] -> [S]
    covered = math.fsum(math.log(min(one, 1.0)) for one in coverage.tolist() if one > 0)
    return hypothesis.search_score / length**options.length_penalty + options.coverage_penalty * covered


def _ends_of_repeated_ngrams(target_ids: Ids, size: int) -> set[int]:
    """Tokens that would end an n-gram of `size` tokens that stands in `target_ids` already; 0: none."""
    if size == 0:
        return set()
    begun = target_ids[len(target_ids) - size + 1 :] if len(target_ids) >= size else None
    ngrams = [target_ids[i : i + size] for i in range(len(target_ids) - size + 1)]
    return {ngram[-1] for ngram in ngrams if ngram[:-1] == begun}


def _best_tokens(values: npt.NDArray[np.float64], count: int) -> list[int]:
    """The `count` tokens of the largest values, equal ones by id; those at -inf never."""
    threshold = np.partition(values, -count)[-count] if count < len(values) else -math.inf
    tokens = np.flatnonzero((values >= threshold) & (values > -math.inf))
    best: list[int] = tokens[np.lexsort((tokens, -values[tokens]))][:count].tolist()
    return best


def _extended(
    hypothesis: Hypothesis, token: int, value: float, prediction: Prediction, options: DecodingOptions
) -> Hypothesis:
    """The hypothesis with one more token of adjusted log-probability `value`, ended where that ends it."""
    reason = "stop" if token == EOS_ID else "length" if len(hypothesis.target_ids) + 1 == _most(options) else None
    return _with_token(hypothesis, token, value, prediction, reason)


def _with_token(
    hypothesis: Hypothesis, token: int, value: float, prediction: Prediction, finish_reason: str | None
) -> Hypothesis:
    own = float(prediction.log_probabilities[token])
    return Hypothesis(
        target_ids=(*hypothesis.target_ids, token),
        token_log_probabilities=(*hypothesis.token_log_probabilities, own),
        search_score=hypothesis.search_score + value,
        attention=(*hypothesis.attention, prediction.attention),
        finish_reason=finish_reason,
    )


def _ended(hypothesis: Hypothesis, options: DecodingOptions) -> Hypothesis:
    """An ended hypothesis with what it is ranked by."""
    return Hypothesis(**{**vars(hypothesis), "normalized_score": normalized_score(hypothesis, options)})


def _ranked(ended: list[Hypothesis]) -> list[Hypothesis]:
    """Best first; equal ones in the order in which they ended."""
    return sorted(ended, key=lambda hypothesis: -hypothesis.normalized_score)


def _most(options: DecodingOptions) -> int:
    assert options.max_target_tokens is not None  # `start_search` saw to it
    return options.max_target_tokens


@dataclass(frozen=True, eq=False)
class _Continuation:
    """A hypothesis and a token that may follow it; equal to itself alone."""

    hypothesis: Hypothesis
    place: int
    token: int
    value: float
    prediction: Prediction

    @property
    def search_score(self) -> float:
        return self.hypothesis.search_score + self.value

    def taken(self, finish_reason: str | None) -> Hypothesis:
        """The hypothesis with the token."""
        return _with_token(self.hypothesis, self.token, self.value, self.prediction, finish_reason)


@dataclass
class _Calls:
    """Keeps the smallest difference between scores that decided anything."""

    closest: float = field(default=math.inf)

    def note(self, scores: Sequence[float]) -> None:
        """The order of `scores`, one after another, decided something."""
        for one, other in itertools.pairwise(scores):
            self.closest = min(self.closest, abs(one - other))

    def note_cut(self, continuations: list[_Continuation], beam_size: int) -> None:
        """What of ranked `continuations` goes on and what ends was decided."""
        others = [one.search_score for one in continuations if one.token != EOS_ID]
        self.note(others[beam_size - 1 : beam_size + 1])
        for rank, one in enumerate(continuations):
            beyond = beam_size if rank < beam_size else beam_size - 1
            if one.token == EOS_ID and beyond < len(continuations):
                self.note([one.search_score, continuations[beyond].search_score])
