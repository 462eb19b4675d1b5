"""Raw text to segments: which characters are translated together (`service.joining` puts the translations together).

An item of a request is cut into *segments*, mostly sentences, whose texts joined are the item: no character is lost or
seen twice. Line breaks always end a segment. White space around a segment is kept beside it and never translated, so
the layout of a text survives. A sentence longer than the model takes is split at clause punctuation, else at white
space, else anywhere, and says so (`is_split`).
"""

import re
import unicodedata
from collections.abc import Callable, Iterator
from dataclasses import dataclass

Encode = Callable[[str], list[int]]
"""Source ids of a text, end of sentence included (`Tokenizer.encode_source`)."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Segment:
    """A piece of an item; `leading + core + trailing` are its characters."""

    leading: str
    """White space before the text; empty but for the first segment of an item or line."""
    core: str
    """What is translated: no line break inside, no white space at either end. Empty when the segment is blank."""
    trailing: str
    """White space after the text, line breaks included."""
    source_ids: tuple[int, ...]
    """Token ids of the core, end of sentence included; empty when the segment is blank."""
    is_split: bool = False
    """Whether the sentence was too long for the model and this is a part of it."""

    @property
    def source_text(self) -> str:
        """The characters of this segment."""
        return self.leading + self.core + self.trailing


# Words before a period that never end a sentence: a name or a number follows.
_TITLES = frozenset(
    [
        "mr",
        "mrs",
        "ms",
        "mx",
        "dr",
        "prof",
        "rev",
        "hon",
        "st",
        "sr",
        "jr",
        "gen",
        "col",
        "lt",
        "sgt",
        "capt",
        "cmdr",
        "gov",
        "sen",
        "rep",
        "pres",
        "messrs",
        "mme",
        "mlle",
        "vs",
        "cf",
        "approx",
        "resp",
        "incl",
        "excl",
        "viz",
        "e.g",
        "i.e",
        "eg",
        "ie",
        "ca",
        "al",
        "op",
        "cit",
    ]
)
# ... that do not end one when a number follows ("No. 5", "Fig. 2", "Jan. 3").
_BEFORE_NUMBER = frozenset(
    [
        "no",
        "nos",
        "nr",
        "fig",
        "figs",
        "vol",
        "vols",
        "p",
        "pp",
        "ch",
        "chap",
        "sec",
        "sect",
        "eq",
        "eqs",
        "art",
        "ed",
        "eds",
        "pt",
        "ver",
        "v",
        "rev",
        "ref",
        "refs",
        "tab",
        "app",
        "jan",
        "feb",
        "mar",
        "apr",
        "jun",
        "jul",
        "aug",
        "sep",
        "sept",
        "oct",
        "nov",
        "dec",
    ]
)
# ... that may: they do when a typical first word of a sentence follows ("in the U.S. The next day").
_STARTERS = frozenset(
    [
        "the",
        "a",
        "an",
        "this",
        "that",
        "these",
        "those",
        "it",
        "its",
        "he",
        "she",
        "they",
        "we",
        "you",
        "i",
        "in",
        "on",
        "at",
        "if",
        "when",
        "while",
        "after",
        "before",
        "but",
        "however",
        "and",
        "so",
        "for",
        "to",
        "as",
        "there",
        "then",
        "what",
        "why",
        "how",
        "who",
        "where",
        "his",
        "her",
        "their",
        "our",
        "my",
        "your",
        "please",
        "see",
        "note",
        "is",
        "are",
        "do",
        "does",
        "did",
        "can",
    ]
)
_CLOSERS = "\"'”’»)]}｣」』】》〉）］｝"
_OPENERS = "\"'“‘«([{¿¡「『【《〈（"
# Ends of sentences that need white space or the end of the line after them, and those that do not.
_SPACED_ENDS = ".!?…‼⁇⁈⁉؟۔।॥։።፧။៕។"
_UNSPACED_ENDS = "。！？｡"
_SENTENCE_END = re.compile(
    # Possessive, and begun only where a run begins: a text of nothing but stops must not take quadratic time.
    rf"(?<![{re.escape(_SPACED_ENDS)}])(?P<spaced>[{re.escape(_SPACED_ENDS)}]++)[{re.escape(_CLOSERS)}]*+\s++"
    rf"|[{_UNSPACED_ENDS}][{_UNSPACED_ENDS}…!?]*+[{re.escape(_CLOSERS)}]*+\s*+"
)
_LAST_WORD = re.compile(r"[^\s\"'“‘«(\[{/]*\Z")
_NEXT_WORD = re.compile(rf"[{re.escape(_OPENERS)}]*(\w+)?")
_ACRONYM = re.compile(r"(?:[A-Za-z]\.)+[A-Za-z]\Z")
_LIST_MARKER = re.compile(r"\s*(?:\d{1,3}|[A-Za-z]|[ivxIVX]{1,4})\Z")
# Where a sentence too long may be split, best first: after clause punctuation, after white space.
_CLAUSE_END = re.compile(rf"[,;:—–][{re.escape(_CLOSERS)}]*\s+|[，；：、][{re.escape(_CLOSERS)}]*\s*")
_WORD_END = re.compile(r"\s+")
CountTokens = Callable[[str], int]
_WORD_LOOKBACK = 64  # characters looked at before a period: longer than any abbreviation


def split_item(text: str, encode: Encode, max_source_tokens: int) -> list[Segment]:
    """The segments of `text`, in order; none for an empty text. Their `source_text`s joined are `text`.

    Each has at most `max_source_tokens` source ids, but for a single character that alone has more. Takes time
    linear in the length of the text.
    """
    segments: list[Segment] = []
    for sentence in _sentences(text):
        core = sentence.strip()
        if not core:
            segments.append(Segment(leading=sentence, core="", trailing="", source_ids=()))
            continue
        start = sentence.index(core)
        leading, trailing = sentence[:start], sentence[start + len(core) :]
        source_ids = tuple(encode(core))
        if len(source_ids) <= max_source_tokens:
            segments.append(Segment(leading=leading, core=core, trailing=trailing, source_ids=source_ids))
        else:
            segments += _split_sentence(leading, core, trailing, encode, max_source_tokens)
    return segments


def _split_sentence(leading: str, core: str, trailing: str, encode: Encode, limit: int) -> list[Segment]:
    """The segments of a sentence of more than `limit` tokens; `core` has no white space at its ends."""
    parts: list[str] = []
    for part in _split_long(core, lambda text: len(encode(text)), limit):
        if part.isspace():  # cut off a word: it stays behind the piece before it
            parts[-1] += part
        else:
            parts.append(part)
    segments = []
    for i, part in enumerate(parts):
        stripped = part.strip()
        start = part.index(stripped)
        segments.append(
            Segment(
                leading=(leading if i == 0 else "") + part[:start],
                core=stripped,
                trailing=part[start + len(stripped) :] + (trailing if i == len(parts) - 1 else ""),
                source_ids=tuple(encode(stripped)),
                is_split=True,
            )
        )
    return segments


def _sentences(text: str) -> Iterator[str]:
    """Pieces of `text` that end with a line break or a sentence; runs of blank lines are one piece."""
    blank = ""
    for line in text.splitlines(keepends=True):
        if line.isspace():
            blank += line
            continue
        if blank:
            yield blank
            blank = ""
        start = 0
        for match in _SENTENCE_END.finditer(line):
            if match.end() >= len(line):
                break
            if match["spaced"] is None or _ends_sentence(line, start, match):
                yield line[start : match.end()]
                start = match.end()
        yield line[start:]
    if blank:
        yield blank


def _ends_sentence(line: str, start: int, match: re.Match[str]) -> bool:
    """Whether the stop found at `match` ends the sentence that began at `start`."""
    following = _NEXT_WORD.match(line, match.end())
    next_word = (following[1] if following else None) or ""
    if next_word and next_word[0].islower():
        return False
    stop = match["spaced"]
    if stop != ".":
        return True
    lookback = max(start, match.start() - _WORD_LOOKBACK)
    before = line[lookback : match.start()]
    word = _LAST_WORD.search(before)[0]  # type: ignore[index]  # matches the empty string at least
    lowered = word.lower()
    if lowered in _TITLES or (lowered in _BEFORE_NUMBER and next_word[:1].isdigit()):
        return False
    if lookback == start and _LIST_MARKER.fullmatch(before):  # "1. Install it"
        return False
    if _ACRONYM.fullmatch(word) or (len(word) == 1 and word.isupper() and word != "I"):  # "U.S. Army", "J. Smith"
        return next_word.lower() in _STARTERS
    return True


def _split_long(sentence: str, count_tokens: CountTokens, limit: int) -> Iterator[str]:
    """Parts of a sentence of more than `limit` tokens: as many clauses a part as fit, words of clauses too long, pieces
    of words too long."""
    yield from _pack(_cut(sentence, _CLAUSE_END), count_tokens, limit, _split_clause)


def _split_clause(clause: str, count_tokens: CountTokens, limit: int) -> Iterator[str]:
    yield from _pack(_cut(clause, _WORD_END), count_tokens, limit, _split_word)


def _split_word(word: str, count_tokens: CountTokens, limit: int) -> Iterator[str]:
    """Pieces of at most `limit` tokens, not cut before a mark that belongs to the character before it."""
    while word:
        num_characters = min(len(word), 8 * limit)
        while num_characters > 1 and (num_tokens := count_tokens(word[:num_characters])) > limit:
            num_characters = max(1, min(num_characters - 1, num_characters * limit // num_tokens))
        end = num_characters
        while end < len(word) and end > 1 and num_characters - end < 16 and _is_joined(word, end):
            end -= 1
        if end == 1 or (end < len(word) and _is_joined(word, end)):
            end = num_characters  # nothing but marks: cut anyway
        yield word[:end]
        word = word[end:]


def _is_joined(text: str, i: int) -> bool:
    """Whether the character at `i` belongs to the one before it."""
    return (
        unicodedata.combining(text[i]) != 0
        or text[i] in "\u200d\ufe0e\ufe0f"
        or "\U0001f3fb" <= text[i] <= "\U0001f3ff"
        or text[i - 1] == "\u200d"
    )


def _cut(text: str, end: re.Pattern[str]) -> list[str]:
    """`text` cut after every match of `end`."""
    pieces = []
    start = 0
    for match in end.finditer(text):
        pieces.append(text[start : match.end()])
        start = match.end()
    if start < len(text):
        pieces.append(text[start:])
    return pieces


def _pack(
    pieces: list[str],
    count_tokens: CountTokens,
    limit: int,
    split: Callable[[str, CountTokens, int], Iterator[str]],
) -> Iterator[str]:
    """Joins neighbours while they stay within `limit` tokens; a piece that alone does not goes through `split`.

    The counts of the pieces guide the packing (a sum costs nothing); the joined text is counted once before it is given
    out, because a tokenizer may cut it into more tokens than its pieces had.
    """
    group: list[str] = []
    num_tokens = 0
    for piece in pieces:
        count = count_tokens(piece)
        if group and num_tokens + count - 1 > limit:
            yield from _give_out(group, count_tokens, limit)
            group, num_tokens = [], 0
        if count > limit:
            yield from split(piece, count_tokens, limit)
            continue
        num_tokens += count - (1 if group else 0)  # one end of sentence in all
        group.append(piece)
    if group:
        yield from _give_out(group, count_tokens, limit)


def _give_out(group: list[str], count_tokens: CountTokens, limit: int) -> Iterator[str]:
    """The group as one part, or halved until each part fits."""
    text = "".join(group)
    if len(group) == 1 or count_tokens(text) <= limit:
        yield text
        return
    middle = len(group) // 2
    yield from _give_out(group[:middle], count_tokens, limit)
    yield from _give_out(group[middle:], count_tokens, limit)
