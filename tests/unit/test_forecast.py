"""What is predicted of a call: nothing before anything was seen, then what its steps and those ahead will take."""

import math
import random
from collections.abc import Sequence as Row
from typing import NamedTuple

import pytest
from hypothesis import given
from hypothesis import strategies as st

from service.engine import Engine
from service.forecast import Forecast, Load
from service.options import DecodingOptions
from service.request import FinishReason, Hypothesis, Sequence
from service.step_report import StepReport
from service.tokenizer import EOS_ID
from tests.synthetic.fake_runner import FakeRunner

IDLE = Load(
    num_engines=2, num_rows=64, num_used_rows=0, num_waiting=0, num_waiting_rows=0, num_waiting_tokens=0
)  # fmt: skip


def ended(*, num_source_tokens: int = 20, num_steps: int = 30) -> Sequence:
    sequence = Sequence(source_ids=(5,) * num_source_tokens)
    sequence.hypotheses = [
        Hypothesis(
            target_ids=[7],
            token_log_probabilities=[-1.0],
            score=-1.0,
            normalized_score=-1.0,
            finish_reason=FinishReason.STOP,
            attention=None,
        )
    ]
    sequence.num_steps = num_steps
    return sequence


def report(*finished: Sequence, num_rows: int, seconds: float, num_steps: int = 1) -> StepReport:
    return StepReport(
        finished=list(finished), progress=[], num_rows=num_rows, num_steps=num_steps, num_admitted=0, num_dropped=0,
        num_dropped_steps=0, num_failed=0, num_waiting=0, num_target_tokens=0, num_source_tokens=0,
        num_padded_source_tokens=0, encode_seconds=0.0, decode_seconds=0.0, step_seconds=seconds, encode_error=None,
        decode_error=None,
    )  # fmt: skip


def warm(base: float = 0.001, per_row: float = 0.0001) -> Forecast:
    """Has seen steps of 1 to 32 rows that take `base` and `per_row` each, and sentences of 20 tokens in 30 steps."""
    forecast = Forecast()
    for num_rows in (1, 2, 4, 8, 16, 32):
        forecast.observe_step(report(ended(), num_rows=num_rows, seconds=base + per_row * num_rows))
    return forecast


def sequences(*lengths: int, **options: int) -> list[Sequence]:
    return [Sequence(source_ids=(5,) * length, options=DecodingOptions(**options)) for length in lengths]


def test_nothing_is_predicted_before_a_sentence_has_ended() -> None:
    forecast = Forecast()
    busy = IDLE._replace(num_used_rows=64, num_waiting=10_000, num_waiting_rows=10_000, num_waiting_tokens=200_000)
    forecast.observe_step(report(num_rows=4, seconds=0.1))
    gone = ended()
    gone.hypotheses = []
    forecast.observe_step(report(gone, num_rows=4, seconds=0.1))
    assert forecast.is_cold
    assert forecast.delay_seconds(busy) == forecast.wait_seconds(busy) == 0.0
    assert forecast.finish_seconds(busy, sequences(100)) == 0.0


def test_an_idle_server_delays_nobody() -> None:
    forecast = warm()
    assert forecast.delay_seconds(IDLE) == forecast.wait_seconds(IDLE) == 0.0
    assert forecast.finish_seconds(IDLE, sequences(20)) == pytest.approx(30 * 0.0011)


def test_steps_lie_on_a_line_between_and_beyond_the_sizes_seen() -> None:
    forecast = warm()
    for num_rows in (1, 3, 5.5, 16, 31):
        assert forecast.step_seconds(num_rows) == pytest.approx(0.001 + 0.0001 * num_rows)
    assert forecast.step_seconds(64) == pytest.approx(2 * 0.0042), "in proportion where nothing was seen"


def test_several_steps_of_one_run_are_several() -> None:
    forecast = Forecast()
    forecast.observe_step(report(ended(), num_rows=1, seconds=0.008, num_steps=4))
    assert forecast.step_seconds(1) == 0.002


def test_means_follow_what_is_seen_and_one_long_stop_says_little() -> None:
    forecast = Forecast()
    forecast.observe_step(report(ended(), num_rows=1, seconds=0.001))
    forecast.observe_step(report(num_rows=1, seconds=60.0))
    assert forecast.step_seconds(1) < 0.0011
    for _ in range(300):
        forecast.observe_step(report(ended(num_steps=60), num_rows=1, seconds=0.002))
    assert forecast.step_seconds(1) == pytest.approx(0.002, rel=0.01)
    assert forecast.num_steps(20) > 55


def test_a_full_batch_is_waited_for_and_what_waits_is_worked_off_by_all_engines() -> None:
    forecast = warm()
    waiting = IDLE._replace(num_used_rows=64, num_waiting=100, num_waiting_rows=100, num_waiting_tokens=2_000)
    queue = 100 * 30 * 0.0042 / 64  # steps, over the 64 rows of a step's time
    assert forecast.wait_seconds(waiting) == pytest.approx(queue)
    assert forecast.delay_seconds(waiting) == pytest.approx(queue + 15 * 0.0042)
    assert forecast.finish_seconds(waiting, sequences(20)) == pytest.approx(queue + 30 * 0.0042 / 64 + 30 * 0.0042)


