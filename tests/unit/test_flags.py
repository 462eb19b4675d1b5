"""Signs that a translation went wrong."""

import random
from collections import Counter

import pytest

from service.flags import is_repetitive, lost_placeholders, placeholders


@pytest.mark.parametrize(
    ("target", "is_loop"),
    [
        ([5, 6, 7, 8, 9], False),
        ([5] * 6, True),
        ([5] * 5, False),  # "!!!!!"
        ([5, 6] * 4, True),
        ([5, 6] * 3, False),
        ([9, 8, 7] + [5, 6, 7] * 4 + [1, 2], True),  # in the middle
        (list(range(20)) * 4, True),  # a whole sentence again and again
        (list(range(20)) * 3, False),
        ([5, 6, 5, 7] * 3 + [5, 6, 5, 8], False),
        ([], False),
    ],
)
def test_loops(target: list[int], is_loop: bool) -> None:
    assert is_repetitive(target, source_ids=[1, 2, 3]) is is_loop


def test_a_source_that_loops_may_be_answered_so() -> None:
    assert not is_repetitive([5] * 8, source_ids=[4] * 8)
    assert is_repetitive([5] * 8, source_ids=[4] * 3)


def test_any_loop_of_four_is_found_and_no_random_text_is_one() -> None:
    generator = random.Random(1)
    for _ in range(300):
        period = generator.randint(2, 20)
        loop = [generator.randrange(8000) for _ in range(period)]
        around = [generator.randrange(8000) for _ in range(10)]
        assert is_repetitive(around + loop * 4 + around, source_ids=around)
        assert not is_repetitive([generator.randrange(8000) for _ in range(100)], source_ids=around)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("Hello {name}, you have {0} of {1:.2f} and {}.", ["{name}", "{0}", "{1:.2f}", "{}"]),
        ("${HOME} and {{user.name}}", ["${HOME}", "{{user.name}}"]),
        ("%s has %d, %(count)s, %1$s, %.2f, %5d and %ld", ["%s", "%d", "%(count)s", "%1$s", "%.2f", "%5d", "%ld"]),
        ("%1 of %2", ["%1", "%2"]),
        ("a <ph0> b <0>c</0> d <g1/>", ["<ph0>", "<0>", "</0>", "<g1/>"]),
        ("100% of it, 50 % done, 5%. 20%off", []),
        ("if (a < 1 && b > 2) { return; }", []),
        ("{a} {a} {b}", ["{a}", "{a}", "{b}"]),
        ("unclosed {name and %( too", []),
    ],
)
def test_placeholders(text: str, expected: list[str]) -> None:
    assert placeholders(text) == Counter(expected)


@pytest.mark.parametrize(
    ("source", "target", "lost"),
    [
        ("Hello {name}.", "你好，{name}。", []),
        ("Hello {name}.", "你好，{名称}。", ["{name}"]),
        ("%s: %s", "%s：", ["%s"]),  # as many as there were
        ("%s: %d", "%d：%s", []),  # in any order
        ("no sign", "%s", []),  # one more is not one lost
        ("at 5% more", "多5%", []),
    ],
)
def test_lost_placeholders(source: str, target: str, lost: list[str]) -> None:
    assert lost_placeholders(source, target) == Counter(lost)
