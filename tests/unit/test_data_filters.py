"""Each filter drops what it is for, keeps the limit itself, and is the one that is counted."""

from __future__ import annotations

from collections import Counter

import pytest

from training.config import FilterConfig
from training.corpus import SentencePair
from training.filters import DropReason, PairFilter, count_by_name, script_pattern, script_share

KEEP_ALL = FilterConfig(drop_copied_source=False, drop_duplicates=False)


def check(source: str, target: str, config: FilterConfig) -> DropReason | None:
    return PairFilter(config, "en", "zh").check_text(SentencePair(source, target))


@pytest.mark.parametrize(
    ("source", "target", "config", "reason"),
    [
        ("", "空", KEEP_ALL, DropReason.EMPTY),
        ("empty", "", KEEP_ALL, DropReason.EMPTY),
        ("ab", "空的字", FilterConfig(min_characters=3), DropReason.TOO_SHORT),
        ("abc", "空的字", FilterConfig(min_characters=3), None),
        ("a" * 11, "空", FilterConfig(max_characters=10), DropReason.TOO_LONG),
        ("a" * 10, "空", FilterConfig(max_characters=10), None),
        ("a" * 7, "空的字", FilterConfig(max_character_ratio=2.0), DropReason.CHARACTER_RATIO),
        ("a", "空的字", FilterConfig(max_character_ratio=2.0), DropReason.CHARACTER_RATIO),
        ("a" * 6, "空的字", FilterConfig(max_character_ratio=2.0), None),
        ("GPU", "GPU", FilterConfig(), DropReason.COPIED_SOURCE),
        ("GPU", "GPU", KEEP_ALL, None),
        ("left alone", "left as is", FilterConfig(min_script_share=0.1), DropReason.SCRIPT),
        ("空", "的", FilterConfig(min_script_share=0.1), DropReason.SCRIPT),
        ("use numpy", "用 numpy", FilterConfig(min_script_share=1 / 6), None),
        ("1 + 1", "1 + 1。", FilterConfig(min_script_share=0.9), None),
    ],
)
def test_text_rules(source: str, target: str, config: FilterConfig, reason: DropReason | None) -> None:
    assert check(source, target, config) is reason


@pytest.mark.parametrize(
    ("num_source", "num_target", "reason"),
    [
        (10, 10, None),
        (11, 10, DropReason.TOO_MANY_TOKENS),
        (10, 11, DropReason.TOO_MANY_TOKENS),
        (9, 3, None),
        (3, 10, DropReason.TOKEN_RATIO),
        (0, 4, DropReason.TOKEN_RATIO),
    ],
)
def test_token_rules(num_source: int, num_target: int, reason: DropReason | None) -> None:
    pair_filter = PairFilter(FilterConfig(max_tokens=10, max_token_ratio=3.0), "en", "zh")
    assert pair_filter.check_tokens(num_source, num_target) is reason


def test_a_pair_is_a_duplicate_only_as_a_whole() -> None:
    pair_filter = PairFilter(FilterConfig(), "en", "zh")
    pairs = [SentencePair("a", "b"), SentencePair("a", "c"), SentencePair("d", "b"), SentencePair("a", "b")]
    assert [pair_filter.check_text(pair) for pair in pairs] == [None, None, None, DropReason.DUPLICATE]


@pytest.mark.parametrize(
    ("pair", "reason"),
    [
        (SentencePair("long", "b"), DropReason.TOO_LONG),
        (SentencePair("GPU", "GPU"), DropReason.COPIED_SOURCE),
    ],
)
def test_a_pair_dropped_for_another_reason_is_not_remembered(pair: SentencePair, reason: DropReason) -> None:
    pair_filter = PairFilter(FilterConfig(max_characters=3), "en", "zh")
    assert [pair_filter.check_text(pair) for _ in range(2)] == [reason] * 2


@pytest.mark.parametrize(
    ("text", "language", "share"),
    [
        ("返回 int", "zh", 2 / 5),
        ("返回 int", "en", 3 / 5),
        ("größe", "de", 1.0),
        ("テスト済み", "ja", 1.0),
        ("привет", "ru-RU", 1.0),
        ("12 ÷ 3", "zh", 1.0),
    ],
)
def test_script_share(text: str, language: str, share: float) -> None:
    assert script_share(text, script_pattern(language)) == pytest.approx(share)


def test_a_language_of_unknown_script_is_refused_when_the_rule_is_on() -> None:
    PairFilter(FilterConfig(), "tlh", "zh")
    with pytest.raises(ValueError, match=r"`min_script_share` needs a language whose script is known .* got 'tlh'"):
        PairFilter(FilterConfig(min_script_share=0.1), "tlh", "zh")


def test_counts_come_in_the_order_of_the_rules() -> None:
    counts = Counter({DropReason.DUPLICATE: 2, DropReason.EMPTY: 1})
    assert list(count_by_name(counts).items()) == [("empty", 1), ("duplicate", 2)]
