"""Whatever comes in whatever order: no row owned twice, none lost or starved, results never crossed."""

from __future__ import annotations

import functools
import math
import random
from collections.abc import Sequence as Ids
from dataclasses import replace

import numpy as np
import numpy.typing as npt
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from service.engine import Engine
from service.lane import Lane
from service.options import DecodingOptions
from service.request import FinishReason, Hypothesis, Priority, Sequence
from service.scheduler import StepPlan
from service.scheduler_limits import QueueFullError
from service.step_report import StepReport
from service.tokenizer import BOS_ID, EOS_ID
from tests.parity import reference_search
from tests.synthetic.fake_runner import Babble, FakeRunner, RunnerBrokeError
from tests.synthetic.random_options import random_options

MAX_ROWS = 9
MAX_SOURCE_TOKENS = 12
MAX_TARGET_TOKENS = 10
MAX_WAITING = 6
MAX_WAITING_TOKENS = 40
MAX_ENCODE_TOKENS = 24
RESERVED_SHARE = 0.4
PATIENCE = 8.0
WEIGHTS = {"": 1.0, "ada": 2.0, "bob": 0.3}
VOCABULARY_SIZE = 16
ENDED_WELL = {FinishReason.STOP, FinishReason.LENGTH, FinishReason.REPETITION}


class Stutter(Babble):
    """Random distributions; a source whose first token is a multiple of three has its last token said on and on."""

    def log_probabilities(self, source: Ids[int], cached: Ids[int]) -> npt.NDArray[np.float32]:
        """See `Language`."""
        values = super().log_probabilities(source, cached)
        if source[0] % 3 == 0 and len(cached) > 2:
            values = values - np.float32(4.0)
            values[cached[-1]] = -0.02
        return values


LANGUAGE = Stutter(VOCABULARY_SIZE, sharpness=3.0)


def some_options(chance: random.Random) -> DecodingOptions:
    """Plain searches, which go together through arrays, as often as those with options."""
    kind = chance.randrange(6)
    if kind == 0:
        return DecodingOptions(max_target_tokens=chance.choice([None, None, 1, 4, 12]))
    if kind == 1:
        beam_size = chance.choice([2, 3, 3])
        return DecodingOptions(beam_size=beam_size, num_hypotheses=chance.randint(1, beam_size))
    if kind == 2:
        target = tuple(chance.choices(range(4, VOCABULARY_SIZE), k=chance.randint(1, 5)))
        return DecodingOptions(target_prefix=(*target, EOS_ID) if chance.random() < 0.5 else target, is_scoring=True)
    return random_options(chance, vocabulary_size=VOCABULARY_SIZE, max_target_tokens=MAX_TARGET_TOKENS, max_beam_size=5)


def new_runner(greedy_steps: int = 1) -> FakeRunner:
    return FakeRunner(
        greedy_steps=greedy_steps,
        max_rows=MAX_ROWS,
        max_source_tokens=MAX_SOURCE_TOKENS,
        max_target_tokens=MAX_TARGET_TOKENS,
        language=LANGUAGE,
    )


@functools.cache
def alone(source_ids: tuple[int, ...], options: DecodingOptions) -> Sequence:
    """The same sequence, decoded by itself."""
    sequence = Sequence(source_ids=source_ids, options=options)
    Engine.over(new_runner()).run_to_completion([sequence])
    assert sequence.finish_reason in ENDED_WELL
    for each in sequence.hypotheses:  # every number is the model's own after this very history
        cached = [BOS_ID]
        for token_id, value in zip(each.target_ids, each.token_log_probabilities, strict=True):
            assert value == LANGUAGE.log_probabilities(source_ids, cached)[token_id]
            cached.append(token_id)
    if options.sampling is None and not sequence.was_guarded:
        wanted = reference_search.search(predict, source_ids, limited(options))
        assert [each.target_ids for each in sequence.hypotheses] == [
            list(each.target_ids) for each in wanted.hypotheses
        ]
    return sequence


