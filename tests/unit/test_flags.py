"""Signs that a translation went wrong."""

from collections import Counter

import pytest

from service.flags import lost_placeholders, placeholders


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
