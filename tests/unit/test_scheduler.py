"""Who waits, who runs, who comes and goes: decided without a runner."""

from __future__ import annotations

import copy
import dataclasses
import math
from typing import Any

import pytest

from service.options import DecodingOptions, Sampling
from service.request import FinishReason, InvalidSequenceError, Priority, Sequence
from service.scheduler import Scheduler, StepPlan
from service.scheduler_limits import QueueFullError, SchedulerLimits

LIMITS = SchedulerLimits(max_rows=3, max_source_tokens=16, source_vocabulary_size=100)


def make(length: int = 2, *, deadline: float | None = None, num_rows: int = 1) -> Sequence:
    return Sequence(
        source_ids=(7,) * (length - 1) + (3,), deadline=deadline, options=DecodingOptions(beam_size=num_rows)
    )


def scheduler_with(*sequences: Sequence, **changes: float) -> Scheduler:
    scheduler = Scheduler(dataclasses.replace(LIMITS, **changes))  # type: ignore[arg-type]
    scheduler.add(sequences, 0.0)
    return scheduler


def admit(scheduler: Scheduler, now: float = 0.0) -> list[Sequence]:
    plan = scheduler.plan(now)
    scheduler.drop(plan, now)
    scheduler.start(plan.admit, now)
    return plan.admit


def test_first_in_first_out_into_free_rows() -> None:
    sequences = [make() for _ in range(5)]
    scheduler = scheduler_with(*sequences)
    assert admit(scheduler) == sequences[:3]
    assert scheduler.running == sequences[:3]
    assert admit(scheduler) == []
    scheduler.leave([sequences[1]])
    assert scheduler.running == [sequences[0], sequences[2]]
    assert admit(scheduler) == [sequences[3]]
    assert scheduler.running == [sequences[0], sequences[2], sequences[3]]


def test_rows_are_counted_by_what_sequences_own() -> None:
    wide, narrow, sampled = make(num_rows=3), make(), make()
    sampled.options = DecodingOptions(num_hypotheses=4, sampling=Sampling())
    scheduler = scheduler_with(wide, narrow, sampled, max_rows=8)
    assert (scheduler.num_waiting, scheduler.num_waiting_rows, scheduler.num_used_rows) == (3, 8, 0)
    assert admit(scheduler) == [wide, narrow, sampled]
    assert (scheduler.num_waiting_rows, scheduler.num_running, scheduler.num_used_rows) == (0, 3, 8)
    scheduler.leave([wide])
    assert scheduler.num_used_rows == 5
    scheduler.add([make(num_rows=2), make(num_rows=4)], 0.0)
    assert scheduler.num_waiting_rows == 6
    scheduler.discard(scheduler.plan(0.0).admit)
    assert scheduler.num_waiting_rows == 4
    scheduler.cancel(scheduler.live())
    scheduler.drop(scheduler.plan(0.0), 0.0)
    assert (scheduler.num_waiting_rows, scheduler.num_used_rows) == (0, 0)
    scheduler.add([make(num_rows=2)], 0.0)
    scheduler.clear()
    assert scheduler.num_waiting_rows == 0


def test_who_wants_many_rows_is_not_overtaken() -> None:
    narrow, wide, others = make(), make(num_rows=3), [make(), make()]
    scheduler = scheduler_with(narrow, wide, *others)
    assert admit(scheduler) == [narrow]  # two rows are free, but `wide` wants three, and nobody passes
    assert admit(scheduler) == []
    scheduler.leave([narrow])
    assert admit(scheduler) == [wide]
    scheduler.leave([wide])
    assert admit(scheduler) == others


def test_what_does_not_fit_the_budget_ends_admission_and_is_next() -> None:
    short, long, also_short = make(2), make(16), make(2)
    scheduler = scheduler_with(short, long, also_short, max_encode_tokens_per_step=10)
    assert admit(scheduler) == [short]  # `also_short` would fit, but would overtake `long`
    assert admit(scheduler) == [long]  # alone, although it exceeds the budget
    assert admit(scheduler) == [also_short]


