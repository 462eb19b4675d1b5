"""One step after another, without a model, a thread or a real clock."""

from __future__ import annotations

import itertools

import pytest

from service.engine import Engine
from service.lane import Lane
from service.options import DecodingOptions, Sampling
from service.request import FinishReason, InvalidSequenceError, Priority, Sequence
from service.rows import RowCopy
from service.runner import StepInputs, StepOutputs
from service.scheduler import Scheduler
from service.scheduler_limits import QueueFullError, SchedulerLimits
from service.search import Search, SearchError
from service.step_report import StepReport
from service.tokenizer import EOS_ID
from tests.synthetic.fake_runner import Babble, FakeRunner, RunnerBrokeError, always, expected, never


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


def length_so_far(engine: Engine, sequence: Sequence) -> int:
    """Target tokens of a running sequence with one hypothesis."""
    (target_ids,) = engine.open_hypotheses(sequence)
    return len(target_ids)


def steps(engine: Engine, count: int) -> list[StepReport]:
    return [engine.step() for _ in range(count)]


def test_decodes_what_it_is_given_in_any_mix() -> None:
    runner = FakeRunner()
    engine = Engine.over(runner, clock=Ticks())
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
    engine = Engine.over(runner)
    sequences = [make(*range(10 * i, 10 * i + 8)) for i in range(1, 5)]
    for sequence in sequences:
        engine.submit([sequence])
        engine.step()
    assert [length_so_far(engine, sequence) for sequence in sequences] == [4, 3, 2, 1]
    assert all(sequence.target_ids == [] for sequence in sequences)  # results come at the end, all at once
    engine.run_to_completion([])
    assert runner.rows_per_step[:4] == [1, 2, 3, 4]
    for sequence in sequences:
        check(sequence, runner)


def test_runs_beyond_the_queue_limits_by_feeding_the_queue() -> None:
    runner = FakeRunner()
    engine = Engine.over(runner, max_waiting_sequences=1, max_waiting_tokens=1)
    sequences = [make(*range(20, 20 + i % 9)) for i in range(30)]
    engine.run_to_completion(sequences)
    for sequence in sequences:
        check(sequence, runner)


def test_the_cache_bounds_the_target() -> None:
    runner = FakeRunner(max_target_tokens=6)
    long, own = make(*range(10, 20)), make(*range(20, 30), limit=4)
    Engine.over(runner).run_to_completion([long, own])
    assert (len(long.target_ids), len(own.target_ids)) == (6, 4)
    for sequence in (long, own):
        check(sequence, runner)
        assert sequence.finish_reason is FinishReason.LENGTH
    assert runner.violations == []


def test_admission_is_all_or_nothing() -> None:
    engine = Engine.over(FakeRunner(), max_waiting_sequences=2)
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
    engine = Engine.over(runner)
    first, second, third = (make(*range(10 * i, 10 * i + 6)) for i in range(1, 4))
    engine.submit([first, second, third])
    steps(engine, 2)
    engine.cancel([first])
    report = engine.step()
    assert report.finished == [first]
    assert first.finish_reason is FinishReason.CANCELLED
    assert (first.num_steps, first.hypotheses) == (2, [])
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
    engine = Engine.over(runner, clock=clock)
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
    engine = Engine.over(runner)
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
    engine = Engine.over(runner)
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
    engine = Engine.over(runner)
    batch, waiting = [make(1, 2), make(4, 5)], make(6, 7)
    engine.submit([*batch, waiting])
    runner.fail_decode = lambda step: step == 1
    engine.step()
    report = engine.step()
    assert report.finished == batch
    assert report.num_failed == 2
    assert isinstance(report.decode_error, RunnerBrokeError)
    assert all(sequence.finish_reason is FinishReason.FAILED for sequence in batch)
    assert all((sequence.num_steps, sequence.hypotheses) == (1, []) for sequence in batch)
    engine.run_to_completion([])
    check(waiting, runner)
    assert runner.violations == []


