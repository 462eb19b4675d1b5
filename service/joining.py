"""The translations of segments to that of their item: the white space that stands around and between them.

White space is kept as it was, with two exceptions inside a line. Between sentences of a language written without spaces
(Chinese, Japanese) a single space is dropped, unless it parts two ASCII characters. Into a language written with
spaces, one is put after a full-width stop that had none.
"""

from collections.abc import Sequence

from service.segments import Segment

_UNSPACED_LANGUAGES = ("zh", "ja", "yue")
_FULL_WIDTH_STOPS = "。！？｡，；：、」』】》）"


def join_translations(segments: Sequence[Segment], translations: Sequence[str], target_language: str) -> list[str]:
    """The target text of each segment with the white space around it; joined they are the translation of the item.

    `translations` are those of the cores ("" for a blank segment), one for each segment.
    """
    is_unspaced = is_written_without_spaces(target_language)
    texts = []
    last = len(segments) - 1
    for i, (segment, translation) in enumerate(zip(segments, translations, strict=True)):
        trailing = segment.trailing
        if i < last:
            trailing = space_between(
                segment, segments[i + 1], translation[-1:], translations[i + 1][:1], is_unspaced=is_unspaced
            )
        texts.append(segment.leading + translation + trailing)
    return texts


def is_written_without_spaces(language: str) -> bool:
    """Whether a language puts no spaces between sentences."""
    return language.split("-", maxsplit=1)[0].lower() in _UNSPACED_LANGUAGES


def space_between(segment: Segment, following: Segment, end: str, start: str, *, is_unspaced: bool) -> str:
    """What stands between the translations of two neighbours in an item.

    Args:
        segment: the first.
        following: the second.
        end: last character of the first's translation; empty when it has none.
        start: first character of the second's translation; empty when it has none.
        is_unspaced: whether the target language is written without spaces.
    """
    trailing = segment.trailing
    if segment.core and following.core:
        if is_unspaced and trailing == " ":
            return " " if end.isascii() and start.isascii() else ""
        if not is_unspaced and not trailing and segment.core[-1] in _FULL_WIDTH_STOPS:
            return " "
    return trailing
