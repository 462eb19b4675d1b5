"""Attention over subwords to pairs of words: which source word each target word comes from, as the model saw it.

Words are made from tokens, whatever the language:

- a token that begins with a space begins a word;
- where two characters meet of which one belongs to a script written without spaces (Chinese, Japanese, Thai ...), a
  word ends: there each token is a word, and what it writes in Latin letters stays together;
- bytes that make up one character stay together;
- marks (punctuation and symbols) at either end of a word are words of their own; inside a word they stay ("file.name").

A target word's pair is the source word that got most of its attention: the attention of its tokens, averaged, summed
over the tokens of each source word. The end of sentence is no word on either side.
"""

from __future__ import annotations

import codecs
import re
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

_SPACE = "\u2581"
_BYTE = re.compile(r"<0x([0-9A-F]{2})>")
_UNSPACED = re.compile(
    "["
    "\u0e00-\u0eff"  # Thai, Lao
    "\u1000-\u109f\u1780-\u17ff"  # Burmese, Khmer
    "\u2e80-\u2fdf\u3005-\u3007\u3040-\u30ff\u31f0-\u31ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\uff66-\uff9f"
    "\U00020000-\U0003ffff"
    "]"
)


@dataclass(frozen=True, kw_only=True, slots=True)
class Word:
    """Neighbouring tokens that make up a word."""

    text: str
    """Its characters; what is no valid UTF-8 is U+FFFD."""
    start: int
    """Index of its first token."""
    stop: int
    """Index behind its last token."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Pair:
    """A target word and the source word that it looked at most."""

    source_word: int
    """Index among the source words."""
    target_word: int
    """Index among the target words."""
    weight: float
    """Share of the target word's attention that the source word got, 0 to 1."""


@dataclass(frozen=True, kw_only=True, slots=True)
class _Unit:
    """Tokens that must not be parted."""

    text: str
    start: int
    stop: int
    begins_word: bool

    @property
    def is_mark(self) -> bool:
        return all(unicodedata.category(character)[0] in "PS" for character in self.text)


def words_of(pieces: Sequence[str]) -> list[Word]:
    """The words of tokens as the vocabulary spells them, without end of sentence.

    Joined, their texts are the text without the white space between words. A token that is nothing but a space belongs
    to the word after it.
    """
    words: list[Word] = []
    group: list[_Unit] = []
    for unit in _units(pieces):
        if group and (unit.begins_word or _parts(group[-1].text[-1], unit.text[0])):
            words += _without_outer_marks(group)
            group = []
        group.append(unit)
    if group:
        words += _without_outer_marks(group)
    return words


def word_pairs(
    attention: npt.NDArray[np.float32], source_words: Sequence[Word], target_words: Sequence[Word]
) -> list[Pair]:
    """The pair of each target word, in their order; none when the source has no word.

    Args:
        attention: [T,S] of each target token over the source tokens; rows and columns of tokens that belong to no
            word, such as the end of sentence, are not used.
        source_words: those of the source tokens.
        target_words: those of the target tokens.
    """
    if not source_words:
        return []
    # [T,S] -> [T,words]: how much of its attention each target token gave to each source word
    by_word = np.stack([attention[:, word.start : word.stop].sum(axis=1) for word in source_words], axis=1)
    pairs = []
    for index, word in enumerate(target_words):
        shares = by_word[word.start : word.stop].mean(axis=0)  # [words]
        best = int(shares.argmax())  # the first of equal ones
        pairs.append(Pair(source_word=best, target_word=index, weight=float(shares[best])))
    return pairs


def _parts(before: str, after: str) -> bool:
    """Whether a word ends between two characters that no space parts."""
    return is_unspaced(before) or is_unspaced(after)


def is_unspaced(character: str) -> bool:
    """Whether a character belongs to a script that puts no spaces between words."""
    return _UNSPACED.match(character) is not None


def _without_outer_marks(group: Sequence[_Unit]) -> list[Word]:
    """A word with the marks at its ends, each as a word of its own."""
    start, stop = 0, len(group)
    while start < stop and group[start].is_mark:
        start += 1
    while stop > start and group[stop - 1].is_mark:
        stop -= 1
    inner = [group[start:stop]] if start < stop else []
    parts = [[unit] for unit in group[:start]] + [list(part) for part in inner] + [[unit] for unit in group[stop:]]
    return [Word(text="".join(unit.text for unit in part), start=part[0].start, stop=part[-1].stop) for part in parts]


def _units(pieces: Sequence[str]) -> list[_Unit]:
    """Tokens with text, bytes joined to characters; each takes in the tokens without text before it."""
    units: list[_Unit] = []
    utf8 = codecs.getincrementaldecoder("utf-8")(errors="replace")
    start = 0  # first token that belongs to no unit yet
    begins_word = False
    is_in_bytes = False

    def add(text: str, stop: int) -> None:
        nonlocal start, begins_word
        units.append(_Unit(text=text, start=start, stop=stop, begins_word=begins_word))
        start, begins_word = stop, False

    for index, piece in enumerate(pieces):
        byte = _BYTE.fullmatch(piece)
        if byte is None and is_in_bytes:
            is_in_bytes = False
            if rest := utf8.decode(b"", final=True):
                add(rest, index)
        if byte is not None:
            is_in_bytes = True
            text = utf8.decode(bytes((int(byte[1], 16),)))
        else:
            begins_word = begins_word or piece.startswith(_SPACE)
            text = piece.strip(_SPACE).replace(_SPACE, " ")
        if inner := text.strip():
            add(inner, index + 1 - len(utf8.getstate()[0]))  # bytes that may begin the next character are not in it
        if text != text.rstrip() or (byte is None and piece.endswith(_SPACE)):  # a byte may be a space too
            begins_word = True
    if is_in_bytes and (rest := utf8.decode(b"", final=True)):
        add(rest, len(pieces))
    return units
