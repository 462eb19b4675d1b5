"""Token ids that become certain to pieces of text that can no longer change, in the order of the text.

Joined, the pieces of an item are its translation as `service.joining` puts it together. A piece waits for whatever
could still change it: the rest of a character's bytes, the segments before it, and, where the white space between two
sentences depends on both, the beginning of the second.
"""

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass

from service.joining import is_written_without_spaces, space_between
from service.segments import Segment
from service.tokenizer import Tokenizer


@dataclass(frozen=True, kw_only=True, slots=True)
class Piece:
    """Text of one segment that can no longer change."""

    segment_index: int
    """Of the segment in its item."""
    text: str
    """The next characters of the segment's translation, white space around it included."""
    is_last: bool
    """Whether the segment's text is complete with it."""


class CertainTokensError(RuntimeError):
    """Tokens were called certain that the result does not begin with: our fault."""


class SegmentStream:
    """The text of one segment as it becomes certain; empty and complete for a segment without text."""

    def __init__(self, tokenizer: Tokenizer, *, is_blank: bool) -> None:
        self.is_complete = is_blank
        """Whether no text will follow."""
        self.first = ""
        """First character; empty when there is none (yet)."""
        self.last = ""
        """Last character that is known."""
        self._growing = tokenizer.growing_target()
        self._ids: list[int] = []
        self._text = ""

    def add(self, ids: Sequence[int]) -> None:
        """Takes further certain tokens, without end of sentence."""
        self._ids += ids
        self._append(self._growing.add(ids))

    def complete(self, text_ids: Sequence[int]) -> None:
        """Takes the result.

        Raises:
            CertainTokensError: when it does not begin with the tokens that were certain.
        """
        num_known = len(self._ids)
        if list(text_ids[:num_known]) != self._ids:
            raise CertainTokensError(f"The {num_known} tokens that were certain must begin the result, but do not.")
        self._append(self._growing.add(text_ids[num_known:]))
        self._append(self._growing.end())
        self.is_complete = True

    def take(self) -> str:
        """The text that came since the last call."""
        text, self._text = self._text, ""
        return text

    def _append(self, text: str) -> None:
        if text:
            self.first = self.first or text[0]
            self.last = text[-1]
            self._text += text


class ItemStream:
    """The pieces of one item. Tokens may come for any of its segments at any time."""

    def __init__(self, segments: Sequence[Segment], tokenizer: Tokenizer, target_language: str) -> None:
        self._segments = segments
        self._streams = [SegmentStream(tokenizer, is_blank=not segment.core) for segment in segments]
        self._is_unspaced = is_written_without_spaces(target_language)
        self._waiting = deque(range(len(segments)))
        """Segments that are not complete or not given out, in order."""
        self._has_leading = False
        """Whether the leading white space of the first of these was given out."""

    def add(self, segment_index: int, ids: Sequence[int]) -> None:
        """Takes certain tokens of a segment, in their order, without end of sentence."""
        self._streams[segment_index].add(ids)

    def complete(self, segment_index: int, text_ids: Sequence[int]) -> None:
        """Takes the result of a segment.

        Raises:
            CertainTokensError: when it contradicts the tokens that were certain.
        """
        self._streams[segment_index].complete(text_ids)

    def take(self) -> list[Piece]:
        """What has become certain since the last call, in order; no piece is empty but a segment's last."""
        pieces: list[Piece] = []
        while self._waiting:
            index = self._waiting[0]
            stream = self._streams[index]
            text = "" if self._has_leading else self._segments[index].leading
            self._has_leading = True
            text += stream.take()
            trailing = self._trailing(index) if stream.is_complete else None
            if text or trailing is not None:
                pieces.append(Piece(segment_index=index, text=text + (trailing or ""), is_last=trailing is not None))
            if trailing is None:
                break
            self._waiting.popleft()
            self._has_leading = False
        return pieces

    @property
    def unfinished(self) -> list[int]:
        """Segments whose last piece was not given out."""
        return list(self._waiting)

    def _trailing(self, index: int) -> str | None:
        """The white space after a complete segment; None while it is not known."""
        segment = self._segments[index]
        if index + 1 == len(self._segments):
            return segment.trailing
        following, stream = self._segments[index + 1], self._streams[index + 1]

        def between(start: str) -> str:
            return space_between(segment, following, self._streams[index].last, start, is_unspaced=self._is_unspaced)

        if stream.first or stream.is_complete:
            return between(stream.first)
        # Not begun yet: known all the same if it is the same before an ASCII character and before another.
        return between("a") if between("a") == between("\u4e00") else None