def predict(source_ids: tuple[int, ...], target_ids: tuple[int, ...]) -> reference_search.Prediction:
    """The model, as the plain reference asks it."""
    cached = [BOS_ID, *target_ids]
    return reference_search.Prediction(
        log_probabilities=LANGUAGE.log_probabilities(source_ids, cached),
        attention=LANGUAGE.attention(source_ids, cached).mean(axis=0),
    )


def limited(options: DecodingOptions) -> DecodingOptions:
    """The same options for the reference, which knows no cache that ends and no guard."""
    most = min(options.max_target_tokens or MAX_TARGET_TOKENS, MAX_TARGET_TOKENS)
    return replace(options, max_target_tokens=most, guards_repetition=False)


def everything(hypotheses: list[Hypothesis]) -> list[object]:
    """All a caller sees of results, bit by bit."""
    return [
        (
            each.target_ids,
            each.token_log_probabilities,
            each.score,
            each.normalized_score,
            each.finish_reason,
            None if each.attention is None else each.attention.tobytes(),
        )
        for each in hypotheses
    ]


class EngineMachine(RuleBasedStateMachine):
    """Drives an engine at random, with failures, and keeps its own account of everything."""

    greedy_steps = 1
    plain_share = 0.0
    """Of the sequences, how many ask for plain greedy search at the least, and not to be told of progress."""

    def __init__(self) -> None:
        super().__init__()
        self.now = 0.0
        self.runner = new_runner(self.greedy_steps)
        self.engine = Engine.over(
            self.runner,
            max_waiting_sequences=MAX_WAITING,
            max_waiting_tokens=MAX_WAITING_TOKENS,
            max_encode_tokens_per_step=MAX_ENCODE_TOKENS,
            reserved_share=RESERVED_SHARE,
            bulk_patience_seconds=PATIENCE,
            clock=lambda: self.now,
        )
        self.waiting: list[Sequence] = []
        self.running: list[Sequence] = []
        self.ended: list[Sequence] = []
        self.told: dict[Sequence, list[int]] = {}
        self.to_cancel: list[Sequence] = []
        self.breaks: set[str] = set()
        self.runner.fail_encode = lambda _sources: "encode" in self.breaks
        self.runner.fail_place = lambda lane: "place" in self.breaks and lane > 0
        self.runner.fail_decode = lambda _step: "decode" in self.breaks
        self.runner.fail_copy = lambda _source, _target: "copy" in self.breaks
        self.runner.is_nan = lambda source: "nan" in self.breaks and source[0] % 2 == 0
        self.runner.before_step = self.note_gaps

    def note_gaps(self) -> None:
        """Whenever a step runs, rows and lanes have owners without a gap."""
        store = self.engine.store
        if None in map(store.row_tenant, range(store.num_rows)) or None in store.tenants():
            self.runner.violations.append("a step ran over a gap")

    def note_progress(self, sequence: Sequence, ids: list[int]) -> None:
        assert ids
        self.told.setdefault(sequence, []).extend(ids)

    @rule(
        seed=st.integers(0, 10**6),
        count=st.integers(1, 4),
        patience=st.none() | st.integers(0, 40),
        caller=st.sampled_from(sorted(WEIGHTS)),
        is_bulk=st.booleans(),
    )
    def submit(self, seed: int, count: int, patience: int | None, caller: str, is_bulk: bool) -> None:
        chance = random.Random(seed)
        made = []
        for _ in range(count):
            is_plain = chance.random() < self.plain_share
            sequence = Sequence(
                source_ids=(*chance.choices(range(4, 99), k=chance.randrange(MAX_SOURCE_TOKENS)), EOS_ID),
                options=DecodingOptions(max_target_tokens=chance.choice([None, 4]))
                if is_plain
                else some_options(chance),
                deadline=None if patience is None else self.now + patience,
                on_progress=self.note_progress if not is_bulk and not is_plain and chance.random() < 0.5 else None,
                priority=Priority.BULK if is_bulk else Priority.INTERACTIVE,
                caller=caller,
                weight=WEIGHTS[caller],
            )
            made.append(sequence)
        num_tokens = sum(sequence.num_source_tokens for sequence in [*self.waiting, *made])
        interactive = [each for each in self.waiting if each.priority is Priority.INTERACTIVE]
        kept = RESERVED_SHARE if is_bulk or caller in {each.caller for each in interactive} else 0.0
        fits = len(self.waiting) + len(made) <= MAX_WAITING - int(MAX_WAITING * kept)
        fits = fits and num_tokens <= MAX_WAITING_TOKENS - int(MAX_WAITING_TOKENS * kept)
        try:
            self.engine.submit(made)
        except QueueFullError:
            assert not fits
        else:
            assert fits
            self.waiting += made

    @precondition(lambda self: self.waiting or self.running)
    @rule(data=st.data())
    def cancel(self, data: st.DataObject) -> None:
        chosen = data.draw(st.sampled_from([*self.waiting, *self.running, *self.ended[-2:]]))
        self.engine.cancel([chosen])
        if not chosen.is_finished:
            self.to_cancel.append(chosen)

    @precondition(lambda self: self.waiting or self.running)
    @rule(breaks=st.sets(st.sampled_from(["encode", "place", "decode", "copy", "nan"]), min_size=1, max_size=2))
    def broken_step(self, breaks: set[str]) -> None:
        self.breaks = breaks
        try:
            self.step()
        finally:
            self.breaks = set()

    @precondition(lambda self: self.waiting or self.running)
    @rule(count=st.integers(1, 6))
    def steps(self, count: int) -> None:
        for _ in range(count):
            self.step()

    def step(self) -> None:
        self.now += 1.0
        was_planned = self.engine.scheduler.plan(self.now)
        assert self.engine.scheduler.plan(self.now) == was_planned
        preempted_before = {each: each.num_preemptions for each in self.running}
        report = self.engine.step()
        self.check_preemption(was_planned, preempted_before)
        for sequence, ids in report.progress:
            assert not sequence.is_finished
            assert sequence.on_progress is not None
            sequence.on_progress(sequence, ids)
        newcomers = self.check_admission(report, was_planned)
        self.check_who_left(report, newcomers)
        self.ended += report.finished
        back = was_planned.preempt
        self.waiting = [each for each in [*self.waiting, *back] if each not in newcomers and not each.is_finished]
        stayed = [each for each in self.running if each not in back]
        self.running = [each for each in [*stayed, *newcomers] if not each.is_finished]

    def check_preemption(self, plan: StepPlan, num_before: dict[Sequence, int]) -> None:
        """Only bulk gives way, the latest first, never the oldest, and only to interactive sequences that need it."""
        gone = {item.sequence for item in plan.drop}
        bulk = [each for each in self.running if each.priority is Priority.BULK and each not in gone]
        assert plan.preempt == bulk[1:][::-1][: len(plan.preempt)]
        for each, before in num_before.items():
            assert each.num_preemptions == before + (each in plan.preempt)
        if not plan.preempt:
            return
        assert all(each.priority is Priority.INTERACTIVE for each in plan.admit)
        free = MAX_ROWS - sum(each.options.num_rows for each in self.running if each not in gone)
        wanted = sum(each.options.num_rows for each in plan.admit)
        assert free + sum(each.options.num_rows for each in plan.preempt[:-1]) < wanted, "the last gave way for nothing"

    def check_admission(self, report: StepReport, plan: StepPlan) -> list[Sequence]:
        """Interactive before bulk, each line in its order, and nobody waits for whom there is room; returns who came to
        the encoder."""
        dropped = {FinishReason.CANCELLED, FinishReason.EXPIRED}
        queue = [each for each in self.waiting if each.finish_reason not in dropped]
        newcomers = plan.admit
        came = [each for each in queue if each.admitted_at == self.now or each.finish_reason is FinishReason.FAILED]
        assert set(came) == set(newcomers)
        if report.encode_error is not None:
            assert "encode" in self.breaks or "place" in self.breaks
            assert all(each.finish_reason is FinishReason.FAILED for each in newcomers)
            assert newcomers
        for line in {(each.priority, each.caller) for each in queue}:
            mine = sorted(
                (each for each in queue if (each.priority, each.caller) == line), key=lambda each: each.arrival
            )
            mine_now = [each for each in newcomers if (each.priority, each.caller) == line]
            assert mine_now == mine[: len(mine_now)], "somebody was overtaken by one of the same line"
        left = [each for each in queue if each not in newcomers]
        running = [each for each in self.running if each.finish_reason not in dropped]
        bulk = [each for each in newcomers if each.priority is Priority.BULK]
        if any(each.priority is Priority.INTERACTIVE for each in left) and bulk:
            assert bulk == newcomers[:1], "bulk joined although somebody interactive waits"
            assert not any(each.priority is Priority.BULK for each in running)
            oldest = min(each.submitted_at for each in queue if each.priority is Priority.BULK)
            assert self.now - oldest >= PATIENCE
        free = MAX_ROWS - sum(each.options.num_rows for each in [*running, *newcomers] if each not in plan.preempt)
        assert free >= 0
        num_padded = sum(self.runner.padded_length(len(each.source_ids)) for each in newcomers)
        assert num_padded <= MAX_ENCODE_TOKENS or len(newcomers) == 1
        if report.encode_error is None and left:
            self.check_nobody_waits_for_nothing(plan, running, left, free, MAX_ENCODE_TOKENS - num_padded)
        return newcomers

    def check_nobody_waits_for_nothing(
        self, plan: StepPlan, running: list[Sequence], left: list[Sequence], free: int, budget: int
    ) -> None:
        """Who is next did not fit when the step was planned."""
        running_bulk = [each for each in running if each.priority is Priority.BULK]
        is_due = not running_bulk and any(
            each.priority is Priority.BULK and self.now - each.submitted_at >= PATIENCE for each in left
        )
        if is_due and not any(each.priority is Priority.BULK for each in plan.admit):
            head = next(each for each in self.engine.scheduler.waiting.bulk.in_order() if each in left)
        else:
            head = next(each for each in self.engine.scheduler.waiting.in_order() if each in left)
        if head.priority is Priority.BULK and plan.preempt:
            return
        if head.priority is Priority.INTERACTIVE:
            free += sum(each.options.num_rows for each in running_bulk[1:] if each not in plan.preempt)
        has_budget = not plan.admit or self.runner.padded_length(len(head.source_ids)) <= budget
        assert not (head.options.num_rows <= free and has_budget), "somebody waits although there is room"

    def check_who_left(self, report: StepReport, newcomers: list[Sequence]) -> None:
        for sequence in self.to_cancel:
            assert sequence.is_finished, "a cancelled sequence stayed"
        self.to_cancel.clear()
        for sequence in [*self.waiting, *self.running]:
            is_late = sequence.deadline is not None and sequence.deadline <= self.now
            assert sequence.is_finished or not is_late, "an expired sequence stayed"
        may_fail: set[Sequence] = set()
        if self.breaks & {"decode", "copy"}:
            may_fail |= {*self.running, *newcomers}
        if self.breaks & {"encode", "place"}:
            may_fail |= set(newcomers)
        if "nan" in self.breaks:
            may_fail |= {each for each in [*self.running, *newcomers] if each.source_ids[0] % 2 == 0}
        for sequence in report.finished:
            if sequence.finish_reason is FinishReason.FAILED:
                assert sequence in may_fail
                assert isinstance(sequence.error, RunnerBrokeError) or "must be finite" in str(sequence.error)
            elif sequence.finish_reason in ENDED_WELL:
                wanted = alone(sequence.source_ids, sequence.options)
                assert everything(sequence.hypotheses) == everything(wanted.hypotheses)
                assert sequence.was_guarded == wanted.was_guarded
                assert sequence.num_steps == wanted.num_steps
            if sequence.finish_reason not in ENDED_WELL:
                assert sequence.hypotheses == []

    @precondition(lambda self: self.waiting or self.running)
    @rule()
    def finish_everything(self) -> None:
        for _ in range(1000):
            if self.engine.is_idle:
                return
            self.step()
        raise AssertionError("the engine never became idle")

    @invariant()
    def rows_and_lanes_are_owned_once_and_none_is_lost(self) -> None:
        store = self.engine.store
        lanes = [lane for lane in store.tenants() if isinstance(lane, Lane)]
        assert {lane.sequence for lane in lanes} == set(self.running)
        assert len(lanes) == len(self.running)
        for number, lane in enumerate(store.tenants()):
            assert lane is None or lane.lane == number
        owned = [row for lane in lanes for row in lane.rows]
        assert len(set(owned)) == len(owned) <= MAX_ROWS
        for lane in lanes:
            assert len(lane.rows) == lane.sequence.options.num_rows
            assert 1 <= len(lane.open) <= len(lane.rows)
            assert len(set(lane.open)) == len(lane.open)
            assert set(lane.open) <= set(lane.rows)
        for row in range(store.num_rows):
            tenant = store.row_tenant(row)
            assert (tenant is None) == (row not in owned)
            assert tenant is None or row in tenant.rows
        num_rows = sum(each.options.num_rows for each in self.running)
        assert store.num_used_rows == self.engine.scheduler.num_used_rows == num_rows

    @invariant()
    def nobody_is_lost_or_ends_twice(self) -> None:
        scheduler = self.engine.scheduler
        assert len(set(self.ended)) == len(self.ended)
        for each in self.ended:
            assert each.is_finished
            times = [each.submitted_at, each.admitted_at, each.first_token_at, each.finished_at]
            known = [time for time in times if not math.isnan(time)]
            assert known == sorted(known), "something was noted after the end"
        assert scheduler.running == self.running
        assert set(scheduler.live()) == {*self.running, *self.waiting}
        assert len(scheduler.live()) == len(self.running) + len(self.waiting)
        assert sorted(scheduler.waiting.in_order(), key=id) == sorted(self.waiting, key=id)
        for priority in Priority:
            mine = [each for each in self.waiting if each.priority is priority]
            assert len(scheduler.waiting.of(priority)) == len(mine)
            assert scheduler.waiting.of(priority).num_rows == sum(each.options.num_rows for each in mine)
            assert scheduler.waiting.of(priority).oldest_since() == min(
                (each.submitted_at for each in mine), default=None
            )
        interactive = [each for each in self.running if each.priority is Priority.INTERACTIVE]
        assert scheduler.num_used_interactive_rows == sum(each.options.num_rows for each in interactive)
        assert scheduler.num_waiting == len(self.waiting)
        assert scheduler.num_waiting_tokens == sum(each.num_source_tokens for each in self.waiting)
        assert scheduler.num_waiting_rows == sum(each.options.num_rows for each in self.waiting)

    @invariant()
    def everybody_has_their_own_tokens_so_far(self) -> None:
        for sequence, told in self.told.items():
            assert alone(sequence.source_ids, sequence.options).text_ids[: len(told)] == told
        for sequence in self.running:
            wanted = alone(sequence.source_ids, sequence.options)
            if sequence.options.num_rows == 1 and not wanted.was_guarded:
                (target_ids,) = self.engine.open_hypotheses(sequence)
                assert wanted.target_ids[: len(target_ids)] == target_ids

    @invariant()
    def the_runner_was_asked_nothing_wrong(self) -> None:
        assert self.runner.violations == []

    def teardown(self) -> None:
        """After whatever happened, what waits and runs still ends, and what comes next is decoded as ever."""
        self.finish_everything()
        assert self.engine.store.num_rows == self.engine.store.num_lanes == 0
        after = [
            Sequence(source_ids=(5, 6, EOS_ID)),
            Sequence(source_ids=(5, 7, EOS_ID), options=DecodingOptions(beam_size=3)),
        ]
        self.engine.submit(after)
        for _ in range(2 * MAX_TARGET_TOKENS):
            self.engine.step()
        for sequence in after:
            wanted = alone(sequence.source_ids, sequence.options)
            assert everything(sequence.hypotheses) == everything(wanted.hypotheses)
        assert self.runner.violations == []


class SeveralStepsMachine(EngineMachine):
    """The same with a runner that makes several greedy steps in a run, and enough who want no more than that."""

    greedy_steps = 3
    plain_share = 0.9


TestSeveralSteps = SeveralStepsMachine.TestCase
TestSeveralSteps.settings = settings(max_examples=100, stateful_step_count=40, deadline=None, derandomize=True)
TestEngine = EngineMachine.TestCase
TestEngine.settings = settings(max_examples=200, stateful_step_count=40, deadline=None, derandomize=True)
