"""Whatever comes in whatever order: no row owned twice, none lost, first in first out, results never crossed."""

from __future__ import annotations

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from service.engine import Engine
from service.request import DecodingOptions, FinishReason, Sequence
from service.scheduler import QueueFullError
from service.tokenizer import EOS_ID
from tests.synthetic.fake_runner import FakeRunner, RunnerBrokeError, expected

MAX_ROWS = 3
MAX_WAITING = 6
MAX_WAITING_TOKENS = 40
ENDED_WELL = {FinishReason.STOP, FinishReason.LENGTH}


class EngineMachine(RuleBasedStateMachine):
    """Drives an engine at random, with failures, and keeps its own account of everything."""

    def __init__(self) -> None:
        super().__init__()
        self.now = 0.0
        self.runner = FakeRunner(max_rows=MAX_ROWS, max_source_tokens=12, max_target_tokens=9)
        self.engine = Engine.greedy(
            self.runner,
            max_waiting_sequences=MAX_WAITING,
            max_waiting_tokens=MAX_WAITING_TOKENS,
            max_encode_tokens_per_step=24,
            clock=lambda: self.now,
        )
        self.submitted: list[Sequence] = []
        self.ended: list[Sequence] = []
        self.to_cancel: list[Sequence] = []
        self.breaks: set[str] = set()
        self.runner.fail_encode = lambda _sources: "encode" in self.breaks
        self.runner.fail_place = lambda row: "place" in self.breaks and row > 0
        self.runner.fail_decode = lambda _step: "decode" in self.breaks
        self.runner.fail_move = lambda _source, _target: "move" in self.breaks
        self.runner.is_nan = lambda source: "nan" in self.breaks and source[0] % 2 == 0

    def live(self) -> list[Sequence]:
        return [sequence for sequence in self.submitted if not sequence.is_finished]

    @rule(
        sources=st.lists(st.lists(st.integers(4, 999), max_size=11), min_size=1, max_size=4),
        limit=st.none() | st.integers(1, 12),
        patience=st.none() | st.integers(0, 6),
    )
    def submit(self, sources: list[list[int]], limit: int | None, patience: int | None) -> None:
        made = [
            Sequence(
                source_ids=(*source, EOS_ID),
                options=DecodingOptions(max_target_tokens=limit),
                deadline=None if patience is None else self.now + patience,
            )
            for source in sources
        ]
        scheduler = self.engine.scheduler
        fits = (
            scheduler.num_waiting + len(made) <= MAX_WAITING
            and scheduler.num_waiting_tokens + sum(s.num_source_tokens for s in made) <= MAX_WAITING_TOKENS
        )
        try:
            self.engine.submit(made)
        except QueueFullError:
            assert not fits
        else:
            assert fits
            self.submitted += made

    @precondition(lambda self: self.submitted)
    @rule(data=st.data())
    def cancel(self, data: st.DataObject) -> None:
        chosen = data.draw(st.sampled_from(self.submitted))
        self.engine.cancel([chosen])
        if not chosen.is_finished:
            self.to_cancel.append(chosen)

    @rule(breaks=st.sets(st.sampled_from(["encode", "place", "decode", "move", "nan"]), max_size=2))
    def broken_step(self, breaks: set[str]) -> None:
        self.breaks = breaks
        self.step()
        self.breaks = set()

    @rule()
    def step(self) -> None:
        self.now += 1.0
        waiting = list(self.engine.scheduler.live()[self.engine.scheduler.num_running :])
        was_planned = self.engine.scheduler.plan(self.now)
        assert self.engine.scheduler.plan(self.now) == was_planned
        report = self.engine.step()
        self.ended += report.finished
        for sequence in self.to_cancel:
            assert sequence.is_finished, "a cancelled sequence stayed"
        self.to_cancel.clear()
        for sequence in self.live():
            assert sequence.deadline is None or sequence.deadline > self.now, "an expired sequence stayed"
        # First in, first out: whoever still waits arrived after everyone who left the queue for a row.
        admitted = [s for s in waiting if s.admitted_at == self.now]
        still = [s for s in self.live() if s.row is None]
        if admitted and still:
            assert max(s.arrival for s in admitted) < min(s.arrival for s in still)
        # Nobody starves: whenever a row is free, somebody who waits got in.
        if still and not report.encode_error:
            assert report.num_rows == MAX_ROWS or admitted

    @rule()
    def finish_everything(self) -> None:
        for _ in range(1000):
            if self.engine.is_idle:
                return
            self.step()
        raise AssertionError("the engine never became idle")

    @invariant()
    def rows_are_owned_once_and_without_gaps(self) -> None:
        running = self.engine.scheduler.running
        assert [sequence.row for sequence in running] == list(range(len(running)))
        assert len(set(running)) == len(running) <= MAX_ROWS
        assert all(sequence.row is None for sequence in self.ended)

    @invariant()
    def nobody_is_lost_or_ends_twice(self) -> None:
        assert len(set(self.ended)) == len(self.ended)
        assert {s for s in self.submitted if s.is_finished} == set(self.ended)
        assert set(self.engine.scheduler.live()) == set(self.live())
        waiting = [s for s in self.live() if s.row is None]
        assert self.engine.scheduler.num_waiting == len(waiting)
        assert self.engine.scheduler.num_waiting_tokens == sum(s.num_source_tokens for s in waiting)

    @invariant()
    def everybody_has_their_own_result_so_far(self) -> None:
        for sequence in self.submitted:
            own = sequence.options.max_target_tokens or self.runner.max_target_tokens
            tokens, scores = expected(sequence.source_ids, min(own, self.runner.max_target_tokens))
            count = len(sequence.target_ids)
            assert sequence.target_ids == tokens[:count]
            assert sequence.token_log_probabilities == scores[:count]
            if sequence.finish_reason in ENDED_WELL:
                assert count == len(tokens)
            if sequence.finish_reason is FinishReason.FAILED:
                assert isinstance(sequence.error, RunnerBrokeError) or "must be finite" in str(sequence.error)

    @invariant()
    def the_runner_was_asked_nothing_wrong(self) -> None:
        assert self.runner.violations == []

    def teardown(self) -> None:
        """After whatever happened, what waits and runs still ends, and the next sentence succeeds."""
        self.finish_everything()
        last = Sequence(source_ids=(5, 6, EOS_ID))
        self.engine.run_to_completion([last])
        assert last.target_ids == [5, 6, EOS_ID]
        assert self.runner.violations == []


TestEngine = EngineMachine.TestCase
TestEngine.settings = settings(max_examples=100, stateful_step_count=40, deadline=None, derandomize=True)
