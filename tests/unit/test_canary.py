"""When do translations of a new model count as those of the old one?"""

import pytest

from service.canary import CanaryReport, similarity


@pytest.mark.parametrize(
    ("one", "other", "wanted"),
    [
        ("", "", 1.0),
        ("ab", "ab", 1.0),
        ("a b\n", "ab", 1.0),
        ("ab", "cd", 0.0),
        ("ab", "", 0.0),
        ("ab", "ac", 2 * 1 / 6),
        ("abab", "ab", 2 * 3 / 8),
    ],
)
def test_similarity(one: str, other: str, wanted: float) -> None:
    assert similarity(one, other) == similarity(other, one) == pytest.approx(wanted)


def test_what_is_refused() -> None:
    good = CanaryReport(num_texts=4, num_compared=4, mean_similarity=0.5)
    assert good.problem(0.5) is None
    assert CanaryReport().problem(1.0) is None
    bad = CanaryReport(num_texts=4, num_compared=4, mean_similarity=0.499)
    assert "at least 0.5 with the old model's, but have 0.499" in str(bad.problem(0.5))
    assert "0.5" in str(CanaryReport(num_texts=4, num_compared=4, mean_similarity=float("nan")).problem(0.5))
    assert "1 of 4" in str(CanaryReport(num_texts=4, num_compared=4, num_emptied=1).problem(0.0))
    assert "but the new model failed." in str(CanaryReport(failure="the new model failed").problem(0.0))
