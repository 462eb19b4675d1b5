"""How the hypotheses of one lane go on, and when they end."""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
import pytest

from service.lane import Lane
from service.options import DecodingOptions, Sampling
from service.request import FinishReason, Hypothesis, Sequence
from service.rows import RowCopy, RowStore
from service.search import LOOP_CHECK_INTERVAL, MIN_LOOP_CHECK_TOKENS, Search, SearchError, common_prefix
from service.tokenizer import EOS_ID
from tests.synthetic.lanes import enter, new_store, step_outputs


class Scene(NamedTuple):
    """One lane in a store of its own."""

    store: RowStore
    search: Search
    lane: Lane

    def step(self, *tokens: dict[int, float], attention: np.ndarray | None = None) -> tuple[bool, list[RowCopy]]:
        """One step in which each row may go on with these tokens; the last one's hold for all further rows."""
        rows = [tokens[min(row, len(tokens) - 1)] for row in range(self.store.num_rows)]
        outputs = step_outputs(rows, num_candidates=self.lane.num_candidates, attention=attention)
        self.search.begin_step(outputs)
        return self.search.advance(self.lane)

    @property
    def open(self) -> list[list[int]]:
        """The tokens of the open hypotheses, in their order."""
        return [self.store.target_ids(row) for row in self.lane.open]

    @property
    def ended(self) -> list[tuple[list[int], str]]:
        """The tokens of the ended hypotheses and why they ended, in that order."""
        return [(each.target_ids, each.finish_reason.value) for each in self.lane.ended]


def scene(limit: int | None = None, **given: object) -> Scene:
    store = new_store()
    return Scene(store, Search(store, eos_id=EOS_ID), enter(store, DecodingOptions(**given), limit=limit))  # type: ignore[arg-type]


def test_greedy_takes_the_best_token_and_goes_on() -> None:
    one = scene()
    assert one.step({8: -0.5, 4: -0.7}) == (False, [])
    assert one.step({9: -0.25}) == (False, [])
    assert one.open == [[8, 9]]
    row = one.lane.rows[0]
    assert one.store.target_log_probabilities(row) == [-0.5, -0.25]
    assert one.store.scores[row] == -0.75
    assert one.store.last_ids[row] == 9


def test_of_equal_tokens_greedy_takes_the_one_with_the_lowest_id() -> None:
    one = scene()
    one.step({9: -0.5, 8: -0.5})
    assert one.open == [[8]]


def test_the_end_of_sentence_ends_it() -> None:
    one = scene()
    one.step({8: -0.5})
    assert one.step({EOS_ID: -0.25}) == (True, [])
    (result,) = one.lane.results()
    assert result == Hypothesis(
        target_ids=[8, EOS_ID],
        token_log_probabilities=[-0.5, -0.25],
        score=-0.75,
        normalized_score=-0.375,  # two tokens
        finish_reason=FinishReason.STOP,
        attention=None,
    )


@pytest.mark.parametrize("options", [{}, {"beam_size": 2}, {"sampling": Sampling(top_k=1)}])
def test_the_limit_ends_it(options: dict[str, object]) -> None:
    one = scene(limit=3, **options)
    assert not one.step({8: -0.5})[0]
    assert not one.step({8: -0.5})[0]
    assert one.step({8: -0.1})[0]
    assert one.ended[0] == ([8, 8, 8], "length")
    stops = scene(limit=1, **options)
    assert stops.step({EOS_ID: -0.1})[0]
    assert stops.ended[0] == ([EOS_ID], "stop")


