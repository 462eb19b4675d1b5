"""The next token of a sequence, and whether it is the last."""

from __future__ import annotations

import math

import pytest

from service.request import DecodingOptions, FinishReason, Sequence
from service.search import GreedySearch, SearchError
from service.tokenizer import EOS_ID

SEARCH = GreedySearch(eos_id=EOS_ID)


def sequence_with(num_tokens: int, limit: int | None = None) -> Sequence:
    sequence = Sequence(source_ids=(5, EOS_ID), options=DecodingOptions(max_target_tokens=limit))
    sequence.target_ids = [9] * num_tokens
    return sequence


def test_takes_the_best_candidate_and_goes_on() -> None:
    advance = SEARCH.advance(sequence_with(2), [8, 4], [-0.5, -0.7], 40)
    assert (advance.token_id, advance.log_probability, advance.finish_reason) == (8, -0.5, None)


def test_the_end_of_sentence_ends_it() -> None:
    assert SEARCH.advance(sequence_with(2), [EOS_ID], [-0.5], 40).finish_reason is FinishReason.STOP


@pytest.mark.parametrize(("own", "cache", "limit"), [(None, 5, 5), (3, 5, 3), (9, 5, 5)])
def test_the_lower_limit_ends_it(own: int | None, cache: int, limit: int) -> None:
    assert SEARCH.advance(sequence_with(limit - 2, own), [8], [-0.5], cache).finish_reason is None
    assert SEARCH.advance(sequence_with(limit - 1, own), [8], [-0.5], cache).finish_reason is FinishReason.LENGTH
    assert SEARCH.advance(sequence_with(limit - 1, own), [EOS_ID], [-0.5], cache).finish_reason is FinishReason.STOP


@pytest.mark.parametrize("broken", [math.nan, math.inf, -math.inf])
def test_numbers_that_are_none_are_refused(broken: float) -> None:
    with pytest.raises(SearchError, match="must be finite"):
        SEARCH.advance(sequence_with(2), [8], [broken], 40)


def test_deciding_changes_nothing() -> None:
    sequence = sequence_with(2)
    before = repr(sequence)
    SEARCH.advance(sequence, [8], [-0.5], 3)
    assert repr(sequence) == before


def test_text_ids_leave_the_end_of_sentence_out() -> None:
    sequence = Sequence(source_ids=(5, EOS_ID))
    sequence.target_ids = [8, 9, EOS_ID]
    sequence.token_log_probabilities = [-0.5, -0.25, -0.125]
    sequence.finish(FinishReason.STOP, 1.0)
    assert sequence.text_ids == [8, 9]
    assert sequence.score == -0.875
    cut = Sequence(source_ids=(5, EOS_ID))
    cut.target_ids = [8, 9]
    cut.finish(FinishReason.LENGTH, 1.0)
    assert cut.text_ids == [8, 9]