def test_the_budget_counts_padding() -> None:
    sequences = [make(2), make(2)]
    scheduler = Scheduler(dataclasses.replace(LIMITS, max_encode_tokens_per_step=15), padded_length=lambda _length: 8)
    scheduler.add(sequences, 0.0)
    assert admit(scheduler) == sequences[:1]


def test_planning_changes_nothing() -> None:
    running, cancelled, expired, waiting = make(), make(), make(deadline=5.0), make()
    scheduler = scheduler_with(running, cancelled, expired, waiting)
    admit(scheduler)
    scheduler.cancel([cancelled])
    before = copy.deepcopy(
        [dataclasses.asdict(sequence) | {"on_finished": None} for sequence in (running, cancelled, expired, waiting)]
    )
    state = (list(scheduler.running), scheduler.num_waiting, scheduler.num_waiting_tokens, scheduler.live())
    first = scheduler.plan(6.0)
    assert scheduler.plan(6.0) == first
    assert [(item.sequence, item.reason) for item in first.drop] == [
        (cancelled, FinishReason.CANCELLED),
        (expired, FinishReason.EXPIRED),
    ]
    assert first.admit == [waiting]
    after = [
        dataclasses.asdict(sequence) | {"on_finished": None} for sequence in (running, cancelled, expired, waiting)
    ]
    assert repr(before) == repr(after)
    assert state == (list(scheduler.running), scheduler.num_waiting, scheduler.num_waiting_tokens, scheduler.live())


@pytest.mark.parametrize("is_running", [True, False])
def test_cancelled_and_expired_leave_at_the_next_plan(is_running: bool) -> None:
    cancelled, expired, other = make(), make(deadline=2.0), make(deadline=9.0)
    scheduler = scheduler_with(cancelled, expired, other)
    if is_running:
        admit(scheduler)
    assert scheduler.plan(1.0).drop == []
    scheduler.cancel([cancelled])
    plan = scheduler.plan(2.0)
    scheduler.drop(plan, 2.0)
    assert (cancelled.finish_reason, expired.finish_reason) == (FinishReason.CANCELLED, FinishReason.EXPIRED)
    assert scheduler.live() == [other]
    assert not other.is_finished
    assert scheduler.plan(8.9).drop == []
    scheduler.drop(scheduler.plan(9.0), 9.0)
    assert other.finish_reason is FinishReason.EXPIRED
    assert scheduler.is_idle
    assert scheduler.num_waiting_tokens == 0


def test_a_deadline_that_passes_after_its_owner_left_is_no_matter() -> None:
    early, late = make(deadline=1.0), make(deadline=3.0)
    scheduler = scheduler_with(early, late)
    admit(scheduler)
    scheduler.leave([early])
    for now in (1.0, 2.0):
        plan = scheduler.plan(now)
        assert plan.drop == []
        scheduler.drop(plan, now)
    assert [item.sequence for item in scheduler.plan(3.0).drop] == [late]


def test_cancelled_before_it_was_added_leaves_at_the_first_plan() -> None:
    sequence = make()
    sequence.is_cancelled = True
    scheduler = scheduler_with(sequence)
    plan = scheduler.plan(0.0)
    assert [item.sequence for item in plan.drop] == [sequence]
    assert plan.admit == []


def test_rows_of_those_who_leave_are_given_away_in_the_same_plan() -> None:
    sequences = [make() for _ in range(4)]
    scheduler = scheduler_with(*sequences)
    admit(scheduler)
    scheduler.cancel(sequences[:1])
    assert admit(scheduler) == [sequences[3]]
    assert scheduler.running == sequences[1:]
    wide = make(num_rows=2)
    scheduler.add([wide, make()], 0.0)
    scheduler.cancel(sequences[1:2])
    assert admit(scheduler) == []  # one row is free now, `wide` wants two
    scheduler.cancel([wide, sequences[2]])
    assert len(admit(scheduler)) == 1  # rows that a sequence which only waited wanted were never taken
    assert scheduler.num_used_rows == 2