@pytest.mark.parametrize("broken", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize(
    "options",
    [{}, {"beam_size": 2}, {"repetition_penalty": 1.5}, {"sampling": Sampling()}, {"target_prefix": (8, 7)}],
)
def test_numbers_that_are_none_are_refused_and_change_nothing(broken: float, options: dict[str, object]) -> None:
    one = scene(**options)
    one.step({8: -0.5, 9: -0.6})
    before = (one.open, one.store.scores.copy(), one.store.lengths.copy(), one.ended)
    with pytest.raises(SearchError, match=r"must be finite, but is .* at position 1"):
        one.step(dict.fromkeys(range(20), broken))
    after = (one.open, one.store.scores.copy(), one.store.lengths.copy(), one.ended)
    assert repr(before) == repr(after)


def test_a_beam_keeps_the_best_continuations_of_all_hypotheses() -> None:
    one = scene(beam_size=2)
    assert one.step({8: -1.0, 9: -1.5, 10: -2.0}) == (False, [RowCopy(0, 1, 0, 1)])
    assert one.open == [[8], [9]]
    # 8 goes on with 4 (-3) and 5 (-3.5), 9 with 6 (-1.6) and 7 (-3.4): the best two are 9 6 and 8 4.
    over, copies = one.step({4: -2.0, 5: -2.5}, {6: -0.1, 7: -1.9})
    assert (over, copies) == (False, [])  # each hypothesis stays where it is: only their order changed
    assert one.open == [[9, 6], [8, 4]]
    assert one.lane.open == [1, 0]
    assert one.store.scores[one.lane.open].tolist() == pytest.approx([-1.6, -3.0])
    # Both best ones come of 9 6 in row 1: the second takes row 0 over, with all that differs.
    over, copies = one.step({4: -9.0}, {11: -0.5, 12: -0.6})
    assert (over, copies) == (False, [RowCopy(1, 0, 1, 3)])
    assert one.open == [[9, 6, 11], [9, 6, 12]]
    # Again: what both had up to there is not copied once more.
    _, copies = one.step({1: -9.0}, {13: -0.5, 14: -0.6})
    assert copies == [RowCopy(1, 0, 3, 4)]


def test_equal_continuations_are_ranked_by_hypothesis_then_token() -> None:
    one = scene(beam_size=3)
    one.step({8: -1.0, 9: -1.0, 7: -1.0})
    assert one.open == [[7], [8], [9]]
    # The scores of 7 5, 8 4 and 8 6 are equal; 7 stands first, and of 8's the lower token.
    one.step({5: -1.0, 6: -3.0}, {6: -1.0, 4: -1.0}, {10: -2.0})
    assert one.open == [[7, 5], [8, 4], [8, 6]]


def test_an_end_among_the_first_k_ends_a_hypothesis_and_others_are_passed_over() -> None:
    one = scene(beam_size=2, early_stopping=False, num_hypotheses=2)
    one.step({8: -1.0, 9: -1.5})
    # Ranked: 8 EOS (-1.1), 9 4 (-1.7), 8 5 (-2), 9 EOS (-2.1): the last is not among the first two.
    over, _ = one.step({EOS_ID: -0.1, 5: -1.0}, {4: -0.2, EOS_ID: -0.6})
    assert not over
    assert one.ended == [([8, EOS_ID], "stop")]
    assert one.open == [[9, 4], [8, 5]]


def test_at_the_limit_of_the_first_k_every_one_ends() -> None:
    one = scene(limit=2, beam_size=2, early_stopping=False)
    one.step({8: -1.0, 9: -1.5})
    over, _ = one.step({5: -0.1, 6: -9.0}, {EOS_ID: -0.2, 4: -0.5})
    assert over
    assert one.ended == [([8, 5], "length"), ([9, EOS_ID], "stop")]


def test_with_nothing_but_an_end_left_the_search_is_over() -> None:
    one = scene(beam_size=2, suppressed_tokens=tuple(i for i in range(20) if i != EOS_ID), num_hypotheses=2)
    over, _ = one.step({8: -0.1})
    assert over
    assert one.ended == [([EOS_ID], "stop")]


def test_a_forced_prefix_is_taken_by_one_hypothesis_whatever_its_probability() -> None:
    one = scene(beam_size=2, target_prefix=(4, 5), suppressed_tokens=(4,), repetition_penalty=5.0)
    assert one.step({8: -0.1, 4: -6.0}) == (False, [])
    assert one.step({8: -0.1, 5: -7.0}) == (False, [])
    assert one.open == [[4, 5]]
    assert one.store.scores[0] == -13.0
    one.step({8: -0.1, 5: -0.1, 9: -0.2})
    assert one.open == [[4, 5, 8], [4, 5, 9]]  # 5 is at -0.5 now, being there already


def test_a_prefix_that_ends_is_the_result() -> None:
    one = scene(target_prefix=(4, EOS_ID, 5))
    one.step({4: -1.0})
    assert one.step({EOS_ID: -2.0})[0]
    assert one.ended == [([4, EOS_ID], "stop")]


def test_scoring_ends_with_the_target_whether_it_is_whole_or_not() -> None:
    whole = scene(target_prefix=(4, EOS_ID), is_scoring=True)
    assert not whole.step({4: -1.0})[0]
    assert whole.step({EOS_ID: -2.0})[0]
    (result,) = whole.lane.results()
    assert (result.score, result.finish_reason) == (-3.0, FinishReason.STOP)
    part = scene(target_prefix=(4, 5), is_scoring=True)
    part.step({4: -1.0})
    assert part.step({5: -2.0})[0]
    assert part.ended == [([4, 5], "length")]


def test_alternatives_begin_with_the_best_tokens_and_come_back_in_their_order() -> None:
    one = scene(with_alternatives=True, num_hypotheses=3, target_prefix=(4,), length_penalty=0.0)
    one.step({4: -1.0})
    over, copies = one.step({9: -3.0, 8: -2.0, EOS_ID: -0.1, 7: -4.0, 6: -5.0})
    assert (over, copies) == (False, [RowCopy(0, 1, 0, 2), RowCopy(0, 2, 0, 2)])
    assert one.open == [[4, 8], [4, 9], [4, 7]]
    over, _ = one.step({10: -1.0, 11: -2.0}, {EOS_ID: -9.0, 11: -10.0}, {12: -1.0})
    assert not over
    assert one.open == [[4, 8, 10], [4, 7, 12]]
    over, _ = one.step({EOS_ID: -1.0}, {13: -1.0}, {EOS_ID: -0.1})
    assert over
    assert [each.target_ids for each in one.lane.results()] == [
        [4, 8, 10, EOS_ID],
        [4, 9, EOS_ID],
        [4, 7, 12, EOS_ID],
    ]


def test_alternatives_at_the_last_position_keep_their_order() -> None:
    one = scene(limit=1, with_alternatives=True, num_hypotheses=3)
    assert one.step({9: -3.0, 8: -2.0, 7: -2.5})[0]
    assert [each.target_ids for each in one.lane.results()] == [[8], [7], [9]]


def test_fewer_alternatives_than_asked_for_are_no_failure() -> None:
    banned = tuple(i for i in range(4, 20) if i not in {5, 6})
    one = scene(with_alternatives=True, num_hypotheses=4, suppressed_tokens=(0, 1, 2, *banned))
    one.step({5: -1.0, 6: -2.0})
    assert one.open == [[5], [6]]
    none = scene(with_alternatives=True, num_hypotheses=2, suppressed_tokens=tuple(i for i in range(20) if i != EOS_ID))
    assert none.step({5: -1.0})[0]
    assert none.ended == [([EOS_ID], "stop")]


def test_samples_draw_from_streams_of_their_own_one_number_a_token() -> None:
    tokens = {i: -math.log(8) for i in range(8, 16)}
    many = scene(num_hypotheses=4, sampling=Sampling(seed=7), target_prefix=(9,))
    few = scene(num_hypotheses=2, sampling=Sampling(seed=7), target_prefix=(9,))
    for _ in range(12):
        many.step(tokens)
        few.step(tokens)
    assert few.open == many.open[:2]  # a sample does not depend on how many there are
    assert len({tuple(each) for each in many.open}) == 4
    fresh = scene(num_hypotheses=4, sampling=Sampling(seed=7), target_prefix=(9,))
    for stream in fresh.lane.streams:
        stream.random(11)  # the forced token took none
    drawn = [float(stream.random()) for stream in fresh.lane.streams]
    assert drawn == [float(stream.random()) for stream in many.lane.streams]


def test_attention_is_kept_for_every_token_of_every_hypothesis() -> None:
    one = scene(beam_size=2, with_alignment=True, num_hypotheses=2)
    chance = np.random.default_rng(0)
    weights = chance.random((4, 16, 5)).astype(np.float32)  # [step,B,S]
    own = weights[:, :, :3]  # the lane's own source
    one.step({8: -1.0, 9: -1.5}, attention=weights[0])
    one.step({4: -2.0, 5: -2.5}, {6: -0.1, 7: -0.2}, attention=weights[1])  # both come of the second
    one.step({EOS_ID: -0.1, 10: -2.0}, {11: -0.1, 12: -0.5}, attention=weights[2])
    over, _ = one.step({EOS_ID: -0.3}, {13: -0.1, EOS_ID: -0.2}, attention=weights[3])
    assert over
    first, second = one.lane.results()
    # 9 6 11 EOS and 9 7 EOS: 9 was in row 0 when it was chosen, then in row 1, and one of its children moved to row 0.
    by_tokens = {tuple(each.target_ids): each.attention for each in (first, second)}
    one_of, other_of = by_tokens[(9, 6, 11, EOS_ID)], by_tokens[(9, 7, EOS_ID)]
    assert one_of is not None
    assert other_of is not None
    np.testing.assert_array_equal(one_of, [own[0][0], own[1][1], own[2][1], own[3][1]])
    np.testing.assert_array_equal(other_of, [own[0][0], own[1][1], own[2][0]])


def test_a_greedy_hypothesis_that_is_seen_to_loop_starts_again() -> None:
    one = scene(repetition_penalty=1.0, min_target_tokens=1)
    tokens = iter([*range(8, 16), *([16, 17] * 30)])
    taken: list[int] = []
    while not one.lane.sequence.was_guarded:
        taken.append(next(tokens))
        assert not one.step({taken[-1]: -0.1})[0]
        assert len(taken) <= MIN_LOOP_CHECK_TOKENS
    assert len(taken) % LOOP_CHECK_INTERVAL == 0
    assert one.open == [[]]
    assert one.lane.options.target_prefix == (*range(8, 16), 16, 17)
    assert one.store.scores[0] == 0.0
    for token_id in (*range(8, 16), 16, 17):
        assert not one.step({token_id: -3.0, 5: -0.1})[0]
    one.step({16: -0.1})
    one.step({17: -0.1})
    one.step({16: -0.1, 5: -1.0})  # 16 17 16 would stand twice
    assert one.open == [[*range(8, 16), 16, 17, 16, 17, 5]]


def test_a_result_that_loops_starts_again_once() -> None:
    one = scene(beam_size=2, limit=12)
    for _ in range(11):
        assert not one.step({8: -0.01, 9: -6.0})[0]
    assert not one.step({8: -0.01, 9: -6.0})[0]
    assert one.lane.sequence.was_guarded
    assert one.open == [[]]
    assert one.ended == []
    assert one.lane.options.target_prefix == (8,)
    steps = 0
    while not one.step({8: -0.01, 9: -6.0})[0]:
        steps += 1
    assert steps == 11
    assert one.lane.results()[0].finish_reason is FinishReason.REPETITION


@pytest.mark.parametrize("options", [{"guards_repetition": False}, {"sampling": Sampling(top_k=1)}])
def test_some_loops_are_left(options: dict[str, object]) -> None:
    one = scene(limit=40, **options)
    for _ in range(39):
        assert not one.step({8: -0.01})[0]
    assert one.step({8: -0.01})[0]
    assert not one.lane.sequence.was_guarded


def test_a_source_that_loops_may_be_answered_so() -> None:
    store = new_store()
    lane = enter(store, DecodingOptions(), source_ids=(*[7] * 8, EOS_ID), limit=10)
    one = Scene(store, Search(store, eos_id=EOS_ID), lane)
    for _ in range(9):
        assert not one.step({8: -0.01})[0]
    assert one.step({8: -0.01})[0]
    assert one.lane.results()[0].target_ids == [8] * 10


@pytest.mark.parametrize("prefix", [(8, 9) * 4 + (10,), (8, 9) * 17], ids=["short", "longer than the first look"])
def test_a_forced_prefix_that_loops_is_kept_whole(prefix: tuple[int, ...]) -> None:
    one = scene(limit=len(prefix) + 3, target_prefix=prefix)
    tokens = dict.fromkeys([*prefix, 11, 12, 13], -3.0)
    while not one.step(tokens)[0]:
        pass
    assert one.lane.sequence.was_guarded
    (result,) = one.lane.results()
    assert tuple(result.target_ids[: len(prefix)]) == prefix


def test_what_all_hypotheses_share_is_certain() -> None:
    one = scene(beam_size=2, early_stopping=False, num_hypotheses=2)
    one.step({8: -1.0, 9: -1.5})
    assert one.search.newly_certain(one.lane) == []
    one.step({4: -9.0}, {6: -0.1, 7: -0.2})
    assert one.open == [[9, 6], [9, 7]]
    assert one.search.newly_certain(one.lane) == [9]
    assert one.search.newly_certain(one.lane) == []
    one.step({10: -0.1, EOS_ID: -0.2}, {11: -9.0})
    assert [ids for ids, _ in one.ended] == [[one.open[0][0], one.open[0][1], EOS_ID]]
    one.step({12: -0.1, 13: -0.2}, {12: -9.0})
    assert one.search.newly_certain(one.lane) == [one.open[0][1]]  # what ended may be the result: no more than it has


def test_what_may_become_a_loop_is_not_certain() -> None:
    one = scene()
    told: list[int] = []
    for token_id in (8, 9, 10, 9, 10, 9, 11):
        one.step({token_id: -0.1})
        told += one.search.newly_certain(one.lane)
        if one.open[0][-2:] == [9, 10] and len(one.open[0]) == 5:
            assert told == [8, 9, 10]
    assert told == [8, 9, 10, 9, 10, 9, 11]


@pytest.mark.parametrize(
    ("lists", "shared"),
    [
        ([], []),
        ([[1, 2]], [1, 2]),
        ([[1, 2, 3], [1, 2, 4], [1, 2]], [1, 2]),
        ([[1, 2], []], []),
        ([[2, 1], [1, 2], [2, 2]], []),
        ([[5, 6, 7], [5, 6, 7]], [5, 6, 7]),
    ],
)
def test_common_prefix(lists: list[list[int]], shared: list[int]) -> None:
    assert common_prefix(lists) == shared


def test_text_ids_leave_the_end_of_sentence_out() -> None:
    def hypothesis(target_ids: list[int], reason: FinishReason) -> Hypothesis:
        return Hypothesis(
            target_ids=target_ids,
            token_log_probabilities=[-0.5, -0.25, -0.125][: len(target_ids)],
            score=-0.875,
            normalized_score=-0.4375,
            finish_reason=reason,
            attention=None,
        )

    sequence = Sequence(source_ids=(5, EOS_ID))
    assert (sequence.target_ids, sequence.text_ids, sequence.token_log_probabilities, sequence.score) == ([], [], [], 0)
    sequence.hypotheses = [hypothesis([8, 9, EOS_ID], FinishReason.STOP), hypothesis([7], FinishReason.LENGTH)]
    sequence.finish(FinishReason.STOP, 1.0)
    assert sequence.target_ids == [8, 9, EOS_ID]
    assert sequence.text_ids == [8, 9]
    assert sequence.token_log_probabilities == [-0.5, -0.25, -0.125]
    assert sequence.score == -0.875
    assert hypothesis([8, 9], FinishReason.LENGTH).text_ids == [8, 9]
    assert hypothesis([8, 9], FinishReason.REPETITION).text_ids == [8, 9]