@pytest.mark.parametrize("leaves_by", ["end", "cancel"])
@pytest.mark.parametrize("fails_at", ["row", "lane"])
def test_a_failed_copy_fails_every_row_and_the_next_batch_succeeds(leaves_by: str, fails_at: str) -> None:
    runner = FakeRunner(max_rows=6)
    engine = Engine.over(runner)
    short, long, longer = make(1, 2), make(*range(10, 20)), make(*range(20, 30))
    wide = Sequence(source_ids=(30, 31, 32, EOS_ID), options=DecodingOptions(beam_size=2))
    engine.submit([short, long, longer, wide])
    steps(engine, 2)
    copied: list[tuple[int, int]] = []

    def fail_copy(source: int, target: int) -> bool:
        copied.append((source, target))
        return fails_at == "row" or len(copied) == 2  # the row that is left is closed first, then the lane

    if leaves_by == "end":
        assert engine.step().finished == [short]
    else:
        engine.cancel([short])
    runner.fail_copy = fail_copy
    report = engine.step()
    assert copied == [(4, 0), (3, 0)][: len(copied)]
    assert {long, longer, wide} <= set(report.finished) <= {short, long, longer, wide}
    assert short.finish_reason is (FinishReason.STOP if leaves_by == "end" else FinishReason.CANCELLED)
    assert {each.finish_reason for each in (long, longer, wide)} == {FinishReason.FAILED}
    assert isinstance(report.decode_error, RunnerBrokeError)
    assert report.num_rows == engine.store.num_used_rows == engine.scheduler.num_used_rows == 0
    runner.fail_copy = never
    later = make(3, 4)
    engine.run_to_completion([later])
    check(later, runner)
    assert runner.violations == []


def test_a_failed_copy_between_beams_fails_every_row_and_the_next_batch_succeeds() -> None:
    runner = FakeRunner(max_rows=8, language=Babble())
    engine = Engine.over(runner)
    beam = Sequence(source_ids=(5, 6, 7, EOS_ID), options=DecodingOptions(beam_size=4))
    other = make(8, 9, 10)
    other.on_progress = lambda _sequence, _ids: None
    runner.fail_copy = always
    engine.submit([beam, other])
    report = engine.step()
    assert set(report.finished) == {beam, other}
    assert {beam.finish_reason, other.finish_reason} == {FinishReason.FAILED}
    assert report.progress == []  # who has ended is told no more
    assert isinstance(report.decode_error, RunnerBrokeError)
    runner.fail_copy = never
    again = Sequence(source_ids=beam.source_ids, options=beam.options)
    engine.run_to_completion([again])
    alone = Sequence(source_ids=beam.source_ids, options=beam.options)
    Engine.over(FakeRunner(max_rows=8, language=Babble())).run_to_completion([alone])
    assert again.hypotheses == alone.hypotheses
    assert runner.violations == []


def test_a_row_whose_numbers_are_broken_fails_alone() -> None:
    runner = FakeRunner()
    runner.is_nan = lambda source: source[0] == 66
    engine = Engine.over(runner)
    broken, sound = make(66, 1), make(5, 6, 7)
    reports = engine.run_to_completion([broken, sound])
    assert broken.finish_reason is FinishReason.FAILED
    assert "must be finite" in str(broken.error)
    assert broken.target_ids == []
    check(sound, runner)
    assert [report.decode_error for report in reports] == [None] * len(reports)


def test_broken_numbers_fail_a_search_of_any_kind_alone() -> None:
    kinds = [
        DecodingOptions(),
        DecodingOptions(beam_size=2),
        DecodingOptions(beam_size=2, repetition_penalty=1.5),
        DecodingOptions(sampling=Sampling(), num_hypotheses=2),
        DecodingOptions(with_alternatives=True, num_hypotheses=2),
        DecodingOptions(target_prefix=(7, 8, 9)),
        DecodingOptions(beam_size=2, target_prefix=(7, 8, 9)),
        DecodingOptions(target_prefix=(7, EOS_ID), is_scoring=True),
    ]
    runner = FakeRunner(max_rows=20)
    engine = Engine.over(runner)
    broken = [Sequence(source_ids=(66, 67, EOS_ID), options=options) for options in kinds]
    sound = make(5, 6, 7)
    engine.submit([*broken, sound])
    assert engine.step().decode_error is None
    runner.is_nan = lambda source: source[0] == 66
    report = engine.step()
    assert set(report.finished) == set(broken)
    assert report.decode_error is None
    for sequence in broken:
        assert isinstance(sequence.error, SearchError)
        assert "must be finite" in str(sequence.error)
        assert "at position 1" in str(sequence.error)
        assert sequence.hypotheses == []
    engine.run_to_completion([])
    check(sound, runner)
    assert runner.violations == []


