"""Greedy rows through arrays: each takes its best token, and asks where something is to be seen to."""

from __future__ import annotations

import numpy as np
import pytest

from service.greedy_arrays import advance_greedy, next_look
from service.options import DecodingOptions
from service.search import LOOP_CHECK_INTERVAL, MIN_LOOP_CHECK_TOKENS
from service.tokenizer import EOS_ID
from tests.synthetic.lanes import enter, new_store, step_outputs


@pytest.mark.parametrize("are_all_greedy", [False, True])
def test_rows_take_their_best_tokens_and_ask_where_something_is_to_be_seen_to(are_all_greedy: bool) -> None:
    store = new_store(max_rows=8, max_target_tokens=40)
    lanes = [enter(store, DecodingOptions(), limit=limit) for limit in (40, 1, 40, 40)]
    rows = np.array([lane.rows[0] for lane in lanes])
    store.looks[rows] = [next_look(0, lane.limit) for lane in lanes]
    outputs = step_outputs([{8: -0.5}, {9: -0.25}, {EOS_ID: -0.125}, {10: -0.75}], num_candidates=1)
    outputs.candidate_log_probabilities[3] = np.nan
    store.note_step()
    assert set(advance_greedy(store, None if are_all_greedy else rows, outputs, EOS_ID).tolist()) == {1, 2, 3}
    assert [store.target_ids(row) for row in rows] == [[8], [9], [EOS_ID], []]
    assert [store.target_log_probabilities(row) for row in rows] == [[-0.5], [-0.25], [-0.125], []]
    assert store.last_ids[rows[:3]].tolist() == [8, 9, EOS_ID]
    others = step_outputs([{11: -1.0}] * 4, num_candidates=1)
    assert advance_greedy(store, rows[[0]], others, EOS_ID).size == 0  # the other rows are another's matter
    assert [store.target_ids(row) for row in rows] == [[8, 11], [9], [EOS_ID], []]


def test_where_all_numbers_are_broken_every_row_asks() -> None:
    store = new_store()
    for _ in range(2):
        enter(store, DecodingOptions())
    outputs = step_outputs([{8: -0.5}] * 2, num_candidates=1)
    outputs.candidate_log_probabilities[:] = [[np.inf], [np.nan]]
    assert advance_greedy(store, None, outputs, EOS_ID).tolist() == [0, 1]
    assert store.lengths[:2].tolist() == [0, 0]


def test_finite_numbers_whose_sum_is_not_are_sound() -> None:
    store = new_store()
    lanes = [enter(store, DecodingOptions(), limit=9) for _ in range(2)]
    store.looks[:2] = 9
    outputs = step_outputs([{8: -0.5}] * 2, num_candidates=1)
    outputs.candidate_log_probabilities[:] = -3e38
    assert advance_greedy(store, None, outputs, EOS_ID).size == 0
    assert [store.target_ids(lane.rows[0]) for lane in lanes] == [[8], [8]]


def test_rows_ask_for_a_look_at_loops_now_and_then_and_at_their_limit() -> None:
    store = new_store(max_target_tokens=100)
    (row,) = enter(store, DecodingOptions(), limit=90).rows
    store.looks[row] = next_look(0, 90)
    asked = []
    for length in range(1, 91):
        store.note_step()
        if advance_greedy(store, None, step_outputs([{8: -0.5}], num_candidates=1), EOS_ID).size:
            asked.append(length)
            store.looks[row] = next_look(length, 90)
    assert asked == [
        length for length in range(MIN_LOOP_CHECK_TOKENS, 91) if length % LOOP_CHECK_INTERVAL == 0 or length == 90
    ]
