"""Many lanes at once come to what one lane at a time comes to."""

from __future__ import annotations

import random
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from service.beam_arrays import advance_lanes
from service.engine import Engine
from service.lane import Lane
from service.options import DecodingOptions
from service.request import Sequence
from service.rows import RowCopy, RowStore
from service.runner import StepOutputs
from service.search import Search, SearchError
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
    if chance.random() < 0.05:
        values[:, chance.randrange(VOCABULARY_SIZE)] = -1e9  # no token at all
    attention = numbers.random((num_rows, 4)).astype(np.float32)
    return step_outputs(values, num_candidates=num_candidates, attention=attention)


def random_adjustments(chance: random.Random) -> dict[str, Any]:
    """Adjustments that arrays know; often none."""
    if chance.random() < 0.4:
        return {}
    return {
        "repetition_penalty": chance.choice([1.0, 1.5, 2.0]),  # such that equal scores come about
        "no_repeat_ngram_size": chance.choice([0, 1, 2, 3]),
        "suppressed_tokens": tuple(chance.sample(range(VOCABULARY_SIZE), chance.choice([0, 0, 1, 3, 9]))),
        "min_target_tokens": chance.choice([0, 0, 3]),
        "coverage_penalty": chance.choice([0.0, 0.5]),
    }


def one_at_a_time(search: Search, lane: Lane) -> tuple[bool, list[RowCopy]] | str:
    """What the general search makes of a lane; in words, when its numbers are broken."""
    try:
        return search.advance(lane)
    except SearchError as error:
        return str(error)


def all_at_once(search: Search, store: RowStore, lanes: list[Lane], outputs: StepOutputs) -> dict[Lane, object]:
    """The same for lanes of one beam size, through arrays as far as that goes."""
    special, over, going, copies = advance_lanes(search, store, lanes, lanes[0].options.beam_size, outputs)
    assert sorted(map(id, [*special, *over, *going])) == sorted(map(id, lanes))
    made: dict[Lane, object] = {lane: (search.conclude(lane), []) for lane in over}
    for lane in going:
        made[lane] = (False, [each for each in copies if each[0] in lane.rows])
        search.check_growing_loop(lane)
    for lane in special:
        made[lane] = one_at_a_time(search, lane)
    return made


def ended(lane: Lane) -> list[object]:
    """What has ended, bit by bit."""
    return [[value.tobytes() if isinstance(value, np.ndarray) else value for value in each] for each in lane.ended]


def everything(store: RowStore, lane: Lane) -> list[object]:
    """What a lane holds, bit by bit."""
    return [
        lane.open,
        lane.sequence.was_guarded,
        ended(lane),
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


def scene(chance: random.Random, size: int, num_lanes: int) -> tuple[RowStore, list[Lane], Search]:
    """Lanes of one beam size in a store, the same whenever chance is."""
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
                with_alignment=chance.random() < 0.3,
                **random_adjustments(chance),
            ),
            limit=chance.randint(2, 12),
        )
        for _ in range(num_lanes)
    ]
    return store, lanes, Search(store, eos_id=EOS_ID)


@settings(max_examples=150, deadline=None, derandomize=True)
@given(seed=st.integers(0, 10**6), size=st.integers(1, 5), num_lanes=st.integers(1, 3))
def test_beams_through_arrays_equal_beams_one_by_one(seed: int, size: int, num_lanes: int) -> None:
    store, lanes, search = scene(random.Random(seed), size, num_lanes)
    twin, twins, other_search = scene(random.Random(seed), size, num_lanes)
    chance = random.Random(seed + 1)
    # More candidates than a beam of this size wants, as where another lane asks for them, or all there are.
    num_candidates = min(VOCABULARY_SIZE, 2 * size + chance.choice([0, 3]))
    for _ in range(12):
        outputs = random_outputs(chance, store.num_rows, num_candidates)
        search.begin_step(outputs)
        other_search.begin_step(outputs)
        wanted = [one_at_a_time(other_search, lane) for lane in twins]
        made = all_at_once(search, store, lanes, outputs)
        for lane, other, result in zip(list(lanes), list(twins), wanted, strict=True):
            assert made[lane] == result
            if isinstance(result, str) or result[0]:
                assert ended(lane) == ended(other)
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
    search.begin_step(step_outputs([{8: -0.5, 9: -0.6}] * 4, num_candidates=4))
    for lane in lanes:
        search.advance(lane)
    broken = np.log(np.full((4, VOCABULARY_SIZE), 1 / VOCABULARY_SIZE))
    broken[3] = np.nan
    outputs = step_outputs(broken, num_candidates=4)
    search.begin_step(outputs)
    advanced = advance_lanes(search, store, lanes, 2, outputs)
    assert (advanced.special, advanced.over, advanced.going) == ([lanes[1]], [], [lanes[0]])
    assert [store.target_ids(row) for row in lanes[1].open] == [[8], [9]]
    assert [len(store.target_ids(row)) for row in lanes[0].open] == [2, 2]