def test_queue_limits_refuse_all_or_nothing() -> None:
    scheduler = scheduler_with(make(4), max_waiting_sequences=2, max_waiting_tokens=10)
    with pytest.raises(QueueFullError, match="At most 2 sequences may wait, but 1 do and 2 more") as full:
        scheduler.check_room([make(), make()])
    assert (full.value.num_waiting_sequences, full.value.num_waiting_tokens) == (1, 4)
    with pytest.raises(QueueFullError, match="At most 10 source tokens may wait, but 4 do and 7 more"):
        scheduler.check_room([make(7)])
    with pytest.raises(QueueFullError):
        scheduler.check_room([make()], num_sequences=1)
    with pytest.raises(QueueFullError):
        scheduler.check_room([make()], num_tokens=5)
    scheduler.check_room([make(6)])
    assert scheduler.num_waiting == 1


def test_running_sequences_do_not_count_as_waiting() -> None:
    scheduler = scheduler_with(make(4), make(4), max_waiting_sequences=2, max_waiting_tokens=8)
    admit(scheduler)
    assert (scheduler.num_waiting, scheduler.num_waiting_tokens) == (0, 0)
    scheduler.check_room([make(4), make(4)])


def test_unsound_sequences_are_refused_with_every_problem() -> None:
    known = make()
    scheduler = scheduler_with(known, target_vocabulary_size=50)
    bad = [
        Sequence(source_ids=()),
        make(17),
        Sequence(source_ids=(100, 3)),
        Sequence(source_ids=(-1, 3)),
        Sequence(source_ids=(3,), options=DecodingOptions(max_target_tokens=0)),
        Sequence(source_ids=(3,), options=DecodingOptions(beam_size=4)),
        Sequence(source_ids=(3,), options=DecodingOptions(suppressed_tokens=(50,))),
        known,
    ]
    with pytest.raises(InvalidSequenceError) as refused:
        scheduler.check_sound(bad)
    for index in range(len(bad)):
        assert f"Sequence {index} of this call:" in str(refused.value)
    for index, what in ((5, "`beam_size` must be at least 1 and at most 3"), (6, "between 0 and 49")):
        assert what in str(refused.value).split(f"Sequence {index} of")[1].split("Sequence")[0]
    twice = make()
    with pytest.raises(InvalidSequenceError, match="more than once"):
        scheduler.check_sound([twice, twice])
    scheduler.check_sound([make(1), make(16), Sequence(source_ids=(0, 99))])


def test_unsound_limits_are_refused_with_every_problem() -> None:
    with pytest.raises(ValueError, match=r"`max_rows` .* `max_waiting_tokens`"):
        Scheduler(dataclasses.replace(LIMITS, max_rows=0, max_waiting_tokens=0))


def test_bugs_of_the_caller_are_not_passed_over() -> None:
    one, other = make(), make()
    scheduler = scheduler_with(one, max_rows=1)
    with pytest.raises(RuntimeError, match="must run to leave"):
        scheduler.leave([one])
    scheduler.start([one], 0.0)
    with pytest.raises(RuntimeError, match="must wait"):
        scheduler.discard([one])
    scheduler.add([other], 0.0)
    with pytest.raises(RuntimeError, match="At most 1 rows may be in use"):
        scheduler.start([other], 0.0)
    one.finish(FinishReason.STOP, 1.0)
    with pytest.raises(RuntimeError, match="must end once"):
        one.finish(FinishReason.CANCELLED, 2.0)


