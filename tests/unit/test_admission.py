"""Which calls are taken while too much is in progress."""

from types import SimpleNamespace
from typing import Any

import pytest

from service.admission import Admission
from service.caller import Caller
from service.config import LimitsConfig
from service.refusals import OverloadedError, UnreachableDeadlineError
from service.request import Priority

LIMITS = LimitsConfig(standing_delay_seconds=1.0, standing_interval_seconds=0.5)


class Model:
    """A model whose predictions a test sets."""

    def __init__(self, *, is_full: bool = False, delay: float = 0.0, wait: float = 0.0, finish: float = 0.0) -> None:
        self.loop = SimpleNamespace(
            is_full=is_full, is_full_for=lambda priority, caller: (priority, caller) in self.full_for
        )
        self.full_for: set[tuple[Priority, str]] = set()
        self.delay = delay
        self.forecast = SimpleNamespace(
            delay_seconds=lambda _: self.delay, wait_seconds=lambda _: wait, finish_seconds=lambda *_: finish
        )

    def delay_seconds(self) -> float:
        return self.delay

    def load(self, priority: Priority) -> Priority:
        """Stands for what is ahead of calls of that priority."""
        return priority


def model(**fields: Any) -> Any:
    return Model(**fields)


def call(*, deadline: float | None = None, priority: Priority = Priority.INTERACTIVE, **fields: Any) -> Any:
    return SimpleNamespace(caller=Caller(**fields), deadline=deadline, remaining=deadline, priority=priority)


def segments(*lengths: int) -> Any:
    return [SimpleNamespace(source_ids=(5,) * length) for length in lengths]


class Clock:
    """Seconds that a test sets."""

    now = 100.0

    def __call__(self) -> float:
        return self.now


def reason_of(refused: Any) -> str:
    with pytest.raises(OverloadedError) as caught:
        refused()
    return caught.value.reason


def test_as_many_calls_as_allowed_are_taken() -> None:
    admission = Admission(LimitsConfig(max_concurrent_calls=2), lambda: [model()])
    admission.enter(call())
    admission.enter(call())
    for _ in range(3):  # refusing takes no place
        assert reason_of(lambda: admission.enter(call())) == "TOO_MANY_CALLS"
    admission.leave(call())
    admission.enter(call())
    assert reason_of(lambda: admission.enter(call())) == "TOO_MANY_CALLS"


def test_a_caller_has_as_many_calls_as_are_due_to_it() -> None:
    admission = Admission(LimitsConfig(max_calls_per_caller=2), lambda: [model()])
    shop, bank = call(name="shop"), call(name="bank", max_calls=1)
    admission.enter(shop)
    admission.enter(shop)
    for _ in range(2):
        assert reason_of(lambda: admission.enter(shop)) == "TOO_MANY_CALLS_OF_CALLER"
    admission.enter(bank)
    assert reason_of(lambda: admission.enter(bank)) == "TOO_MANY_CALLS_OF_CALLER"
    admission.enter(call())
    admission.leave(shop)
    admission.enter(shop)
    assert reason_of(lambda: admission.enter(shop)) == "TOO_MANY_CALLS_OF_CALLER"
    for each in (shop, shop, bank, call()):
        admission.leave(each)
    assert not admission._num_calls_of, "who has none is forgotten"


def test_without_a_limit_a_caller_may_have_all() -> None:
    admission = Admission(LimitsConfig(max_concurrent_calls=50), lambda: [model()])
    for _ in range(50):
        admission.enter(call(name="shop"))


def test_while_one_model_has_room_the_request_decides() -> None:
    full, free = model(is_full=True), model()
    full.full_for = {(Priority.INTERACTIVE, ""), (Priority.BULK, "shop")}
    admission = Admission(LimitsConfig(), lambda: [full, free])
    admission.enter(call())
    admission.check(call(), free)
    assert reason_of(lambda: admission.check(call(), full)) == "QUEUE_FULL"
    assert reason_of(lambda: admission.check(call(name="shop", priority=Priority.BULK), full)) == "QUEUE_FULL"
    admission.check(call(name="shop"), full)
    free.loop.is_full = True
    assert reason_of(lambda: admission.enter(call())) == "QUEUE_FULL"


def test_a_delay_that_stands_is_refused_for_its_own_model() -> None:
    clock, busy, idle = Clock(), model(delay=3.0), model()
    admission = Admission(LIMITS, lambda: [busy, idle], clock=clock)
    admission.check(call(), busy)
    clock.now += 0.5
    assert reason_of(lambda: admission.check(call(), busy)) == "STANDING_DELAY"
    admission.check(call(), idle)
    busy.delay = 0.9
    admission.check(call(), busy)


