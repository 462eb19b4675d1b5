"""What is due to a caller is counted by its name, and all of a call or nothing is taken."""

import pytest

from service.caller import ANONYMOUS, Caller
from service.caller_quotas import BURST_SECONDS, CallerQuotas

SHOP = Caller(name="shop", segments_per_second=2.0, tokens_per_second=10.0)


def take(quotas: CallerQuotas, caller: Caller, segments: int, tokens: int, now: float = 0.0) -> float:
    return quotas.take(caller, num_segments=segments, num_tokens=tokens, now=now)


def test_a_caller_without_rates_takes_what_it_likes() -> None:
    quotas = CallerQuotas()
    assert [take(quotas, ANONYMOUS, 10**6, 10**6) for _ in range(3)] == [0.0] * 3


def test_both_rates_hold_and_a_refusal_takes_of_neither() -> None:
    quotas = CallerQuotas()
    most_segments, most_tokens = round(2 * BURST_SECONDS), round(10 * BURST_SECONDS)
    assert take(quotas, SHOP, most_segments - 1, 0) == 0.0
    assert take(quotas, SHOP, 2, most_tokens) == pytest.approx(0.5)
    assert take(quotas, SHOP, 1, most_tokens) == 0.0, "the tokens are still there"
    assert take(quotas, SHOP, 0, 1) == pytest.approx(0.1)
    assert take(quotas, SHOP, 0, 1, now=0.1) == 0.0


def test_each_caller_has_its_own_and_a_new_rate_begins_anew() -> None:
    quotas = CallerQuotas()
    assert take(quotas, SHOP, 20, 0) == 0.0
    assert take(quotas, SHOP, 1, 0) > 0.0
    assert take(quotas, Caller(name="bank", segments_per_second=2.0), 20, 0) == 0.0
    assert take(quotas, Caller(name="shop", segments_per_second=3.0), 30, 0) == 0.0