def test_oldest_waiting_since() -> None:
    scheduler = scheduler_with(make(), max_rows=1)
    scheduler.add([make()], 4.0)
    assert scheduler.oldest_waiting_since() == 0.0
    admit(scheduler)
    assert scheduler.oldest_waiting_since() == 4.0
    scheduler.clear()
    assert scheduler.oldest_waiting_since() is None
    assert scheduler.is_idle


BULK = Priority.BULK


def bulk(num_rows: int = 1, **fields: Any) -> Sequence:
    sequence = make(num_rows=num_rows)
    sequence.priority = BULK
    for name, value in fields.items():
        setattr(sequence, name, value)
    return sequence


def step(scheduler: Scheduler, now: float = 0.0) -> StepPlan:
    """What an engine does with a plan."""
    plan = scheduler.plan(now)
    assert scheduler.plan(now) == plan
    scheduler.drop(plan, now)
    scheduler.put_back(plan.preempt)
    scheduler.start(plan.admit, now)
    return plan


def test_bulk_fills_the_rows_that_interactive_work_leaves() -> None:
    many, one = [bulk() for _ in range(4)], make()
    scheduler = scheduler_with(*many, one)
    assert step(scheduler).admit == [one, *many[:2]]
    assert scheduler.num_used_interactive_rows == 1


def test_bulk_gives_way_the_latest_first_and_no_more_than_it_must() -> None:
    many = [bulk(), bulk(2), bulk(1), bulk(2)]
    scheduler = scheduler_with(*many, max_rows=6)
    scheduler.add([bulk(5)], 0.0)
    assert step(scheduler).admit == many
    interactive = make(num_rows=1)
    scheduler.add([interactive], 1.0)
    plan = step(scheduler, 1.0)
    assert (plan.preempt, plan.admit) == ([many[3]], [interactive])
    assert scheduler.running == [*many[:3], interactive]
    assert [each.num_preemptions for each in many] == [0, 0, 0, 1]
    assert step(scheduler, 2.0).admit == []  # one row is free, who was put back wants two, and nobody passes
    scheduler.leave([many[2]])
    assert step(scheduler, 3.0).admit == [many[3]]


def test_bulk_never_joins_in_the_step_that_puts_bulk_back() -> None:
    wide, narrow = bulk(2), bulk(1)
    scheduler = scheduler_with(bulk(1), wide, max_rows=3)
    step(scheduler)
    scheduler.add([narrow, make()], 1.0)
    plan = step(scheduler, 1.0)
    assert plan.preempt == [wide]
    assert narrow not in plan.admit  # the row that is left is nearer to `wide`


def test_the_bulk_that_has_run_longest_never_gives_way() -> None:
    oldest, latest = bulk(2), bulk(1)
    scheduler = scheduler_with(oldest, latest)
    step(scheduler)
    interactive = [make(), make()]
    scheduler.add(interactive, 1.0)
    plan = step(scheduler, 1.0)
    assert (plan.preempt, plan.admit) == ([latest], interactive[:1])
    assert step(scheduler, 2.0).preempt == []
    scheduler.cancel([oldest])
    assert step(scheduler, 3.0).admit == [interactive[1], latest]


def test_nobody_gives_way_to_whom_it_would_not_help() -> None:
    first, latest = bulk(), bulk()
    scheduler = scheduler_with(first, latest, make())
    step(scheduler)
    scheduler.add([make(num_rows=2)], 1.0)
    plan = step(scheduler, 1.0)
    assert (plan.preempt, plan.admit) == ([], [])  # even so it would lack a row


def test_nobody_gives_way_to_who_is_not_encoded_in_this_step() -> None:
    many = [bulk() for _ in range(3)]
    scheduler = scheduler_with(*many, max_encode_tokens_per_step=7)
    while scheduler.num_waiting:
        step(scheduler)
    scheduler.add([make(6), make(6)], 1.0)
    assert len(step(scheduler, 1.0).preempt) == 1
    assert len(step(scheduler, 2.0).preempt) == 1


