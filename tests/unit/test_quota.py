"""How much a caller may ask for, a second."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from service.quota import TokenBucket


def test_a_full_bucket_gives_its_burst_and_no_more() -> None:
    bucket = TokenBucket(10.0, 5.0)
    assert [bucket.take(1, 100.0) for _ in range(5)] == [0.0] * 5
    assert bucket.take(1, 100.0) == pytest.approx(0.1)


def test_what_is_refused_costs_nothing() -> None:
    bucket = TokenBucket(10.0, 5.0)
    assert bucket.take(4, 100.0) == 0.0
    assert bucket.take(3, 100.0) == pytest.approx(0.2)
    assert bucket.take(3, 100.0) == pytest.approx(0.2)
    assert bucket.take(1, 100.0) == 0.0


def test_asking_takes_nothing() -> None:
    bucket = TokenBucket(10.0, 5.0)
    assert bucket.wait_seconds(5, 100.0) == 0.0
    assert bucket.take(5, 100.0) == 0.0
    assert bucket.wait_seconds(5, 100.0) == pytest.approx(0.5)


def test_a_bucket_never_holds_more_than_its_burst() -> None:
    bucket = TokenBucket(10.0, 5.0)
    assert bucket.take(5, 0.0) == 0.0
    assert bucket.take(5, 1e6) == 0.0
    assert bucket.take(5, 1e6) == pytest.approx(0.5)


def test_more_than_a_bucket_holds_is_paid_for_after() -> None:
    bucket = TokenBucket(10.0, 5.0)
    assert bucket.take(1, 0.0) == 0.0
    assert bucket.take(50, 0.0) == pytest.approx(0.1), "only a full bucket gives more than it holds"
    assert bucket.take(50, 0.1) == 0.0
    assert bucket.take(1, 0.1) == pytest.approx(4.6)


@pytest.mark.parametrize(("rate", "burst"), [(0.0, 1.0), (1.0, 0.0), (-1.0, 1.0), (float("nan"), 1.0)])
def test_a_bucket_needs_a_rate_and_a_burst(rate: float, burst: float) -> None:
    with pytest.raises(ValueError, match="above 0"):
        TokenBucket(rate, burst)


@given(
    rate=st.floats(0.01, 1e6),
    burst_seconds=st.floats(0.1, 60.0),
    asked=st.lists(st.tuples(st.floats(0.0, 1.0), st.floats(0.0, 5.0)), max_size=50),
    begins_at=st.floats(0.0, 1e7),
)
def test_who_waits_as_told_gets_it_and_nobody_more_than_the_rate(
    rate: float, burst_seconds: float, asked: list[tuple[float, float]], begins_at: float
) -> None:
    burst = rate * burst_seconds
    bucket = TokenBucket(rate, burst)
    now, taken = begins_at, 0.0
    for share, pause in asked:
        now += pause
        n = share * burst
        seconds = bucket.take(n, now)
        if seconds:
            now += seconds
            assert bucket.take(n, now) == 0.0
        taken += n
        most = burst + rate * (now - begins_at)
        assert taken <= most + 1e-5 * rate * len(asked) + 1e-6 * most