def test_options_that_fix_the_length_are_heeded() -> None:
    forecast = warm()
    step = forecast.step_seconds(1)
    assert forecast.finish_seconds(IDLE, sequences(20, max_target_tokens=5)) == pytest.approx(5 * step)
    assert forecast.finish_seconds(IDLE, sequences(20, min_target_tokens=50)) == pytest.approx(50 * step)
    scored = Sequence(source_ids=(5,) * 20, options=DecodingOptions(is_scoring=True, target_prefix=(7,) * 11))
    assert forecast.finish_seconds(IDLE, [scored]) == pytest.approx(11 * step)


@given(
    steps=st.lists(st.tuples(st.integers(1, 64), st.floats(1e-5, 1.0)), min_size=1, max_size=30),
    used=st.integers(0, 64),
    waiting=st.lists(st.tuples(st.integers(1, 4), st.integers(1, 50)), max_size=20),
    more=st.tuples(st.integers(1, 4), st.integers(1, 50)),
    call=st.builds(
        lambda lengths, beam_size: sequences(*lengths, beam_size=beam_size),
        st.lists(st.integers(1, 50), min_size=1, max_size=80),
        st.integers(1, 4),
    ),
)
def test_more_ahead_never_means_less(
    steps: list[tuple[int, float]],
    used: int,
    waiting: list[tuple[int, int]],
    more: tuple[int, int],
    call: list[Sequence],
) -> None:
    forecast = Forecast()
    for num_rows, seconds in steps:
        forecast.observe_step(report(ended(), num_rows=num_rows, seconds=seconds))

    def load(used: int, waiting: Row[tuple[int, int]]) -> Load:
        return IDLE._replace(
            num_used_rows=used,
            num_waiting=len(waiting),
            num_waiting_rows=sum(rows for rows, _ in waiting),
            num_waiting_tokens=sum(tokens for _, tokens in waiting),
        )

    less = load(used, waiting)
    for greater in (load(used, [*waiting, more]), load(min(64, used + more[0]), waiting)):
        for predict in (
            forecast.delay_seconds,
            forecast.wait_seconds,
            lambda load: forecast.finish_seconds(load, call),
        ):
            assert predict(greater) >= predict(less) * (1 - 1e-9)
    assert forecast.finish_seconds(less, [*call, *call]) >= forecast.finish_seconds(less, call) * (1 - 1e-9)


class Replayed(NamedTuple):
    """What became of one call of a replay."""

    predicted_seconds: float
    predicted_delay_seconds: float
    taken_seconds: float
    length: int


def replay(share: float, *, calls: int = 700) -> list[Replayed]:
    """Calls of one sentence at `share` of what an engine can do, whose steps take 0.3 ms and 0.08 ms a row, by a clock
    that only steps move on. Targets have a half to all of their source's tokens."""
    chance = random.Random(7)
    now = 0.0
    runner = FakeRunner(max_rows=16, max_source_tokens=64, max_target_tokens=64, source_vocabulary_size=24)

    def take_time() -> None:
        nonlocal now
        now += 0.0003 + 0.00008 * runner.rows_per_step[-1]

    runner.before_step = take_time
    engine = Engine.over(runner, clock=lambda: now)
    forecast = Forecast()
    capacity = 16 / (0.0003 + 0.00008 * 16) / 19.0  # sentences a second
    due = 0.0
    pending: list[tuple[float, Sequence]] = []
    for _ in range(calls):
        due += chance.expovariate(share * capacity)
        length = chance.randint(4, 46)
        end = chance.randint(length // 2, length - 1)
        ids = [chance.randint(4, 23) for _ in range(length)]
        ids[end] = EOS_ID
        pending.append((due, Sequence(source_ids=tuple(ids), options=DecodingOptions(guards_repetition=False))))
    came: list[tuple[Sequence, float, float]] = []
    while pending or not engine.is_idle:
        if engine.is_idle and pending:
            now = max(now, pending[0][0])
        while pending and pending[0][0] <= now:
            sequence = pending.pop(0)[1]
            scheduler = engine.scheduler
            load = Load(
                num_engines=1,
                num_rows=16,
                num_used_rows=scheduler.num_used_rows,
                num_waiting=scheduler.num_waiting,
                num_waiting_rows=scheduler.num_waiting_rows,
                num_waiting_tokens=scheduler.num_waiting_tokens,
            )
            came.append((sequence, forecast.finish_seconds(load, [sequence]), forecast.delay_seconds(load)))
            engine.submit([sequence])
        forecast.observe_step(engine.step())
    return [
        Replayed(seconds, delay, sequence.finished_at - sequence.submitted_at, len(sequence.source_ids))
        for sequence, seconds, delay in came
    ]


@pytest.mark.parametrize("share", [0.3, 0.8, 1.5])
def test_few_calls_that_would_have_met_their_deadline_are_refused(share: float) -> None:
    chance = random.Random(3)
    met = wrong = missed = right = 0
    for call in replay(share):
        deadline = math.exp(chance.uniform(math.log(0.005), math.log(2.0)))
        is_refused = 0.8 * call.predicted_seconds > deadline
        if call.taken_seconds <= deadline:
            met += 1
            wrong += is_refused
        else:
            missed += 1
            right += is_refused
    assert min(met, missed) > 50
    assert wrong < 0.05 * met
    assert right > 0.6 * missed


def test_the_delay_predicted_is_about_what_a_queue_costs() -> None:
    calls = replay(1.5)[100:]
    waited = [call for call in calls if call.predicted_delay_seconds > 0.1]
    assert len(waited) > 200
    ratios = sorted(call.predicted_delay_seconds / call.taken_seconds for call in waited)
    assert 0.8 < ratios[len(ratios) // 2] < 1.25