def test_bulk_calls_may_wait_as_long_as_the_queue_has_room() -> None:
    clock, busy = Clock(), model(delay=3.0)
    busy.forecast.delay_seconds = lambda load: 3.0 if load is Priority.BULK else 0.1
    admission = Admission(LIMITS, lambda: [busy], clock=clock)
    for _ in range(3):
        admission.check(call(priority=Priority.BULK), busy)
        admission.check(call(), busy)  # bulk is not in its way
        clock.now += 0.5


def test_a_deadline_is_refused_when_four_fifths_of_the_prediction_are_too_long() -> None:
    clock = Clock()
    slow = model(wait=10.0, finish=20.0)
    admission = Admission(LIMITS, lambda: [slow], clock=clock)
    admission.check(call(), slow)
    admission.check_sequences(call(), slow, segments(5))
    admission.check(call(deadline=108.0), slow)
    with pytest.raises(UnreachableDeadlineError):
        admission.check(call(deadline=107.9), slow)
    admission.check_sequences(call(deadline=116.0), slow, segments(5))
    with pytest.raises(UnreachableDeadlineError):
        admission.check_sequences(call(deadline=115.9), slow, segments(5))
    lenient = Admission(LimitsConfig(refuse_late=False), lambda: [slow], clock=clock)
    lenient.check(call(deadline=100.1), slow)
    lenient.check_sequences(call(deadline=100.1), slow, segments(5))


def test_where_all_are_refused_for_their_deadlines_one_a_second_is_begun() -> None:
    clock, slow, other = Clock(), model(finish=20.0), model(finish=20.0)
    admission = Admission(LIMITS, lambda: [slow, other], clock=clock)

    def is_taken(model: Any) -> bool:
        try:
            admission.check_sequences(call(deadline=clock.now + 1.0), model, segments(5))
        except UnreachableDeadlineError:
            return False
        return True

    for _ in range(2):
        assert [is_taken(slow), is_taken(slow), is_taken(other)] == [False] * 3
        clock.now += 0.9
        assert not is_taken(slow)
        clock.now += 0.1
        assert [is_taken(slow), is_taken(slow), is_taken(other), is_taken(other)] == [True, False, True, False]
        clock.now += 0.5
        admission.check_sequences(call(), slow, segments(5))
        admission.check_sequences(call(), other, segments(5))
        clock.now += 5.0  # nobody was refused since: nothing is owed


def test_a_quota_is_of_segments_and_of_their_tokens() -> None:
    clock, free = Clock(), model()
    admission = Admission(LIMITS, lambda: [free], clock=clock)
    shop = call(name="shop", tokens_per_second=3.0)
    admission.check_sequences(shop, free, segments(10, 20))
    with pytest.raises(OverloadedError) as caught:
        admission.check_sequences(shop, free, segments(3))
    assert (caught.value.reason, caught.value.retry_seconds) == ("QUOTA_EXCEEDED", pytest.approx(1.0))
    clock.now += 1.0
    admission.check_sequences(shop, free, segments(3))


def test_a_call_that_is_late_anyhow_costs_its_caller_nothing() -> None:
    slow = model(finish=20.0)
    admission = Admission(LIMITS, lambda: [slow], clock=Clock())
    with pytest.raises(UnreachableDeadlineError):
        admission.check_sequences(call(deadline=101.0, segments_per_second=1.0), slow, segments(*[5] * 10))
    admission.check_sequences(call(segments_per_second=1.0), slow, segments(*[5] * 10))


def test_texts_that_wait_to_be_cut_are_counted_and_one_alone_is_taken() -> None:
    admission = Admission(LimitsConfig(max_waiting_characters=100), lambda: [model()])
    with admission.cutting(1_000):
        assert reason_of(lambda: admission.cutting(1).__enter__()) == "QUEUE_FULL"
    with admission.cutting(60):
        with admission.cutting(40):
            assert reason_of(lambda: admission.cutting(1).__enter__()) == "QUEUE_FULL"
        with pytest.raises(ZeroDivisionError), admission.cutting(40):
            raise ZeroDivisionError
        with admission.cutting(40):
            pass


@pytest.mark.parametrize(("delay", "expected"), [(0.0, 0.5), (0.8, 0.5), (1.5, 0.75), (4.0, 3.0), (1000.0, 30.0)])
def test_when_to_come_back(delay: float, expected: float) -> None:
    busy, least = model(delay=delay + 1.0), model(delay=delay)
    assert Admission(LIMITS, lambda: [busy, least]).retry_seconds() == expected


def test_what_bulk_waits_for_does_not_keep_interactive_callers_away(monkeypatch: pytest.MonkeyPatch) -> None:
    clock, busy = Clock(), model(delay=3.0)
    monkeypatch.setattr(busy, "delay_seconds", lambda: 20.0)  # of all work
    admission = Admission(LIMITS, lambda: [busy], clock=clock)
    admission.check(call(), busy)
    clock.now += 0.5
    with pytest.raises(OverloadedError) as caught:
        admission.check(call(), busy)
    assert caught.value.retry_seconds == 2.0
