"""Several steps of greedy search in one run of the runner: the same as one by one, and only where nobody can tell."""

from __future__ import annotations

import random
from collections.abc import Sequence as Ids

import numpy as np
import numpy.typing as npt
import pytest

from service.engine import Engine
from service.options import DecodingOptions
from service.request import FinishReason, Sequence
from service.runner import GreedyOutputs, StepInputs
from service.tokenizer import EOS_ID
from tests.synthetic.fake_runner import Babble, FakeRunner

MAX_TARGET_TOKENS = 70


class Stutter(Babble):
    """Random distributions; a source whose first token is a multiple of three says one token on and on."""

    def log_probabilities(self, source: Ids[int], cached: Ids[int]) -> npt.NDArray[np.float32]:
        """See `Language`."""
        values = super().log_probabilities(source, cached)
        values[EOS_ID] = -0.01 if len(cached) > source[0] else -20.0  # each source has an end of its own
        if source[0] % 3 == 0 and len(cached) > 5:
            values[cached[-1]] = -0.02
        return values


LANGUAGE = Stutter(24, sharpness=3.0)


class CountingRunner(FakeRunner):
    """A runner that notes how it was asked."""

    def __init__(self, greedy_steps: int, *, max_rows: int = 8) -> None:
        super().__init__(
            max_rows=max_rows, max_target_tokens=MAX_TARGET_TOKENS, language=LANGUAGE, greedy_steps=greedy_steps
        )
        self.num_greedy_runs = 0

    def decode_greedy(self, inputs: StepInputs) -> GreedyOutputs:
        """See `Runner`."""
        self.num_greedy_runs += 1
        return super().decode_greedy(inputs)


def sequences(count: int) -> list[Sequence]:
    chance = random.Random(5)
    return [
        Sequence(
            source_ids=(chance.randrange(4, 60), *chance.choices(range(4, 99), k=chance.randrange(8)), EOS_ID),
            options=DecodingOptions(max_target_tokens=chance.choice([None, None, 1, 2, 31, 32, 33, 50])),
        )
        for _ in range(count)
    ]


def seen(sequence: Sequence) -> object:
    (hypothesis,) = sequence.hypotheses
    return (
        hypothesis.target_ids,
        hypothesis.token_log_probabilities,
        hypothesis.score,
        sequence.finish_reason,
        sequence.was_guarded,
        sequence.num_steps,
    )


@pytest.mark.parametrize("greedy_steps", [2, 3, 4, 7])
def test_everything_is_as_by_single_steps(greedy_steps: int) -> None:
    """Tokens, numbers, ends, limits, loops that are found and decoded again, and steps that were taken."""
    runner = CountingRunner(greedy_steps)
    found, wanted = sequences(60), sequences(60)
    Engine.over(runner).run_to_completion(found)
    for sequence in wanted:
        Engine.over(CountingRunner(1)).run_to_completion([sequence])
    assert list(map(seen, found)) == list(map(seen, wanted))
    assert runner.violations == []
    assert runner.num_greedy_runs > 5
    assert {each.finish_reason for each in found} >= {FinishReason.STOP, FinishReason.LENGTH}
    assert 5 < sum(each.was_guarded for each in found) < 55
    assert len({each.num_steps % greedy_steps for each in found}) == greedy_steps  # ends at every place of a run


def test_reports_count_what_was_decided_and_no_more() -> None:
    runner = CountingRunner(4, max_rows=2)
    made = [Sequence(source_ids=(length, 5, EOS_ID)) for length in (5, 7, 10, 4)]
    reports = Engine.over(runner).run_to_completion(made)
    assert sum(report.num_target_tokens for report in reports) == sum(len(each.target_ids) for each in made)
    assert {report.num_steps for report in reports} == {4}
    assert runner.num_greedy_runs == len(reports)


@pytest.mark.parametrize(
    "other",
    [
        Sequence(source_ids=(40, EOS_ID), options=DecodingOptions(beam_size=2)),
        Sequence(source_ids=(40, EOS_ID), options=DecodingOptions(with_alignment=True)),
        Sequence(source_ids=(40, EOS_ID), options=DecodingOptions(repetition_penalty=1.2)),
        Sequence(source_ids=(40, EOS_ID), options=DecodingOptions(target_prefix=(7, 8))),
        Sequence(source_ids=(40, EOS_ID), on_progress=lambda _sequence, _ids: None),
    ],
    ids=["beam", "attention", "penalty", "prefix", "progress"],
)
def test_whoever_wants_more_than_best_tokens_gets_single_steps(other: Sequence) -> None:
    runner = CountingRunner(4)
    engine = Engine.over(runner)
    engine.submit([Sequence(source_ids=(50, EOS_ID)), other])
    assert engine.step().num_steps == 1
    assert runner.num_greedy_runs == 0
    while not other.is_finished:
        engine.step()
    assert runner.num_greedy_runs == 0
    assert engine.step().num_steps == 4
    assert runner.violations == []


@pytest.mark.parametrize("token_id", [7, EOS_ID])
def test_a_row_whose_numbers_break_within_a_run_fails_alone_and_where_they_do(token_id: int) -> None:
    class BreaksLater(CountingRunner):
        def decode_greedy(self, inputs: StepInputs) -> GreedyOutputs:
            outputs = super().decode_greedy(inputs)
            outputs.token_ids[0, 2], outputs.log_probabilities[0, 2] = token_id, np.nan
            return outputs

    engine = Engine.over(BreaksLater(4))
    broken, sound = Sequence(source_ids=(20, EOS_ID)), Sequence(source_ids=(22, EOS_ID))
    engine.submit([broken, sound])
    report = engine.step()
    assert report.finished == [broken]
    assert broken.finish_reason is FinishReason.FAILED
    assert "must be finite, but is nan" in str(broken.error)
    assert str(broken.error).endswith("at position 2.")
    assert len(engine.open_hypotheses(sound)[0]) == 4


def test_a_run_that_fails_fails_its_rows_and_the_next_one_is_sound() -> None:
    runner = CountingRunner(4)
    engine = Engine.over(runner)
    failed = [Sequence(source_ids=(20, EOS_ID)), Sequence(source_ids=(21, EOS_ID))]
    engine.submit(failed)
    runner.fail_decode = lambda _step: True
    report = engine.step()
    assert report.decode_error is not None
    assert (report.num_steps, report.num_target_tokens) == (0, 0)
    assert {each.finish_reason for each in failed} == {FinishReason.FAILED}
    runner.fail_decode = lambda _step: False
    again, wanted = Sequence(source_ids=(20, EOS_ID)), Sequence(source_ids=(20, EOS_ID))
    engine.run_to_completion([again])
    Engine.over(CountingRunner(1)).run_to_completion([wanted])
    assert seen(again) == seen(wanted)