def test_interactive_work_without_end_does_not_starve_bulk() -> None:
    patient = [bulk(), bulk()]
    scheduler = scheduler_with(*patient, bulk_patience_seconds=5.0)
    admitted: dict[float, list[Sequence]] = {}
    for now in map(float, range(12)):
        scheduler.add([make() for _ in range(4)], now)
        stays = patient[:1] if now < 8.0 else []  # the first of them runs for three steps
        scheduler.leave([each for each in scheduler.running if each not in stays])
        plan = step(scheduler, now)
        assert len(plan.admit) == (2 if 5.0 < now < 8.0 else 3)
        admitted[now] = [each for each in plan.admit if each.priority is BULK]
    expected = {5.0: patient[:1], 8.0: patient[1:]}  # when one has waited long enough, and none runs
    assert {now: came for now, came in admitted.items() if came} == expected


def test_what_was_put_back_waits_as_if_it_had_never_run() -> None:
    many = [bulk(), bulk(), bulk()]
    scheduler = scheduler_with(*many)
    step(scheduler, 2.0)
    many[2].was_guarded, many[2].num_steps, many[2].first_token_at = True, 7, 2.5
    scheduler.add([make(4)], 3.0)
    step(scheduler, 3.0)
    assert (many[2].was_guarded, many[2].num_steps, math.isnan(many[2].first_token_at)) == (False, 0, True)
    assert math.isnan(many[2].admitted_at)
    assert (scheduler.num_waiting, scheduler.num_waiting_tokens, scheduler.oldest_waiting_since()) == (1, 2, 0.0)
    scheduler.cancel([many[2]])
    assert [item.sequence for item in step(scheduler, 4.0).drop] == [many[2]]
    assert scheduler.waiting.num_rows == 0
    with pytest.raises(RuntimeError, match="must run to leave"):
        scheduler.put_back([many[2]])


def test_the_reserve_is_for_interactive_callers_who_wait_for_nothing() -> None:
    ada, bob = [make() for _ in range(3)], make()
    for sequence in ada:
        sequence.caller = "ada"
    bob.caller = "bob"
    scheduler = scheduler_with(ada[0], max_waiting_sequences=4, max_waiting_tokens=20, reserved_share=0.5)
    scheduler.check_room([ada[1]])
    scheduler.add([ada[1]], 0.0)
    for refused in (ada[2], bulk(caller="bob")):
        with pytest.raises(QueueFullError, match="At most 2 sequences may wait, but 2 do"):
            scheduler.check_room([refused])
    scheduler.check_room([bob])
    with pytest.raises(QueueFullError, match="At most 2 sequences"):
        scheduler.check_room([bob], callers={"bob"})  # accepted, but not added yet
    with pytest.raises(QueueFullError, match="At most 4 sequences"):
        scheduler.check_room([bob], num_sequences=2)
    with pytest.raises(QueueFullError, match="At most 10 source tokens"):
        scheduler_with(max_waiting_tokens=20, reserved_share=0.5).check_room([bulk(source_ids=(7,) * 11)])
    while scheduler.num_waiting:
        step(scheduler)
    scheduler.check_room([ada[2]], num_sequences=3)  # it waits for nothing any more


def test_limits_and_sequences_of_no_sense_are_refused() -> None:
    for changes, what in (({"reserved_share": 1.0}, "reserved_share"), ({"bulk_patience_seconds": -1.0}, "patience")):
        with pytest.raises(ValueError, match=what):
            Scheduler(dataclasses.replace(LIMITS, **changes))  # type: ignore[arg-type]
    scheduler = scheduler_with()
    for weight in (0.0, -1.0, math.inf, math.nan):
        with pytest.raises(InvalidSequenceError, match="`weight` must be above 0 and finite"):
            scheduler.check_sound([bulk(weight=weight)])
    with pytest.raises(InvalidSequenceError, match="decoded more than once"):
        scheduler.check_sound([bulk(on_progress=lambda _sequence, _ids: None)])
