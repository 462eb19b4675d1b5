"""Which calls are taken while too much is in progress."""

from types import SimpleNamespace
from typing import Any

import pytest

from service.admission import Admission
from service.config import LimitsConfig
from service.refusals import OverloadedError

CALL: Any = None


def model(*, is_full: bool = False, oldest_wait_seconds: float = 0.0) -> Any:
    return SimpleNamespace(loop=SimpleNamespace(is_full=is_full, oldest_wait_seconds=lambda: oldest_wait_seconds))


def reason_of(refused: Any) -> str:
    with pytest.raises(OverloadedError) as caught:
        refused()
    return caught.value.reason


def test_as_many_calls_as_allowed_are_taken() -> None:
    admission = Admission(LimitsConfig(max_concurrent_calls=2), lambda: [model()])
    admission.enter(CALL)
    admission.enter(CALL)
    for _ in range(3):  # refusing takes no place
        assert reason_of(lambda: admission.enter(CALL)) == "TOO_MANY_CALLS"
    admission.leave(CALL)
    admission.enter(CALL)
    assert reason_of(lambda: admission.enter(CALL)) == "TOO_MANY_CALLS"


def test_while_one_model_has_room_the_request_decides() -> None:
    full, free = model(is_full=True), model()
    admission = Admission(LimitsConfig(), lambda: [full, free])
    admission.enter(CALL)
    admission.check(CALL, free)
    assert reason_of(lambda: admission.check(CALL, full)) == "QUEUE_FULL"
    free.loop.is_full = True
    assert reason_of(lambda: admission.enter(CALL)) == "QUEUE_FULL"


@pytest.mark.parametrize(("waited", "expected"), [(0.0, 0.5), (0.8, 0.5), (4.0, 2.0), (1000.0, 30.0)])
def test_when_to_come_back(waited: float, expected: float) -> None:
    models = [model(), model(oldest_wait_seconds=waited)]
    assert Admission(LimitsConfig(retry_seconds=0.5), lambda: models).retry_seconds() == expected
