"""The reference search on distributions that can be decoded by hand.

Every expected score is the product of the probabilities written in the table above it.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence

import numpy as np
import pytest

from service.options import DecodingOptions, Sampling
from service.tokenizer import BOS_ID, EOS_ID, PAD_ID
from tests.parity.reference_search import (
    Found,
    Hypothesis,
    Ids,
    Prediction,
    adjusted,
    beam_search,
    greedy_search,
    normalized_score,
    search,
    search_together,
    start_search,
)

A, B, C = 4, 5, 6
VOCABULARY = 7
SOURCE: Ids = (A, B, EOS_ID)
Table = dict[Ids, dict[int, float]]


def options(**values: object) -> DecodingOptions:
    """Options with the guard off and room for four tokens."""
    chosen = DecodingOptions(**{"guards_repetition": False, "max_target_tokens": 4, **values})  # type: ignore[arg-type]
    assert chosen.problems() == []
    return chosen


class TableModel:
    """Probabilities of the next token by what stands before it; what the table does not name cannot occur."""

    def __init__(self, table: Table, attention: dict[Ids, Sequence[float]] | None = None) -> None:
        self._table = table
        self._attention = attention or {}
        self.asked: list[Ids] = []

    def __call__(self, _: Ids, target_ids: Ids) -> Prediction:
        self.asked.append(target_ids)
        probabilities = np.zeros(VOCABULARY)
        for token, probability in self._table[target_ids].items():
            probabilities[token] = probability
        with np.errstate(divide="ignore"):
            log_probabilities = np.log(probabilities)
        return Prediction(
            log_probabilities=log_probabilities, attention=np.array(self._attention.get(target_ids, (1.0, 0.0, 0.0)))
        )


def random_model(source_ids: Ids, target_ids: Ids) -> Prediction:
    """A distribution drawn from source and target."""
    generator = np.random.default_rng([*source_ids, 99, *target_ids])
    probabilities = generator.dirichlet(np.ones(VOCABULARY))
    probabilities[[PAD_ID, BOS_ID]] = 0
    with np.errstate(divide="ignore"):
        return Prediction(log_probabilities=np.log(probabilities), attention=generator.dirichlet(np.ones(3)))


def results(found: Found) -> list[tuple[Ids, str | None]]:
    return [(hypothesis.target_ids, hypothesis.finish_reason) for hypothesis in found.hypotheses]


GREEDY_IS_SECOND: Table = {
    (): {A: 0.6, B: 0.4},
    (A,): {EOS_ID: 0.4, A: 0.35, B: 0.25},
    (B,): {EOS_ID: 0.9, A: 0.1},
}


def test_greedy_takes_the_best_token_and_a_beam_the_best_target() -> None:
    model = TableModel(GREEDY_IS_SECOND)
    greedy = search(model, SOURCE, options(length_penalty=0))
    assert results(greedy) == [((A, EOS_ID), "stop")]
    assert greedy.hypotheses[0].score == pytest.approx(math.log(0.6 * 0.4))
    beam = search(model, SOURCE, options(beam_size=2, num_hypotheses=2, length_penalty=0))
    assert results(beam) == [((B, EOS_ID), "stop"), ((A, EOS_ID), "stop")]
    assert [one.normalized_score for one in beam.hypotheses] == pytest.approx([math.log(0.36), math.log(0.24)])
    assert beam.hypotheses[0].token_log_probabilities == pytest.approx((math.log(0.4), math.log(0.9)))


def test_the_closest_call_is_the_smallest_difference_that_mattered() -> None:
    found = search(TableModel(GREEDY_IS_SECOND), SOURCE, options(length_penalty=0))
    assert found.closest_call == pytest.approx(math.log(0.4 / 0.35))  # closer than 0.6 to 0.4
    found = search(TableModel(GREEDY_IS_SECOND), SOURCE, options(beam_size=2, num_hypotheses=2, length_penalty=0))
    assert found.closest_call == pytest.approx(math.log(0.24 / 0.21))  # (A, end) ends, as (A, A) stands behind it


SIX_ENDS: Table = {
    (): {A: 0.5, B: 0.3, EOS_ID: 0.2},
    (A,): {EOS_ID: 0.6, B: 0.4},
    (B,): {EOS_ID: 0.5, A: 0.5},
    (A, B): {C: 0.9, EOS_ID: 0.1},
    (B, A): {EOS_ID: 0.8, C: 0.2},
}


def test_a_hypothesis_ends_only_among_the_first_k_continuations_and_the_last_step_ends_the_search() -> None:
    """Step 1: A .5, B .3 | end .2, ignored. Step 2: A end .3, AB .2 | B end .15, BA .15: one ends, AB and BA go on.
    Step 3: ABC .18, BA end .12 | BAC .03, AB end .02: ABC is cut, BAC was not among the first two."""
    model = TableModel(SIX_ENDS)
    found = search(model, SOURCE, options(beam_size=2, num_hypotheses=2, length_penalty=0, max_target_tokens=3))
    assert results(found) == [((A, EOS_ID), "stop"), ((A, B, C), "length")]
    assert [one.score for one in found.hypotheses] == pytest.approx([math.log(0.3), math.log(0.18)])
    by_length = search(model, SOURCE, options(beam_size=2, num_hypotheses=2, max_target_tokens=3))
    assert results(by_length) == [((A, B, C), "length"), ((A, EOS_ID), "stop")]
    assert [one.normalized_score for one in by_length.hypotheses] == pytest.approx(
        [math.log(0.18) / 3, math.log(0.3) / 2]  # the end of sentence is counted
    )
    more = search(model, SOURCE, options(beam_size=2, num_hypotheses=2, length_penalty=2, max_target_tokens=3))
    assert results(more) == [((A, B, C), "length"), ((B, A, EOS_ID), "stop")]
    assert [one.normalized_score for one in more.hypotheses] == pytest.approx(
        [math.log(0.18) / 3**2, math.log(0.12) / 3**2]
    )


LONGEST_IS_BEST: Table = {
    (): {A: 0.6, B: 0.4},
    (A,): {EOS_ID: 0.55, C: 0.45},
    (B,): {EOS_ID: 0.9, C: 0.1},
    (A, C): {C: 0.9, EOS_ID: 0.1},
    (B, C): {EOS_ID: 1.0},
    (A, C, C): {EOS_ID: 1.0},
}


def test_early_stopping_and_patience_say_how_many_must_end() -> None:
    """Two have ended after step 2 (B end .36, A end .33), a third after step 3, a fourth, the best, after step 4."""

    def best(**values: object) -> Ids:
        found = search(TableModel(LONGEST_IS_BEST), SOURCE, options(beam_size=2, **values))
        return found.hypotheses[0].target_ids

    assert best() == (B, EOS_ID)
    assert best(patience=1.5) == (B, EOS_ID)
    assert best(patience=2) == (A, C, C, EOS_ID)
    assert best(early_stopping=False) == (A, C, C, EOS_ID)
    assert math.log(0.6 * 0.45 * 0.9) / 4 > math.log(0.4 * 0.9) / 2  # why it is the best


def test_how_many_must_end_is_rounded_halves_up_and_no_less_than_the_results() -> None:
    def goes_on(**values: object) -> bool:
        """Whether the two that have ended after step 2 are not enough."""
        model = TableModel(LONGEST_IS_BEST)
        search(model, SOURCE, options(beam_size=2, **values))
        return (A, C) in model.asked

    assert not goes_on(patience=1.2)
    assert goes_on(patience=1.25)
    assert not goes_on(patience=0.1)
    assert len(search(TableModel(LONGEST_IS_BEST), SOURCE, options(beam_size=2, patience=0.1)).hypotheses) == 1
    both = search(TableModel(GREEDY_IS_SECOND), SOURCE, options(beam_size=2, num_hypotheses=2, patience=0.5))
    assert len(both.hypotheses) == 2


def test_the_search_ends_when_no_open_hypothesis_can_pass_the_worst_result() -> None:
    """Step 2 leaves AA .36 and BB .36 open; after step 3 AA end .36 is known and BBB .18 is open."""
    table: Table = {
        (): {A: 0.6, B: 0.4},
        (A,): {EOS_ID: 0.4, A: 0.6},
        (B,): {EOS_ID: 0.1, B: 0.9},
        (A, A): {EOS_ID: 1.0},
        (B, B): {EOS_ID: 0.49, B: 0.51},
        (B, B, B): {EOS_ID: 1.0},
    }

    def goes_on(**values: object) -> bool:
        model = TableModel(table)
        search(model, SOURCE, options(beam_size=2, early_stopping=False, **values))
        return (B, B, B) in model.asked

    assert not goes_on(length_penalty=0)
    assert goes_on(length_penalty=0, num_hypotheses=2)  # a second result is wanted
    # log .1836 over at most four tokens against log .36 over three: equal where (4/3)^α is log .1836 / log .36
    equal = math.log(math.log(0.4 * 0.9 * 0.51) / math.log(0.6 * 0.6)) / math.log(4 / 3)
    assert not goes_on(length_penalty=equal - 0.01)
    assert goes_on(length_penalty=equal + 0.01)


def test_of_several_results_the_worst_is_what_must_not_be_passed() -> None:
    """Step 2: BC .36, A end .3. Step 3: BCC .252, BC end .108: BCC cannot pass the first, but it can the second."""
    table: Table = {
        (): {A: 0.5, B: 0.5},
        (A,): {EOS_ID: 0.6, C: 0.4},
        (B,): {EOS_ID: 0.28, C: 0.72},
        (B, C): {EOS_ID: 0.3, C: 0.7},
        (A, C): {B: 0.5, C: 0.5},
        (B, C, C): {EOS_ID: 1.0},
        (A, C, B): {EOS_ID: 1.0},
    }
    values = {"beam_size": 2, "length_penalty": 0, "early_stopping": False}
    model = TableModel(table)
    assert results(search(model, SOURCE, options(**values))) == [((A, EOS_ID), "stop")]
    assert (B, C, C) not in model.asked
    found = search(model, SOURCE, options(num_hypotheses=2, **values))
    assert results(found) == [((A, EOS_ID), "stop"), ((B, C, C, EOS_ID), "stop")]


def test_a_large_beam_finds_the_best_of_all_targets() -> None:
    """Two tokens, three words, unk and the end: 1 + 4 + 16 targets, none of which falls out of a beam of 16."""
    words = (1, A, B, C)
    targets = [(EOS_ID,), *((word, EOS_ID) for word in words), *itertools.product(words, words)]
    chosen = options(beam_size=16, num_hypotheses=16, max_target_tokens=2, early_stopping=False, length_penalty=0.6)
    for source in ((A, EOS_ID), (B, EOS_ID), (C, EOS_ID)):
        scores = {}
        for target in targets:
            total = sum(random_model(source, target[:i]).log_probabilities[token] for i, token in enumerate(target))
            scores[target] = total / len(target) ** 0.6
        best = sorted(scores, key=lambda target: -scores[target])
        found = search(random_model, source, chosen).hypotheses
        # the last step keeps 16 of 20 continuations, the least likely ones are lost: look at the better half
        assert [one.target_ids for one in found[:8]] == best[:8]
        assert [one.normalized_score for one in found[:8]] == pytest.approx([scores[target] for target in best[:8]])


def test_a_beam_of_one_is_greedy_search() -> None:
    for first in range(1, 40):
        source = (first, EOS_ID)
        for chosen in (options(), options(repetition_penalty=2.0, min_target_tokens=2, no_repeat_ngram_size=1)):
            beam = search_together(_each(random_model), [(source, beam_search(chosen))])[0]
            greedy = search_together(_each(random_model), [(source, greedy_search(chosen))])[0]
            assert results(beam) == results(greedy)
            assert beam.hypotheses[0].normalized_score == greedy.hypotheses[0].normalized_score


def test_equal_ones_go_by_place_in_the_beam_and_then_by_token() -> None:
    table: Table = {
        (): {A: 0.5, B: 0.5},
        (A,): {C: 0.5, B: 0.5},
        (B,): {C: 0.5, A: 0.5},
        (A, B): {EOS_ID: 1.0},
        (A, C): {EOS_ID: 1.0},
    }
    found = search(TableModel(table), SOURCE, options(beam_size=2, num_hypotheses=2))
    assert results(found) == [((A, B, EOS_ID), "stop"), ((A, C, EOS_ID), "stop")]
    assert results(search(TableModel(table), SOURCE, options())) == [((A, B, EOS_ID), "stop")]
    assert found.closest_call == 0


class TestAdjustments:
    """`adjusted`, on 1/2 for the end of sentence, 1/4 for A and 1/8 for B and C."""

    values = np.log(np.array([1e-30, 1e-30, 1e-30, 0.5, 0.25, 0.125, 0.125]))

    def tokens_left(self, target_ids: Ids, **values: object) -> set[int]:
        after = adjusted(self.values, target_ids, options(**values))
        assert np.all((after == self.values) | (after == -math.inf))
        return {token for token in (EOS_ID, A, B, C) if after[token] > -math.inf}

    def test_nothing_asked_nothing_changed(self) -> None:
        assert np.array_equal(adjusted(self.values, (A, A, B), options()), self.values)

    def test_repetition_penalty_counts_a_token_once(self) -> None:
        after = adjusted(self.values, (A, B, A, A), options(repetition_penalty=2.0))
        expected = np.log([1e-30, 1e-30, 1e-30, 0.5, 0.25**2, 0.125**2, 0.125])
        assert after == pytest.approx(expected)

    def test_no_ngram_occurs_twice(self) -> None:
        assert self.tokens_left((A, B, A), no_repeat_ngram_size=2) == {EOS_ID, A, C}
        assert self.tokens_left((A, B, C, A, B), no_repeat_ngram_size=3) == {EOS_ID, A, B}
        assert self.tokens_left((A, B, C, A, B), no_repeat_ngram_size=4) == {EOS_ID, A, B, C}
        assert self.tokens_left((A, A), no_repeat_ngram_size=2) == {EOS_ID, B, C}
        assert self.tokens_left((A, C), no_repeat_ngram_size=1) == {EOS_ID, B}
        assert self.tokens_left((), no_repeat_ngram_size=1) == {EOS_ID, A, B, C}

    def test_suppressed(self) -> None:
        assert self.tokens_left((), suppressed_tokens=(A, EOS_ID)) == {B, C}
        sequences = ((A, B), (A, B, C), (C,), (B, A, A))
        assert self.tokens_left((A,), suppressed_sequences=sequences) == {EOS_ID, A}
        assert self.tokens_left((A, B), suppressed_sequences=sequences[:2]) == {EOS_ID, A, B}
        assert self.tokens_left((A, A), suppressed_sequences=sequences[3:]) == {EOS_ID, A, B, C}
        assert self.tokens_left((C, B, A), suppressed_sequences=sequences[3:]) == {EOS_ID, B, C}

    def test_the_end_waits_for_the_minimum(self) -> None:
        assert self.tokens_left((A,), min_target_tokens=2) == {A, B, C}
        assert self.tokens_left((A, A), min_target_tokens=2) == {EOS_ID, A, B, C}

    def test_where_nothing_is_left_the_end_is_taken(self) -> None:
        values = self.values.copy()
        values[[PAD_ID, 1, BOS_ID]] = -math.inf
        after = adjusted(values, (A,), options(suppressed_tokens=(A, B, C), min_target_tokens=3))
        assert after[EOS_ID] == values[EOS_ID]
        assert np.all(np.delete(after, EOS_ID) == -math.inf)

    def test_prefix_bias_lasts_while_the_prefix_is_followed(self) -> None:
        chosen = options(target_prefix=(A, B), prefix_bias=0.2)
        first = adjusted(self.values, (), chosen)
        assert np.exp(first[3:]) == pytest.approx([0.8 * 0.5, 0.8 * 0.25 + 0.2, 0.1, 0.1])
        second = adjusted(self.values, (A,), chosen)
        assert np.exp(second[3:]) == pytest.approx([0.8 * 0.5, 0.2, 0.8 * 0.125 + 0.2, 0.1])
        for target_ids in ((B,), (A, B), (A, C), (B, B)):
            assert np.array_equal(adjusted(self.values, target_ids, chosen), self.values)

    def test_prefix_bias_comes_before_the_repetition_penalty(self) -> None:
        after = adjusted(self.values, (A,), options(target_prefix=(A, A), prefix_bias=0.2, repetition_penalty=3.0))
        assert after[A] == pytest.approx(3 * math.log(0.8 * 0.25 + 0.2))


def test_a_forced_prefix_is_taken_as_it_comes_and_counts() -> None:
    """The prefix is unlikely and suppressed; its own log-probabilities are in the score; its bigrams do not recur."""
    table: Table = {
        (): {A: 0.01, B: 0.99},
        (A,): {A: 0.02, B: 0.98},
        (A, A): {A: 0.5, B: 0.3, C: 0.2},
        (A, A, B): {A: 0.9, EOS_ID: 0.1},
        (A, A, B, A): {A: 0.8, EOS_ID: 0.2},
        (A, A, C): {EOS_ID: 1.0},
        (A, A, B, EOS_ID): {},
    }
    values = {"target_prefix": (A, A), "no_repeat_ngram_size": 2, "max_target_tokens": 5}
    greedy = search(TableModel(table), SOURCE, options(**values))
    assert results(greedy) == [((A, A, B, A, EOS_ID), "stop")]
    assert greedy.hypotheses[0].score == pytest.approx(math.log(0.01 * 0.02 * 0.3 * 0.9 * 0.2))
    assert greedy.hypotheses[0].normalized_score == pytest.approx(greedy.hypotheses[0].score / 5)
    beam = search(TableModel(table), SOURCE, options(beam_size=2, length_penalty=0, **values))
    assert results(beam) == [((A, A, C, EOS_ID), "stop")]  # .2 against .3 × .9 × .2
    suppressed = search(TableModel(table), SOURCE, options(**{**values, "suppressed_tokens": (A,)}))
    assert results(suppressed) == [((A, A, B, EOS_ID), "stop")]
    cut = search(TableModel(table), SOURCE, options(target_prefix=(A, A), max_target_tokens=2, beam_size=2))
    assert results(cut) == [((A, A), "length")]


def test_penalties_change_the_search_and_not_what_is_reported() -> None:
    table: Table = {
        (): {A: 1.0},
        (A,): {A: 0.6, B: 0.4},
        (A, B): {EOS_ID: 1.0},
    }
    found = search(TableModel(table), SOURCE, options(repetition_penalty=2.0))
    assert results(found) == [((A, B, EOS_ID), "stop")]  # .6 squared is below .4
    assert found.hypotheses[0].score == pytest.approx(math.log(0.4))
    table = {(): {A: 1.0}, (A,): {A: 0.8, B: 0.2}, (A, A): {EOS_ID: 1.0}}
    found = search(TableModel(table), SOURCE, options(repetition_penalty=2.0))
    assert found.hypotheses[0].token_log_probabilities == pytest.approx((0.0, math.log(0.8), 0.0))
    assert found.hypotheses[0].normalized_score == pytest.approx(2 * math.log(0.8) / 3)  # twice, of three tokens


def test_coverage_rewards_looking_at_all_of_the_source() -> None:
    """The first source position has 1.5, which counts as 1, the second 0.5, the third nothing, which counts nothing."""
    hypothesis = Hypothesis(
        target_ids=(A, EOS_ID),
        search_score=-3.0,
        attention=(np.array([0.75, 0.25, 0.0]), np.array([0.75, 0.25, 0.0])),
        finish_reason="stop",
    )
    assert normalized_score(hypothesis, options(coverage_penalty=2.0)) == pytest.approx(-3.0 / 2 + 2.0 * math.log(0.5))
    table: Table = {(): {A: 0.6, B: 0.4}, (A,): {EOS_ID: 1.0}, (B,): {EOS_ID: 1.0}}
    attention = {(A,): (1.0, 0.0, 0.0), (B,): (0.1, 0.9, 0.0), (): (0.9, 0.1, 0.0)}
    model = TableModel(table, attention)
    assert results(search(model, SOURCE, options(beam_size=2))) == [((A, EOS_ID), "stop")]
    found = search(model, SOURCE, options(beam_size=2, coverage_penalty=1.0))
    assert results(found) == [((B, EOS_ID), "stop")]  # A: log .6 / 2 + log .1, B: log .4 / 2 + 0
    assert found.hypotheses[0].normalized_score == pytest.approx(math.log(0.4) / 2)


def test_alternatives_come_in_the_order_of_their_first_tokens() -> None:
    table: Table = {
        (): {C: 1.0},
        (C,): {EOS_ID: 0.5, A: 0.3, B: 0.15, C: 0.05},
        (C, A): {EOS_ID: 0.1, A: 0.9},
        (C, A, A): {EOS_ID: 0.3, A: 0.7},
        (C, B): {EOS_ID: 1.0},
    }
    chosen = options(target_prefix=(C,), with_alternatives=True, num_hypotheses=2)
    found = search(TableModel(table), SOURCE, chosen)
    assert results(found) == [((C, A, A, A), "length"), ((C, B, EOS_ID), "stop")]
    assert found.hypotheses[1].score == pytest.approx(math.log(0.15))


def test_scoring_reports_the_given_target() -> None:
    chosen = options(target_prefix=(A, B, EOS_ID), is_scoring=True)
    found = search(TableModel(SIX_ENDS), SOURCE, chosen)
    assert results(found) == [((A, B, EOS_ID), "stop")]
    assert found.hypotheses[0].score == pytest.approx(math.log(0.5 * 0.4 * 0.1))
    assert found.hypotheses[0].normalized_score == pytest.approx(math.log(0.5 * 0.4 * 0.1) / 3)


def test_what_the_reference_does_not_have_is_refused() -> None:
    for values in ({"guards_repetition": True}, {"max_target_tokens": None}, {"sampling": Sampling()}):
        with pytest.raises(ValueError, match="`max_target_tokens`"):
            start_search(options(**values))


def test_searches_together_ask_once_and_find_the_same() -> None:
    variants = [options(), options(beam_size=2), options(beam_size=4, num_hypotheses=4, repetition_penalty=1.5)]
    sources = [(first, EOS_ID) for first in range(1, 8)]
    asked: list[tuple[Ids, Ids]] = []

    def model(questions: Sequence[tuple[Ids, Ids]]) -> list[Prediction]:
        asked.extend(questions)
        return [random_model(*question) for question in questions]

    pairs = [(source, chosen) for source in sources for chosen in variants]
    together = search_together(model, [(source, start_search(chosen)) for source, chosen in pairs])
    alone = [search(random_model, source, chosen) for source, chosen in pairs]
    assert [results(one) for one in together] == [results(one) for one in alone]
    assert len(asked) == len(set(asked))


def _each(model):  # type: ignore[no-untyped-def]
    return lambda questions: [model(*question) for question in questions]