def test_a_failed_search_fails_its_sequence_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    advance = Search.advance

    def broken_advance(self: Search, lane: Lane) -> tuple[bool, list[RowCopy]]:
        if lane.sequence is broken and len(lane.open) == 2:
            raise ZeroDivisionError
        return advance(self, lane)

    monkeypatch.setattr(Search, "advance", broken_advance)
    runner = FakeRunner(max_rows=6)
    engine = Engine.over(runner)
    broken = Sequence(source_ids=(66, 1, EOS_ID), options=DecodingOptions(beam_size=2, suppressed_sequences=((5, 6),)))
    sound, sound_beam = make(5, 6, 7), Sequence(source_ids=(8, EOS_ID), options=DecodingOptions(beam_size=2))
    engine.run_to_completion([broken, sound, sound_beam])
    assert isinstance(broken.error, ZeroDivisionError)
    assert (broken.finish_reason, broken.num_steps, broken.hypotheses) == (FinishReason.FAILED, 2, [])
    check(sound, runner)
    assert sound_beam.finish_reason is FinishReason.STOP
    assert engine.store.num_used_rows == 0
    assert runner.violations == []


def test_a_failed_search_in_arrays_fails_the_lanes_it_was_given(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_given: object) -> None:
        raise ZeroDivisionError

    monkeypatch.setattr("service.commit.advance_lanes", broken)
    runner = FakeRunner(max_rows=6)
    engine = Engine.over(runner)
    beams = [Sequence(source_ids=(8 + number, EOS_ID), options=DecodingOptions(beam_size=2)) for number in range(2)]
    sound = make(5, 6, 7)
    engine.run_to_completion([*beams, sound])
    assert all(isinstance(beam.error, ZeroDivisionError) for beam in beams)
    check(sound, runner)
    assert engine.store.num_used_rows == 0
    assert runner.violations == []


def test_an_engine_larger_than_its_runner_is_refused() -> None:
    limits = SchedulerLimits(max_rows=5, max_source_tokens=33, source_vocabulary_size=1001)
    with pytest.raises(ValueError, match=r"`max_rows` .* 4, .* `max_source_tokens` .* `source_vocabulary_size`"):
        Engine(FakeRunner(), Scheduler(limits))


def test_timings_and_company_are_told() -> None:
    clock = Ticks()
    engine = Engine.over(FakeRunner(max_rows=2), clock=clock)
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
    engine = Engine.over(runner)
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


def test_progress_is_told_while_it_is_decoded_to_those_who_want_it() -> None:
    engine = Engine.over(FakeRunner(max_rows=4))
    told: list[int] = []
    wants = Sequence(
        source_ids=(5, 6, 7, 8, EOS_ID), on_progress=lambda _sequence, _ids: None, options=DecodingOptions(beam_size=2)
    )
    other = make(9, 10, 11)
    engine.submit([wants, other])
    while not engine.is_idle:
        report = engine.step()
        assert all(sequence is wants for sequence, _ in report.progress)
        assert not (wants in report.finished and report.progress)
        for _, ids in report.progress:
            assert ids
            told += ids
    assert 1 <= len(told) <= len(wants.text_ids)
    assert told == wants.text_ids[: len(told)]


