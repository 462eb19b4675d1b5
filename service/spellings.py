"""The ways in which tokens can spell a text: what must be kept out so that a text does not occur."""

from __future__ import annotations

import re
from functools import cached_property

from service.alignment import is_unspaced
from service.tokenizer import EOS_ID, Tokenizer, normalize

MAX_SPELLINGS = 8
"""Of a text in one place: the start of a word, or inside one."""

_SPACE = "\u2581"
_LITERAL = "\ufdd0"  # stands for the character U+2581 itself while a text is cut; no normalized text has it
_BYTE = re.compile(r"<0x([0-9A-F]{2})>")

Ids = tuple[int, ...]


class TargetVocabulary:
    """The target side of a tokenizer, piece by piece. Immutable: any thread may call any method."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer

    @cached_property
    def ids(self) -> dict[str, int]:
        """Id of each piece as the vocabulary spells it."""
        pieces = self._tokenizer.target_pieces(range(self._tokenizer.target_vocab_size))
        return {piece: i for i, piece in enumerate(pieces)}

    @cached_property
    def _bytes(self) -> dict[int, int]:
        return {int(match[1], 16): i for piece, i in self.ids.items() if (match := _BYTE.fullmatch(piece))}

    @cached_property
    def _texts(self) -> dict[str, int]:
        """Pieces that stand for their own characters."""
        return {
            piece: i
            for piece, i in self.ids.items()
            if i > EOS_ID and i not in self._reserved and not _BYTE.match(piece)
        }

    @cached_property
    def _reserved(self) -> set[int]:
        return {self._tokenizer.reserved_target_id(symbol) for symbol in self._tokenizer.manifest.reserved_symbols}

    @cached_property
    def _longest(self) -> int:
        return max(map(len, self._texts), default=1)

    def spellings(self, text: str) -> list[Ids]:
        """How tokens can spell a text, the fewest tokens first: runs of whole tokens, at the start of a word and inside
        one, and single tokens that hold more than the text, but the text as words of its own.

        Of the runs at each place come the tokenizer's own and others, `MAX_SPELLINGS` together; those that hold another
        of the list are left out, as they cannot occur where that one does not. A character that the vocabulary lacks
        is spelled by its bytes. None for a text that is white space only, or that no tokens spell.
        """
        normalized = normalize(text)
        if not normalized:
            return []
        marked = normalized.replace(_SPACE, _LITERAL).replace(" ", _SPACE)
        found: dict[Ids, None] = {}
        own = tuple(self._tokenizer.encode_target(normalized))
        for place in (marked, _SPACE + marked):
            ways = self._shortest(place)
            if own in ways or self._spelled(own) == place:
                ways = [own, *(way for way in ways if way != own)]
            found.update(dict.fromkeys(ways[:MAX_SPELLINGS]))
        found.update(dict.fromkeys((i,) for i in self._holders(marked)))
        kept: list[Ids] = []
        for way in sorted(found, key=len):
            if not any(_holds(way, other) for other in kept):
                kept.append(way)
        return kept

    def _holders(self, marked: str) -> list[int]:
        """Pieces that hold a text as words of its own: no letter or digit of the same word stands beside it."""
        holders = []
        at = self._all_texts.find(marked)
        while at >= 0:
            stop = at + len(marked)
            if _is_edge(self._all_texts[at - 1], marked[0]) and _is_edge(marked[-1], self._all_texts[stop]):
                start = self._all_texts.rindex("\n", 0, at) + 1
                holders.append(self._texts[self._all_texts[start : self._all_texts.index("\n", stop)]])
            at = self._all_texts.find(marked, at + 1)
        return list(dict.fromkeys(holders))

    @cached_property
    def _all_texts(self) -> str:
        """All pieces, each between line breaks, which no piece has: to be searched at once."""
        return "\n" + "".join(f"{piece}\n" for piece in self._texts if "\n" not in piece)

    def _spelled(self, ids: Ids) -> str:
        return "".join(self._tokenizer.target_pieces(ids))

    def _shortest(self, marked: str) -> list[Ids]:
        """The ways with the fewest tokens; of equal ones those whose first tokens are longest."""
        length = len(marked)
        best: list[list[Ids]] = [[] for _ in range(length)] + [[()]]
        for start in range(length - 1, -1, -1):
            ways = []
            for stop in range(min(length, start + self._longest), start, -1):
                head = self._head(marked[start:stop])
                if head:
                    ways += [head + rest for rest in best[stop]]
            best[start] = sorted(ways, key=len)[:MAX_SPELLINGS]
        return best[0]

    def _head(self, characters: str) -> Ids:
        """The piece that these characters are; the bytes of a single one that is no piece; else nothing."""
        piece = self._texts.get(characters)
        if piece is not None:
            return (piece,)
        if len(characters) == 1 and self._bytes:
            return tuple(self._bytes[value] for value in characters.replace(_LITERAL, _SPACE).encode())
        return ()


def _is_edge(before: str, after: str) -> bool:
    """Whether a word can end between two characters."""
    return not (before.isalnum() and after.isalnum()) or is_unspaced(before) or is_unspaced(after)


def _holds(way: Ids, other: Ids) -> bool:
    """Whether `other` is a run of `way`."""
    size = len(other)
    return any(way[i : i + size] == other for i in range(len(way) - size + 1))
