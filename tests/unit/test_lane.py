"""When a lane's search is over, which hypotheses are its results, and what they are ranked by."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import numpy as np
import pytest

from service.lane import Attention, Lane, coverage_term
from service.options import DecodingOptions, Sampling
from service.request import FinishReason, Sequence
from service.tokenizer import EOS_ID

STOP, LENGTH = FinishReason.STOP, FinishReason.LENGTH


def new_lane(*, limit: int = 10, source_ids: tuple[int, ...] = (5, 6, EOS_ID), **given: Any) -> Lane:
    options = DecodingOptions(**given)
    lane = Lane(Sequence(source_ids=source_ids, options=options), limit, eos_id=EOS_ID)
    lane.rows = list(range(options.num_rows))
    lane.start(lane.rows)
    return lane


def end(
    lane: Lane,
    score: float,
    *,
    num_tokens: int = 2,
    reason: FinishReason = STOP,
    row: int = 0,
    attention: Attention | None = None,
) -> None:
    """A hypothesis of `num_tokens`, the end of sentence not counted, ends with a search score."""
    target_ids = [*range(10, 10 + num_tokens), *([EOS_ID] if reason is STOP else [])]
    lane.end(row, target_ids, [score / len(target_ids)] * len(target_ids), score, reason, attention=attention)


def test_without_an_open_hypothesis_it_is_over() -> None:
    assert new_lane().is_decided(None)
    assert new_lane(beam_size=4).is_decided(None)


def test_with_no_result_yet_it_goes_on() -> None:
    for given in ({}, {"beam_size": 4}, {"sampling": Sampling(), "num_hypotheses": 3}):
        assert not new_lane(**given).is_decided(-1.0)


def test_samples_and_alternatives_wait_for_the_last() -> None:
    for given in ({"sampling": Sampling()}, {"with_alternatives": True}):
        lane = new_lane(num_hypotheses=3, **given)
        end(lane, -0.1)
        end(lane, -0.1)
        assert not lane.is_decided(-1000.0)


@pytest.mark.parametrize(
    ("beam_size", "patience", "num_hypotheses", "wanted"),
    [
        (4, 1.0, 1, 4),
        (4, 0.5, 1, 2),
        (4, 0.5, 3, 3),  # at least as many as are asked for
        (3, 0.5, 1, 2),  # 1.5, halves up
        (3, 1.5, 1, 5),  # 4.5
        (2, 2.0, 2, 4),
        (4, 0.1, 1, 1),  # 0.4, and at least one
    ],
)
def test_early_stopping_after_patience_times_the_beam(
    beam_size: int, patience: float, num_hypotheses: int, wanted: int
) -> None:
    lane = new_lane(beam_size=beam_size, patience=patience, num_hypotheses=num_hypotheses)
    patient = new_lane(beam_size=beam_size, patience=patience, num_hypotheses=num_hypotheses, early_stopping=False)
    for count in range(1, wanted + 1):
        end(lane, -5.0)
        end(patient, -5.0)
        assert lane.is_decided(-0.1) == (count >= wanted)
        assert not patient.is_decided(-0.1)


@pytest.mark.parametrize(("length_penalty", "most"), [(1.0, -1.5), (0.0, -0.15), (2.0, -15.0)])
def test_it_is_over_when_no_open_hypothesis_can_pass_the_worst_result(length_penalty: float, most: float) -> None:
    """A hypothesis open at score s can reach s / 10^α; the worst of the two best results is at -0.15."""
    lane = new_lane(limit=10, beam_size=4, num_hypotheses=2, early_stopping=False, length_penalty=length_penalty)
    for normalized in (-0.5, -0.15, -0.1):
        end(lane, normalized * 3**length_penalty)  # two tokens and the end of sentence
    assert [each.normalized_score for each in lane.best_ended()] == pytest.approx([-0.1, -0.15])
    assert lane.is_decided(most * 1.0001)
    assert not lane.is_decided(most * 0.9999)


def test_one_result_fewer_than_asked_for_goes_on() -> None:
    lane = new_lane(beam_size=4, num_hypotheses=3, patience=0.1)
    end(lane, -0.1)
    end(lane, -0.1)
    assert not lane.is_decided(-1000.0)
    end(lane, -0.1)
    assert lane.is_decided(-1000.0)


@pytest.mark.parametrize("length_penalty", [0.0, 0.6, 1.0, 2.0])
def test_the_length_counts_the_end_of_sentence(length_penalty: float) -> None:
    lane = new_lane(beam_size=4, num_hypotheses=4, length_penalty=length_penalty)
    end(lane, -1.0, num_tokens=3)
    end(lane, -2.0, num_tokens=4, reason=LENGTH)
    end(lane, -3.0, num_tokens=0)  # nothing but the end of sentence
    assert [each.normalized_score for each in lane.ended] == pytest.approx(
        [-1.0 / 4**length_penalty, -2.0 / 4**length_penalty, -3.0]
    )


def test_results_come_best_first_and_equal_ones_as_they_ended() -> None:
    lane = new_lane(beam_size=4, num_hypotheses=3)
    for num_tokens, score in ((5, -12.0), (1, -2.0), (3, -4.0), (2, -9.0)):
        end(lane, score, num_tokens=num_tokens)
    assert [len(each.target_ids) - 1 for each in lane.best_ended()] == [1, 3, 5]


def test_alternatives_come_in_their_order() -> None:
    lane = new_lane(with_alternatives=True, num_hypotheses=3)
    lane.numbers = {0: 0, 1: 1, 2: 2}
    for row, score in ((2, -0.1), (0, -5.0), (1, -1.0)):
        end(lane, score, num_tokens=row + 1, row=row)
    assert [len(each.target_ids) - 1 for each in lane.best_ended()] == [1, 2, 3]


def test_results_carry_everything_a_caller_sees() -> None:
    lane = new_lane(beam_size=2, num_hypotheses=2, with_alignment=True, length_penalty=0.5)
    weights = np.random.default_rng(0).random((4, 3)).astype(np.float32)
    lane.end(0, [8, 9, 10, 11], [-0.1, -0.2, -0.3, -0.4], -2.0, LENGTH, attention=weights)
    lane.end(0, [8, 9, EOS_ID], [-0.5, -0.25, -0.125], -0.9, STOP, attention=weights[:3])
    first, second = lane.results()
    assert (first.target_ids, first.token_log_probabilities) == ([8, 9, EOS_ID], [-0.5, -0.25, -0.125])
    assert (first.score, first.finish_reason) == (-0.875, STOP)
    assert first.normalized_score == pytest.approx(-0.9 / math.sqrt(3))
    assert first.attention is not None
    np.testing.assert_array_equal(first.attention, weights[:3])
    assert (second.finish_reason, second.score) == (LENGTH, pytest.approx(-1.0))
    assert second.normalized_score == -1.0
    plain = new_lane(beam_size=2, coverage_penalty=0.5)
    end(plain, -1.0, attention=weights)
    assert plain.results()[0].attention is None  # kept for the ranking, not asked for


def test_coverage() -> None:
    first, second = np.array([0.5, 0.25, 0.0], np.float32), np.array([0.25, 2.0, 0.0], np.float32)
    wanted = math.log(0.75) + 0.0  # the second position has more than 1, the third has none
    assert coverage_term(np.stack([first, second])) == pytest.approx(wanted)
    assert coverage_term(np.stack([first])) == pytest.approx(math.log(0.5) + math.log(0.25))
    lane = new_lane(beam_size=2, coverage_penalty=0.4)
    end(lane, -1.0, num_tokens=1, attention=np.stack([first, second]))
    assert lane.ended[0].normalized_score == pytest.approx(-1.0 / 2 + 0.4 * wanted)


def test_who_is_open_at_the_start() -> None:
    assert new_lane(beam_size=4).open == [0]
    assert new_lane(with_alternatives=True, num_hypotheses=3).open == [0]
    samples = new_lane(num_hypotheses=3, sampling=Sampling())
    assert (samples.open, samples.numbers, len(samples.streams)) == ([0, 1, 2], {0: 0, 1: 1, 2: 2}, 3)


def test_everything_kept_of_a_row_moves_with_it() -> None:
    lane = new_lane(num_hypotheses=3, sampling=Sampling())
    lane.renumber(1, 7)
    assert lane.open == [0, 7, 2]
    assert lane.numbers == {0: 0, 7: 1, 2: 2}
    spare = new_lane(beam_size=3)
    spare.renumber(2, 9)  # a row without an open hypothesis
    assert spare.open == [0]


def test_what_the_prefix_forces() -> None:
    forced = new_lane(target_prefix=(8, 9))
    assert [forced.forced(position) for position in range(3)] == [8, 9, None]
    favoured = new_lane(target_prefix=(8, 9), prefix_bias=0.5)
    assert favoured.forced(0) is None
    assert new_lane().forced(0) is None


@pytest.mark.parametrize(
    ("given", "is_plain_greedy", "in_arrays"),
    [
        ({}, True, True),
        ({"beam_size": 2}, False, True),
        ({"with_alignment": True}, False, True),
        ({"beam_size": 2, "coverage_penalty": 1.0}, False, True),
        ({"beam_size": 2, "target_prefix": (5,)}, False, True),
        ({"beam_size": 2, "target_prefix": (5,), "prefix_bias": 0.5}, False, False),
        ({"beam_size": 2, "suppressed_tokens": (5,), "no_repeat_ngram_size": 2}, False, True),
        ({"beam_size": 2, "suppressed_sequences": ((5, 6),)}, False, False),
        ({"sampling": Sampling()}, False, False),
        ({"with_alternatives": True}, False, False),
        ({"is_scoring": True, "target_prefix": (5,)}, False, False),
        ({"length_penalty": 2.0, "guards_repetition": False}, True, True),
    ],
)
def test_what_is_plain(given: dict[str, Any], is_plain_greedy: bool, in_arrays: bool) -> None:
    lane = new_lane(**given)
    assert (lane.is_plain_greedy, lane.in_arrays) == (is_plain_greedy, in_arrays)
    assert lane.is_plain_greedy == lane.sequence.options.is_plain_greedy
    assert lane.num_candidates >= (1 if is_plain_greedy else 2 * lane.options.num_rows)


LOOP = [8, 9] * 4


@pytest.mark.parametrize(
    ("given", "guards"),
    [
        ({}, True),
        ({"beam_size": 2}, True),
        ({"no_repeat_ngram_size": 5}, True),
        ({"guards_repetition": False}, False),
        ({"sampling": Sampling()}, False),
        ({"with_alternatives": True}, False),
        ({"is_scoring": True, "target_prefix": (8,)}, False),
        ({"source_ids": (7,) * 8}, False),
    ],
)
def test_which_loops_are_decoded_again(given: dict[str, Any], guards: bool) -> None:
    lane = new_lane(**given)
    assert (lane.loop_to_guard([5, 6, *LOOP]) is not None) == guards
    assert lane.loop_to_guard([5, 6, *LOOP[:6]]) is None


@pytest.mark.parametrize(("size", "guarded_size"), [(0, 3), (2, 2), (5, 3)])
def test_a_guarded_lane_begins_again_from_the_first_copy(size: int, guarded_size: int) -> None:
    lane = new_lane(
        beam_size=2,
        no_repeat_ngram_size=size,
        target_prefix=(5, 4),
        prefix_bias=0.5,
        length_penalty=0.3,
        with_alignment=True,
    )
    end(lane, -1.0)
    lane.num_certain = 2
    lane.guard([5, 6, 8, 9])
    lane.start(lane.rows)
    assert (lane.open, lane.ended, lane.num_certain) == ([0], [], 2)
    assert lane.options == DecodingOptions(
        beam_size=2,
        no_repeat_ngram_size=guarded_size,
        target_prefix=(5, 6, 8, 9),
        length_penalty=0.3,
        with_alignment=True,
        guards_repetition=False,
    )
    assert lane.sequence.was_guarded
    assert lane.sequence.options.prefix_bias == 0.5  # what the caller asked for stays
    assert lane.loop_to_guard([5, 6, *LOOP]) is None  # once
    lane.end(0, [5, 6, 8, 9], [-0.1] * 4, -0.4, LENGTH)
    lane.end(0, [5, 6, 8, EOS_ID], [-0.1] * 4, -0.5, STOP)
    assert {each.finish_reason for each in lane.results()} == {FinishReason.REPETITION}
    lane.options = dataclasses.replace(lane.options, num_hypotheses=2)
    assert {each.finish_reason for each in lane.results()} == {FinishReason.REPETITION, STOP}
