"""Tokens to words, and attention to pairs of words."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from service.alignment import Word, word_pairs, words_of


def texts(*pieces: str) -> list[str]:
    return [word.text for word in words_of(pieces)]


@pytest.mark.parametrize(
    ("pieces", "expected"),
    [
        (["▁The", "▁func", "tion", "▁returns"], ["The", "function", "returns"]),
        (["The", "▁", "func", "tion", "."], ["The", "function", "."]),
        (["▁a", "▁(", "bo", "ok", ")", "."], ["a", "(", "book", ")", "."]),
        (["▁file", ".", "name", "▁don", "'", "t", "!"], ["file.name", "don't", "!"]),
        (["该", "函数", "返回", "。"], ["该", "函数", "返回", "。"]),
        (["一个", "▁nu", "ll", "▁", "指针", "。"], ["一个", "null", "指针", "。"]),
        (["A", "PI", "函数", "x", "1"], ["API", "函数", "x1"]),
        (["<0xE6>", "<0x8C>", "<0x87>", "针"], ["指", "针"]),
        (["▁a", "<0xF0>", "<0x9F>", "<0x99>", "<0x82>", "▁b"], ["a", "🙂", "b"]),
        (["▁a", "<0xE6>", "▁b"], ["a", "\ufffd", "b"]),
        (["▁a", "<0x20>", "b", "▁"], ["a", "b"]),
        (["▁...", "▁…", "?"], ["...", "…", "?"]),
        (["▁na", "ï", "ve"], ["naïve"]),
        (["▁of▁the", "▁day"], ["of the", "day"]),
        (["▁", "▁"], []),
        ([], []),
    ],
)
def test_words(pieces: list[str], expected: list[str]) -> None:
    assert texts(*pieces) == expected


PIECES = st.lists(
    st.sampled_from(
        ["▁", "▁the", "re", "▁.", ".", ",", "指针", "▁指", "ll", "x▁", "<0xE6>", "<0x8C>", "<0x87>", "<0xFF>", "<0x20>"]
    ),
    max_size=12,
)


@given(pieces=PIECES)
def test_words_follow_each_other_and_hold_every_character(pieces: list[str]) -> None:
    words = words_of(pieces)
    stop = 0
    for word in words:
        assert stop <= word.start < word.stop <= len(pieces)
        assert word.start == stop  # a token without text belongs to the word after it
        assert word.text
        assert word.text == word.text.strip()
        stop = word.stop
    assert all(piece.strip("▁") in ("", "<0x20>") for piece in pieces[stop:])
    raw = b"".join(
        bytes([int(piece[3:5], 16)]) if piece.startswith("<0x") else piece.replace("▁", " ").encode()
        for piece in pieces
    )
    whole = "".join(raw.decode("utf-8", errors="replace").split())
    if "\ufffd" not in whole:  # bytes that are no UTF-8 are told apart by token
        assert "".join("".join(word.text.split()) for word in words) == whole


def test_pairs_are_the_source_words_with_most_attention() -> None:
    source = words_of(["▁The", "▁func", "tion", "▁returns", "."])
    target = words_of(["函数", "返回", "▁nu", "ll"])
    attention = np.array(
        [  # The  func tion returns  .   </s>
            [0.30, 0.20, 0.25, 0.05, 0.10, 0.10],  # 函数: no single token of "function" has most, together they do
            [0.05, 0.05, 0.05, 0.20, 0.05, 0.60],  # 返回: the end of sentence is no word
            [0.10, 0.00, 0.00, 0.40, 0.50, 0.00],  # nu
            [0.10, 0.00, 0.00, 0.70, 0.20, 0.00],  # ll
            [0.00, 0.00, 0.00, 0.00, 0.00, 1.00],  # </s>
        ],
        np.float32,
    )
    pairs = word_pairs(attention, source, target)
    assert [(pair.target_word, source[pair.source_word].text) for pair in pairs] == [
        (0, "function"),
        (1, "returns"),
        (2, "returns"),
    ]
    assert [pair.weight for pair in pairs] == pytest.approx([0.45, 0.2, 0.55])


def test_equal_attention_goes_to_the_first_word_and_no_word_to_nobody() -> None:
    words = [Word(text="a", start=0, stop=1), Word(text="b", start=1, stop=2)]
    attention = np.full((1, 3), 1 / 3, np.float32)
    (pair,) = word_pairs(attention, words, words[:1])
    assert pair.source_word == 0
    assert word_pairs(attention, [], words) == []
    assert word_pairs(attention, words, []) == []