def test_a_sequence_owns_as_many_rows_as_it_has_hypotheses() -> None:
    runner = FakeRunner(max_rows=6, language=Babble())
    engine = Engine.over(runner)
    beam = Sequence(source_ids=(5, 6, EOS_ID), options=DecodingOptions(beam_size=4, min_target_tokens=5))
    samples = Sequence(source_ids=(7, EOS_ID), options=DecodingOptions(num_hypotheses=3, sampling=Sampling()))
    greedy = make(8, 9)
    engine.submit([beam, samples, greedy])
    report = engine.step()
    # `samples` do not fit beside `beam`; `greedy` would, but would overtake them.
    assert (report.num_rows, report.num_admitted, report.num_target_tokens) == (4, 1, 1)
    assert engine.scheduler.num_used_rows == engine.store.num_used_rows == 4
    assert len(engine.open_hypotheses(beam)) == 4
    engine.cancel([beam])
    report = engine.step()
    assert (report.num_rows, report.num_admitted, report.num_target_tokens) == (4, 2, 2)
    assert engine.scheduler.num_used_rows == engine.store.num_used_rows == 4
    engine.run_to_completion([])
    assert [samples.finish_reason, greedy.finish_reason].count(FinishReason.FAILED) == 0
    assert len(samples.hypotheses) == 3
    assert runner.violations == []


def test_beams_read_one_copy_of_their_source_and_copy_only_what_differs() -> None:
    runner = FakeRunner(max_rows=8, max_target_tokens=30, language=Babble())
    engine = Engine.over(runner)
    inputs: list[StepInputs] = []
    decode_step = runner.decode_step

    def recorded(given: StepInputs) -> StepOutputs:
        inputs.append(given)
        return decode_step(given)

    runner.decode_step = recorded  # type: ignore[method-assign]
    beam = Sequence(source_ids=(5, 6, 7, EOS_ID), options=DecodingOptions(beam_size=8, min_target_tokens=25))
    engine.run_to_completion([beam])
    assert runner.encoded == [beam.source_ids]
    assert all(len(each.source_lengths) == 1 for each in inputs)
    assert all(each.rows_per_lane.tolist() == [8] for each in inputs)
    num_steps = len(inputs)
    everything = sum(8 * length for length in range(1, num_steps))  # a gather copies every row at every step
    assert 0 < runner.copied_positions < everything / 3
    assert runner.violations == []


def test_candidates_and_attention_are_asked_for_only_where_somebody_wants_them() -> None:
    runner = FakeRunner(max_rows=4, language=Babble())
    engine = Engine.over(runner)
    asked: list[tuple[int, bool]] = []
    decode_step = runner.decode_step

    def recorded(given: StepInputs) -> StepOutputs:
        asked.append((given.num_candidates, given.with_attention))
        return decode_step(given)

    runner.decode_step = recorded  # type: ignore[method-assign]
    for options in (
        DecodingOptions(),
        DecodingOptions(beam_size=3),
        DecodingOptions(with_alignment=True),
        DecodingOptions(beam_size=2, coverage_penalty=0.5),
    ):
        engine.run_to_completion([Sequence(source_ids=(5, 6, EOS_ID), options=options)])
        assert len(set(asked)) == 1
        assert asked[0][0] == (1 if options.is_plain_greedy else 2 * options.num_rows)
        assert asked[0][1] == (options.with_alignment or options.coverage_penalty != 0)
        asked.clear()


def test_an_end_that_never_comes_leaves_the_limit() -> None:
    runner = FakeRunner(max_target_tokens=12)
    limits = SchedulerLimits(max_rows=4, max_source_tokens=32, source_vocabulary_size=1000)
    endless = Sequence(source_ids=(5, 6, EOS_ID), options=DecodingOptions(guards_repetition=False))
    Engine(runner, Scheduler(limits), eos_id=-1).run_to_completion([endless])
    assert endless.target_ids == [5, 6, EOS_ID] * 4
    assert endless.finish_reason is FinishReason.LENGTH


def test_greedy_sequences_with_options_are_looked_at_for_loops_as_they_grow() -> None:
    """In company, which goes through arrays, as alone."""

    def decoded(count: int) -> list[Sequence]:
        sequences = [
            Sequence(source_ids=(5, 6, 7 + number), options=DecodingOptions(with_alignment=True))
            for number in range(count)
        ]  # without an end the source is copied round and round
        Engine.over(FakeRunner(max_rows=4, max_target_tokens=60)).run_to_completion(sequences)
        return sequences

    (alone,) = decoded(1)
    assert alone.was_guarded
    for one in decoded(3):
        assert (one.was_guarded, one.num_steps) == (True, alone.num_steps)


