"""Many lanes at once come to what one lane at a time comes to."""

from __future__ import annotations

import copy
import random

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from service.engine import Engine
from service.lane import Lane
from service.options import DecodingOptions
from service.plain_search import advance_beams, advance_greedy
from service.request import Sequence
from service.rows import RowCopy, RowStore
from service.runner import StepOutputs
from service.search import LOOP_CHECK_INTERVAL, MIN_LOOP_CHECK_TOKENS, Search, SearchError
from service.tokenizer import EOS_ID
from tests.synthetic.fake_runner import Babble, FakeRunner
from tests.synthetic.lanes import enter, new_store, step_outputs

VOCABULARY_SIZE = 12


def random_outputs(chance: random.Random, num_rows: int, num_candidates: int) -> StepOutputs:
    """Distributions with many equal values, ends that are now and then likely, and sometimes broken numbers."""
    numbers = np.random.default_rng(chance.randrange(2**32))
    values = -np.round(numbers.exponential(size=(num_rows, VOCABULARY_SIZE)) * 4) / 4 - 0.25
    values[:, EOS_ID] -= chance.choice([0, 2, 2, 20])
    if chance.random() < 0.05:
        values[chance.randrange(num_rows)] = chance.choice([np.nan, np.inf])
    return step_outputs(values, num_candidates=num_candidates)


def one_at_a_time(search: Search, lane: Lane, outputs: StepOutputs) -> tuple[bool, list[RowCopy]] | str:
    """What the general search makes of a lane; in words, when its numbers are broken."""
    try:
        return search.advance(lane, outputs)
    except SearchError as error:
        return str(error)


def all_at_once(store: RowStore, lanes: list[Lane], outputs: StepOutputs) -> dict[Lane, object]:
    """The same for beams of one size, through arrays as far as that goes."""
    search = Search(store, eos_id=EOS_ID)
    size = lanes[0].options.beam_size
    special, advanced, copies = advance_beams(store, lanes, size, outputs, EOS_ID)
    assert sorted(map(id, [*special, *advanced])) == sorted(map(id, lanes))
    made: dict[Lane, object] = {}
    for lane in advanced:
        is_over = bool(lane.ended) and lane.is_decided(float(store.scores[lane.open].max()))
        if is_over:
            is_over = search.conclude(lane)
        made[lane] = (is_over, [] if is_over else [each for each in copies if each.source_row in lane.rows])
    for lane in special:
        made[lane] = one_at_a_time(search, lane, outputs)
    return made


def everything(store: RowStore, lane: Lane) -> list[object]:
    """What a lane holds, bit by bit."""
    return [
        lane.open,
        lane.ended,
        [
            (
                store.target_ids(row),
                store.target_log_probabilities(row),
                float(store.scores[row]),
                int(store.last_ids[row]),
            )
            for row in lane.open
        ],
        [store._cells[row, : store.lengths[row]].tolist() for row in lane.open],
    ]


@settings(max_examples=150, deadline=None, derandomize=True)
@given(seed=st.integers(0, 10**6), size=st.integers(2, 5), num_lanes=st.integers(1, 3))
def test_beams_through_arrays_equal_beams_one_by_one(seed: int, size: int, num_lanes: int) -> None:
    chance = random.Random(seed)
    store = new_store(max_rows=20, max_target_tokens=12)
    lanes = [
        enter(
            store,
            DecodingOptions(
                beam_size=size,
                num_hypotheses=chance.randint(1, size),
                early_stopping=chance.random() < 0.5,
                length_penalty=chance.choice([0.0, 1.0]),
                guards_repetition=chance.random() < 0.5,
            ),
            limit=chance.randint(2, 12),
        )
        for _ in range(num_lanes)
    ]
    twin, twins = copy.deepcopy((store, lanes))
    # More candidates than a beam of this size wants, as where another lane asks for them, or all there are.
    num_candidates = min(VOCABULARY_SIZE, 2 * size + chance.choice([0, 3]))
    for _ in range(12):
        outputs = random_outputs(chance, store.num_rows, num_candidates)
        store.note_step()
        twin.note_step()
        wanted = [one_at_a_time(Search(twin, eos_id=EOS_ID), lane, outputs) for lane in twins]
        full = [lane for lane in lanes if len(lane.open) == size]
        made = all_at_once(store, full, outputs) if full else {}
        for lane in lanes:
            if lane not in made:
                made[lane] = one_at_a_time(Search(store, eos_id=EOS_ID), lane, outputs)
        for lane, other, result in zip(list(lanes), list(twins), wanted, strict=True):
            assert made[lane] == result
            if isinstance(result, str) or result[0]:
                assert lane.ended == other.ended
                for one_store, one_lane, one_lanes in ((store, lane, lanes), (twin, other, twins)):
                    one_store.leave(one_lane)
                    one_lanes.remove(one_lane)
            else:
                assert everything(store, lane) == everything(twin, other)
        if not lanes:
            break


