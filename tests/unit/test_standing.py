"""A queue that stands is told from a burst that passes."""

import random

from service.standing import StandingDelay


def watched(target_seconds: float = 1.0, interval_seconds: float = 0.5) -> StandingDelay:
    return StandingDelay(target_seconds=target_seconds, interval_seconds=interval_seconds)


def test_a_burst_passes_and_what_stands_does_not() -> None:
    standing = watched()
    assert not any(standing.refuses(3.0, now / 100) for now in range(50)), "a burst"
    assert standing.refuses(3.0, 0.5)
    assert standing.refuses(1.01, 0.6)
    assert not standing.refuses(1.0, 0.7), "at the target"


def test_a_delay_that_falls_for_a_moment_begins_anew() -> None:
    standing = watched()
    assert not standing.refuses(3.0, 0.0)
    assert not standing.refuses(0.9, 0.4)
    assert not standing.refuses(3.0, 0.45)
    assert not standing.refuses(3.0, 0.94)
    assert standing.refuses(3.0, 0.96)


def test_refusing_goes_on_while_it_hovers_and_ends_when_nobody_was_refused_for_four_intervals() -> None:
    standing = watched()
    standing.refuses(3.0, 0.0)
    assert standing.refuses(3.0, 0.5)
    for step in range(1, 20):
        assert not standing.refuses(0.95, 0.5 + 0.2 * step - 0.1)
        assert standing.refuses(1.05, 0.5 + 0.2 * step)
    assert standing.refuses(1.05, 4.3 + 1.9)
    assert not standing.refuses(1.05, 6.2 + 2.1)


def test_a_delay_that_nobody_met_fell_by_itself() -> None:
    """Two callers who take turns with large calls: each meets the other's, and nothing stands."""
    standing = watched()
    assert not any(standing.refuses(3.0, 3.2 * turn) for turn in range(20))
    dense = watched()
    assert any(dense.refuses(3.0, 2.0 * turn) for turn in range(20)), "no time to fall below the target"


def test_a_target_of_zero_refuses_nobody() -> None:
    standing = watched(target_seconds=0.0)
    assert not any(standing.refuses(1e6, now / 10) for now in range(100))


def accepted(rate: float, *, seconds: float, target_seconds: float) -> tuple[list[float], list[float], int]:
    """Callers at random times in front of a server that does one second of work a second, each call 10 ms.

    Returns:
        When the calls that were taken came, the delay that each met, and how many were refused.
    """
    chance = random.Random(1)
    standing = watched(target_seconds, 0.1)
    delay, now, refused = 0.0, 0.0, 0
    times: list[float] = []
    delays: list[float] = []
    while now < seconds:
        gap = chance.expovariate(rate)
        now += gap
        delay = max(0.0, delay - gap)
        if standing.refuses(delay, now):
            refused += 1
        else:
            times.append(now)
            delays.append(delay)
            delay += 0.01
    return times, delays, refused


def test_twice_the_capacity_is_kept_at_the_target_without_losing_throughput() -> None:
    times, delays, refused = accepted(200.0, seconds=60.0, target_seconds=0.05)
    late = [delay for time, delay in zip(times, delays, strict=True) if time > 1.0]
    assert max(late) <= 0.05
    assert len(late) > 0.98 * 59.0 * 100.0
    assert refused > 5_000


def test_half_the_capacity_is_never_refused() -> None:
    assert accepted(50.0, seconds=60.0, target_seconds=0.1)[2] == 0