@pytest.mark.parametrize(
    "options",
    [DecodingOptions(), DecodingOptions(beam_size=3), DecodingOptions(num_hypotheses=2, sampling=Sampling(seed=4))],
)
def test_what_was_put_back_has_the_bytes_it_has_alone(options: DecodingOptions) -> None:
    def bulk(*body: int) -> Sequence:
        return Sequence(source_ids=(*body, EOS_ID), options=options, priority=Priority.BULK)

    body = (*range(5, 20),)
    alone, first, put_back = bulk(*body), bulk(*range(4, 22)), bulk(*body)
    language = Babble(sharpness=1.0)
    Engine.over(FakeRunner(max_rows=6, language=language)).run_to_completion([alone])
    runner = FakeRunner(max_rows=2 * options.num_rows, language=language)
    engine = Engine.over(runner, clock=Ticks())
    engine.submit([first, put_back])
    assert sum(report.num_preempted for report in steps(engine, 3)) == 0
    interactive = make(15, 16)
    engine.submit([interactive])
    report = engine.step()
    assert (report.num_preempted, report.num_preempted_steps, report.num_admitted) == (1, 3 * options.num_rows, 1)
    assert (put_back.num_preemptions, put_back.num_steps, put_back.is_finished) == (1, 0, False)
    engine.run_to_completion([])
    assert interactive.first_token_at < put_back.first_token_at
    assert [each.target_ids for each in put_back.hypotheses] == [each.target_ids for each in alone.hypotheses]
    assert [each.normalized_score for each in put_back.hypotheses] == [
        each.normalized_score for each in alone.hypotheses
    ]
    assert put_back.num_steps == alone.num_steps
    assert runner.violations == []


def test_interactive_work_waits_no_longer_than_a_step_for_bulk() -> None:
    engine = Engine.over(FakeRunner(max_rows=4), clock=Ticks())
    bulk = [make(*range(20, 40)) for _ in range(6)]
    for sequence in bulk:
        sequence.priority = Priority.BULK
    engine.submit(bulk)
    engine.step()
    interactive = [make(5, 6, 7) for _ in range(3)]
    engine.submit(interactive)
    assert engine.step().num_admitted == 3
    assert engine.scheduler.running == [bulk[0], *interactive]
    engine.run_to_completion([])
    assert [each.num_preemptions for each in bulk] == [0, 1, 1, 1, 0, 0]
    assert all(each.finish_reason is FinishReason.STOP for each in [*bulk, *interactive])


def test_steps_begun_for_nobody_are_counted_by_rows() -> None:
    runner = FakeRunner(max_rows=4)
    engine = Engine.over(runner, clock=Ticks())
    sequence = Sequence(source_ids=(*range(5, 15), EOS_ID), options=DecodingOptions(beam_size=2))
    other = make(20, 21, 22, 23, 24)

    def cancelled_while_others_are_encoded(_sources: object) -> bool:
        engine.cancel([sequence])
        return False

    engine.submit([sequence])
    steps(engine, 2)
    runner.fail_encode = cancelled_while_others_are_encoded
    engine.submit([other])
    assert engine.step().num_late_steps == 0  # it is told when the sequence leaves
    report = engine.step()
    assert (report.num_dropped, report.num_dropped_steps, report.num_late_steps) == (1, 6, 2)
    runner.before_step = lambda: engine.cancel([other])  # while the step runs: not late
    engine.step()
    report = engine.step()
    assert (report.num_dropped, report.num_late_steps) == (1, 0)


def test_a_deadline_that_passes_before_the_step_is_begun_makes_it_late() -> None:
    runner, clock = FakeRunner(), Ticks()
    engine = Engine.over(runner, clock=clock)
    sequence = make(5, 6, 7, deadline=5.0)

    def takes_long(_sources: object) -> bool:
        clock.now = 6.0
        return False

    runner.fail_encode = takes_long
    engine.submit([sequence])
    engine.step()
    assert [report.num_late_steps for report in steps(engine, 2)] == [1, 0]
    assert sequence.finish_reason is FinishReason.EXPIRED