def test_beams_whose_numbers_are_broken_are_left_as_they_are() -> None:
    store = new_store()
    lanes = [enter(store, DecodingOptions(beam_size=2)) for _ in range(2)]
    search = Search(store, eos_id=EOS_ID)
    store.note_step()
    for lane in lanes:
        search.advance(lane, step_outputs([{8: -0.5, 9: -0.6}] * 4, num_candidates=4))
    store.note_step()
    broken = np.log(np.full((4, VOCABULARY_SIZE), 1 / VOCABULARY_SIZE))
    broken[3] = np.nan
    special, advanced, _ = advance_beams(store, lanes, 2, step_outputs(broken, num_candidates=4), EOS_ID)
    assert (special, advanced) == ([lanes[1]], [lanes[0]])
    assert [store.target_ids(row) for row in lanes[1].open] == [[8], [9]]
    assert [len(store.target_ids(row)) for row in lanes[0].open] == [2, 2]


def test_greedy_rows_take_their_best_tokens_and_ask_where_something_is_to_be_seen_to() -> None:
    store = new_store(max_rows=8, max_target_tokens=40)
    lanes = [enter(store, DecodingOptions(), limit=limit) for limit in (40, 1, 40, 40)]
    rows = np.array([lane.rows[0] for lane in lanes])
    outputs = step_outputs([{8: -0.5}, {9: -0.25}, {EOS_ID: -0.125}, {10: -0.75}], num_candidates=1)
    outputs.candidate_log_probabilities[3] = np.nan
    store.note_step()
    assert advance_greedy(store, rows, outputs, EOS_ID).tolist() == [False, True, True, True]
    assert [store.target_ids(row) for row in rows] == [[8], [9], [EOS_ID], []]
    assert [store.target_log_probabilities(row) for row in rows] == [[-0.5], [-0.25], [-0.125], []]
    assert store.last_ids[rows[:3]].tolist() == [8, 9, EOS_ID]
    others = step_outputs([{11: -1.0}] * 4, num_candidates=1)
    advance_greedy(store, rows[[0]], others, EOS_ID)  # the other rows are another's matter
    assert [store.target_ids(row) for row in rows] == [[8, 11], [9], [EOS_ID], []]


def test_greedy_rows_ask_for_a_look_at_loops_now_and_then() -> None:
    store = new_store(max_target_tokens=100)
    (row,) = enter(store, DecodingOptions(), limit=100).rows
    asked = []
    for length in range(1, 100):
        store.note_step()
        if advance_greedy(store, np.array([row]), step_outputs([{8: -0.5}], num_candidates=1), EOS_ID)[0]:
            asked.append(length)
    assert asked == [length for length in range(MIN_LOOP_CHECK_TOKENS, 100) if length % LOOP_CHECK_INTERVAL == 0]


@pytest.mark.parametrize("seed", range(4))
def test_an_engine_that_takes_one_lane_at_a_time_comes_to_the_same(seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    language = Babble(24, sharpness=3.0)

    def decoded() -> tuple[list[Sequence], int]:
        chance = random.Random(seed)
        sequences = [
            Sequence(
                source_ids=(*chance.choices(range(4, 900), k=chance.randrange(9)), EOS_ID),
                options=DecodingOptions(
                    beam_size=beam_size, num_hypotheses=chance.randint(1, beam_size), length_penalty=0.7
                ),
            )
            for beam_size in chance.choices([1, 2, 2, 3, 3, 4], k=20)
        ]
        runner = FakeRunner(max_rows=16, max_target_tokens=36, language=language)
        Engine.over(runner).run_to_completion(sequences)
        assert runner.violations == []
        return sequences, runner.copied_positions

    at_once, num_copied = decoded()
    begin = Lane._begin

    def begin_as_if_special(lane: Lane, options: DecodingOptions) -> None:
        begin(lane, options)
        lane.is_plain_greedy = lane.is_plain_beam = False

    monkeypatch.setattr(Lane, "_begin", begin_as_if_special)
    one_by_one, num_copied_then = decoded()
    assert num_copied == num_copied_then
    for one, other in zip(at_once, one_by_one, strict=True):
        assert one.was_guarded == other.was_guarded
        assert len(one.hypotheses) == len(other.hypotheses)
        for ours, theirs in zip(one.hypotheses, other.hypotheses, strict=True):
            assert ours.target_ids == theirs.target_ids
            assert ours.token_log_probabilities == theirs.token_log_probabilities
            assert (ours.score, ours.finish_reason) == (theirs.score, theirs.finish_reason)
            assert ours.normalized_score == pytest.approx(theirs.normalized_score, rel=1e-12)
