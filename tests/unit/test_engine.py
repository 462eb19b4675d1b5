"""One step after another, without a model, a thread or a real clock."""

from __future__ import annotations

import itertools
from collections.abc import Sequence as Row

import pytest

from service.engine import Engine, StepReport
from service.request import DecodingOptions, FinishReason, InvalidSequenceError, Sequence
from service.scheduler import QueueFullError, Scheduler, SchedulerLimits
from service.search import Advance, GreedySearch
from service.tokenizer import EOS_ID
from tests.synthetic.fake_runner import FakeRunner, RunnerBrokeError, always, expected, never


class Ticks:
    """A clock that a test sets, and that moves a little at each look."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        self.now += 0.001
        return self.now


def make(*body: int, limit: int | None = None, deadline: float | None = None) -> Sequence:
    return Sequence(source_ids=(*body, EOS_ID), options=DecodingOptions(max_target_tokens=limit), deadline=deadline)


def check(sequence: Sequence, runner: FakeRunner) -> None:
    """A decoded sequence has exactly the tokens and scores it has alone."""
    limit = min(sequence.options.max_target_tokens or runner.max_target_tokens, runner.max_target_tokens)
    tokens, scores = expected(sequence.source_ids, limit)
    assert sequence.target_ids == tokens
    assert sequence.token_log_probabilities == scores
    assert sequence.finish_reason is (FinishReason.STOP if tokens[-1] == EOS_ID else FinishReason.LENGTH)


def steps(engine: Engine, count: int) -> list[StepReport]:
    return [engine.step() for _ in range(count)]


def test_decodes_what_it_is_given_in_any_mix() -> None:
    runner = FakeRunner()
    engine = Engine.greedy(runner, clock=Ticks())
    sequences = [make(*range(10, 10 + length)) for length in (3, 0, 9, 1, 5, 12, 2)]
    reports = engine.run_to_completion(sequences)
    for sequence in sequences:
        check(sequence, runner)
    assert runner.violations == []
    assert sorted(s.arrival for report in reports for s in report.finished) == list(range(7))
    assert sum(report.num_target_tokens for report in reports) == sum(len(s.target_ids) for s in sequences)
    assert sum(report.num_source_tokens for report in reports) == sum(s.num_source_tokens for s in sequences)
    assert max(report.num_rows for report in reports) == 4
    assert engine.is_idle


def test_joins_while_others_are_in_the_middle() -> None:
    runner = FakeRunner()
    engine = Engine.greedy(runner)
    sequences = [make(*range(10 * i, 10 * i + 8)) for i in range(1, 5)]
    for sequence in sequences:
        engine.submit([sequence])
        engine.step()
    assert [len(sequence.target_ids) for sequence in sequences] == [4, 3, 2, 1]
    engine.run_to_completion([])
    assert runner.rows_per_step[:4] == [1, 2, 3, 4]
    for sequence in sequences:
        check(sequence, runner)


def test_runs_beyond_the_queue_limits_by_feeding_the_queue() -> None:
    runner = FakeRunner()
    engine = Engine.greedy(runner, max_waiting_sequences=1, max_waiting_tokens=1)
    sequences = [make(*range(20, 20 + i % 9)) for i in range(30)]
    engine.run_to_completion(sequences)
    for sequence in sequences:
        check(sequence, runner)


def test_the_cache_bounds_the_target() -> None:
    runner = FakeRunner(max_target_tokens=6)
    long, own = make(*range(10, 20)), make(*range(20, 30), limit=4)
    Engine.greedy(runner).run_to_completion([long, own])
    assert (len(long.target_ids), len(own.target_ids)) == (6, 4)
    for sequence in (long, own):
        check(sequence, runner)
        assert sequence.finish_reason is FinishReason.LENGTH
    assert runner.violations == []


def test_admission_is_all_or_nothing() -> None:
    engine = Engine.greedy(FakeRunner(), max_waiting_sequences=2)
    with pytest.raises(QueueFullError):
        engine.submit([make(1), make(1), make(1)])
    with pytest.raises(InvalidSequenceError):
        engine.submit([make(1), Sequence(source_ids=())])
    assert engine.is_idle
    with pytest.raises(InvalidSequenceError):
        engine.run_to_completion([make(1), Sequence(source_ids=())])
    assert engine.is_idle


def test_a_cancelled_sequence_leaves_by_the_next_step() -> None:
    runner = FakeRunner()
    engine = Engine.greedy(runner)
    first, second, third = (make(*range(10 * i, 10 * i + 6)) for i in range(1, 4))
    engine.submit([first, second, third])
    steps(engine, 2)
    engine.cancel([first])
    report = engine.step()
    assert report.finished == [first]
    assert first.finish_reason is FinishReason.CANCELLED
    assert len(first.target_ids) == 2
    assert (report.num_rows, report.num_dropped, report.num_dropped_steps) == (2, 1, 2)
    engine.run_to_completion([])
    check(second, runner)
    check(third, runner)
    assert runner.violations == []
    engine.cancel([first, second])  # too late: nothing changes
    assert engine.step().finished == []
    assert second.finish_reason is FinishReason.STOP


def test_an_expired_sequence_leaves_by_the_next_step() -> None:
    clock = Ticks()
    runner = FakeRunner(max_rows=2)
    engine = Engine.greedy(runner, clock=clock)
    running, other = make(1, 2, 4, deadline=10.0), make(4, 5, 6)
    waiting = make(7, 8, deadline=10.0)
    engine.submit([running, other, waiting])
    engine.step()
    clock.now = 10.0
    report = engine.step()
    assert report.finished == [running, waiting]
    assert {running.finish_reason, waiting.finish_reason} == {FinishReason.EXPIRED}
    assert report.num_rows == 1
    engine.run_to_completion([])
    check(other, runner)


def test_a_failed_encoder_run_fails_its_newcomers_alone() -> None:
    runner = FakeRunner()
    engine = Engine.greedy(runner)
    running = make(*range(10, 16))
    engine.submit([running])
    engine.step()
    runner.fail_encode = always
    newcomers = [make(1), make(2)]
    engine.submit(newcomers)
    report = engine.step()
    assert report.finished == newcomers
    assert all(isinstance(sequence.error, RunnerBrokeError) for sequence in newcomers)
    assert isinstance(report.encode_error, RunnerBrokeError)
    assert (report.num_failed, report.num_admitted, report.num_rows) == (2, 0, 1)
    runner.fail_encode = never
    later = make(3, 4)
    engine.run_to_completion([later])
    check(running, runner)
    check(later, runner)
    assert runner.violations == []


def test_a_failed_placement_fails_its_newcomers_alone() -> None:
    runner = FakeRunner()
    engine = Engine.greedy(runner)
    running = make(*range(10, 16))
    engine.submit([running])
    engine.step()
    runner.fail_place = lambda row: row == 2
    newcomers = [make(1), make(2)]
    engine.submit(newcomers)
    assert engine.step().finished == newcomers
    runner.fail_place = never
    later = make(3, 4)
    engine.run_to_completion([later])
    check(running, runner)
    check(later, runner)
    assert runner.violations == []


def test_a_failed_step_fails_its_batch_and_the_next_succeeds() -> None:
    runner = FakeRunner(max_rows=2)
    engine = Engine.greedy(runner)
    batch, waiting = [make(1, 2), make(4, 5)], make(6, 7)
    engine.submit([*batch, waiting])
    runner.fail_decode = lambda step: step == 1
    engine.step()
    report = engine.step()
    assert report.finished == batch
    assert report.num_failed == 2
    assert isinstance(report.decode_error, RunnerBrokeError)
    assert all(sequence.finish_reason is FinishReason.FAILED for sequence in batch)
    assert all(len(sequence.target_ids) == 1 for sequence in batch)
    engine.run_to_completion([])
    check(waiting, runner)
    assert runner.violations == []


@pytest.mark.parametrize("leaves_by", ["end", "cancel"])
def test_a_failed_move_fails_every_row_and_the_next_batch_succeeds(leaves_by: str) -> None:
    runner = FakeRunner()
    engine = Engine.greedy(runner)
    short, long, longer = make(1), make(*range(10, 20)), make(*range(20, 30))
    engine.submit([short, long, longer])
    runner.fail_move = always
    engine.step()
    if leaves_by == "cancel":
        engine.cancel([short])
    report = engine.step()
    assert set(report.finished) == {short, long, longer}
    assert short.finish_reason is (FinishReason.STOP if leaves_by == "end" else FinishReason.CANCELLED)
    assert {long.finish_reason, longer.finish_reason} == {FinishReason.FAILED}
    assert isinstance(report.decode_error, RunnerBrokeError)
    runner.fail_move = never
    later = make(3, 4)
    engine.run_to_completion([later])
    check(later, runner)
    assert runner.violations == []


def test_a_row_whose_numbers_are_broken_fails_alone() -> None:
    runner = FakeRunner()
    runner.is_nan = lambda source: source[0] == 66
    engine = Engine.greedy(runner)
    broken, sound = make(66, 1), make(5, 6, 7)
    reports = engine.run_to_completion([broken, sound])
    assert broken.finish_reason is FinishReason.FAILED
    assert "must be finite" in str(broken.error)
    assert broken.target_ids == []
    check(sound, runner)
    assert [report.decode_error for report in reports] == [None] * len(reports)


class BrokenSearch(GreedySearch):
    """Fails for one sequence at its second token."""

    def advance(
        self, sequence: Sequence, token_ids: Row[int], log_probabilities: Row[float], max_target_tokens: int
    ) -> Advance:
        if sequence.source_ids[0] == 66 and sequence.target_ids:
            raise ZeroDivisionError
        return super().advance(sequence, token_ids, log_probabilities, max_target_tokens)


def test_a_failed_search_fails_its_sequence_alone() -> None:
    runner = FakeRunner()
    limits = SchedulerLimits(max_rows=4, max_source_tokens=32, source_vocabulary_size=1000)
    engine = Engine(runner, Scheduler(limits), BrokenSearch(eos_id=EOS_ID))
    broken, sound = make(66, 1), make(5, 6, 7)
    engine.run_to_completion([broken, sound])
    assert isinstance(broken.error, ZeroDivisionError)
    assert len(broken.target_ids) == 1
    check(sound, runner)
    assert runner.violations == []


def test_an_engine_larger_than_its_runner_is_refused() -> None:
    limits = SchedulerLimits(max_rows=5, max_source_tokens=33, source_vocabulary_size=1001)
    with pytest.raises(ValueError, match=r"`max_rows` .* 4, .* `max_source_tokens` .* `source_vocabulary_size`"):
        Engine(FakeRunner(), Scheduler(limits), GreedySearch(eos_id=EOS_ID))


def test_timings_and_company_are_told() -> None:
    clock = Ticks()
    engine = Engine.greedy(FakeRunner(max_rows=2), clock=clock)
    first, second, late = make(1, 2), make(4, 5, 6), make(7)
    engine.submit([first, second, late])
    engine.run_to_completion([])
    for sequence in (first, second, late):
        times = (
            sequence.submitted_at,
            sequence.admitted_at,
            sequence.encoded_at,
            sequence.first_token_at,
            sequence.finished_at,
        )
        assert all(earlier <= later for earlier, later in itertools.pairwise(times))
        assert sequence.encode_seconds > 0
        assert sequence.num_steps == len(sequence.target_ids)
        assert sequence.max_rows_shared == 2
    assert late.admitted_at > first.finished_at


def test_fail_all_ends_everything_once() -> None:
    runner = FakeRunner(max_rows=1)
    engine = Engine.greedy(runner)
    running, waiting = make(1, 2), make(4, 5)
    engine.submit([running, waiting])
    engine.step()
    error = RuntimeError("stop")
    assert set(engine.fail_all(error)) == {running, waiting}
    assert running.error is waiting.error is error
    assert engine.is_idle
    assert engine.fail_all(error) == []
    later = make(3, 4)
    engine.run_to_completion([later])
    check(later, runner)