def test_what_candidates_cannot_tell_is_left_to_the_search_of_one_lane() -> None:
    store = new_store()
    lanes = [enter(store, DecodingOptions(suppressed_tokens=tokens)) for tokens in ((8, 9), (4,))]
    search = Search(store, eos_id=EOS_ID)
    outputs = step_outputs([{8: -0.5, 9: -0.6, 10: -0.7}] * 2, num_candidates=2)  # the first lane's best is not there
    search.begin_step(outputs)
    assert advance_lanes(search, store, lanes, 1, outputs).special == [lanes[0]]
    search.advance(lanes[0])
    assert [store.target_ids(lane.open[0]) for lane in lanes] == [[10], [8]]


def test_a_hypothesis_that_nothing_may_follow_is_left_to_the_search_of_one_lane() -> None:
    """The end of sentence follows it, though it is banned; another hypothesis of the lane can go on."""
    banned = tuple(range(8))
    options = DecodingOptions(beam_size=2, no_repeat_ngram_size=2, suppressed_tokens=banned)

    def prepared() -> tuple[RowStore, Lane, Search]:
        store = new_store()
        lane = enter(store, options)
        search = Search(store, eos_id=EOS_ID)
        for first, second in zip((8, 8, 9, 8, 10, 8, 11, 8), (11, 9, 9, 9, 9, 9, 9, 10), strict=True):
            search.begin_step(step_outputs([{8: -1.0}] * store.num_rows, num_candidates=VOCABULARY_SIZE))
            store.append(lane.rows[0], first, -1.0, -1.0)  # its end, 8, has been followed by each of 8 to 11
            store.append(lane.rows[1], second, -1.0, -1.5)
        lane.open = list(lane.rows)
        return store, lane, search

    outputs = step_outputs(
        [{EOS_ID: -0.1, 8: -0.2, 9: -0.3, 10: -0.4, 11: -0.5}] * 2,
        num_candidates=VOCABULARY_SIZE,
        vocabulary_size=VOCABULARY_SIZE,
    )
    store, lane, search = prepared()
    search.begin_step(outputs)
    assert advance_lanes(search, store, [lane], 2, outputs).special == [lane]
    search.advance(lane)
    assert [each.target_ids for each in lane.ended] == [[8, 8, 9, 8, 10, 8, 11, 8, EOS_ID]]


def test_most_lanes_are_advanced_in_arrays() -> None:
    """The other tests would pass if every lane were left to the search of one."""
    chance = random.Random(1)
    store = new_store(max_rows=40, max_target_tokens=40)
    lanes = [enter(store, DecodingOptions(beam_size=4, **random_adjustments(chance))) for _ in range(8)]
    search = Search(store, eos_id=EOS_ID)
    num_special = num_lanes = 0
    for seed in range(20):
        values = np.log(np.random.default_rng(seed).dirichlet(np.full(VOCABULARY_SIZE, 0.5), size=store.num_rows))
        values[:, EOS_ID] = -30
        attention = np.full((store.num_rows, 3), 1 / 3, np.float32)
        outputs = step_outputs(values, num_candidates=VOCABULARY_SIZE, attention=attention)
        search.begin_step(outputs)
        alive = [lane for lane in lanes if lane.open and lane.sequence.finish_reason is None]
        special, over, going, _ = advance_lanes(search, store, alive, 4, outputs)
        num_special += len(special)
        num_lanes += len(alive)
        for lane in special:
            if search.advance(lane)[0]:
                over.append(lane)
        lanes = [lane for lane in alive if lane not in over]
        if not lanes:
            break
        assert going
    assert num_special < num_lanes / 3


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
        lane.is_plain_greedy = lane.in_arrays = False

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
