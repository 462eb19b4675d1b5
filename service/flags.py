"""What a reader should know about a segment: signs, read from its tokens and texts alone, that it went wrong."""

import re
from collections import Counter
from collections.abc import Sequence

_MAX_PERIOD = 24
_MIN_COPIES = 4
_MIN_LOOP_TOKENS = 6

# Every repeat that could overlap its neighbour is bounded: no text makes the search quadratic.
_PLACEHOLDER = re.compile(
    r"""
      \$?\{\{?[^\s{}]*+\}\}?                                # {name}  {0}  {}  {{name}}  ${x}
    | %\([^\s()]++\)[-+0\#]{0,3}\d{0,4}(?:\.\d{1,4})?[a-zA-Z]   # %(name)s
    | %(?:\d{1,2}\$)?[-+0\#]{0,3}\d{0,4}(?:\.\d{1,4})?(?:ll|l|z|h)?[sdifgexXuc@](?![A-Za-z])  # %s  %1$s  %.2f
    | %\d{1,2}(?![\d%])                                     # %1
    | </?[A-Za-z]{0,8}\d{1,6}\s?/?>                          # <0>  </0>  <ph0>  <g1/>
    """,
    re.VERBOSE,
)
_PLACEHOLDER_SIGNS = ("{", "%", "<")


def is_repetitive(target_ids: Sequence[int], source_ids: Sequence[int]) -> bool:
    """Whether the target loops where the source does not: at least four copies of one group of tokens in a row, six
    tokens in all. Two or three copies occur in good translations; a source that itself loops may be answered so.

    The usual sentence has few equal tokens and is answered by one count.
    """
    if len(target_ids) - len(set(target_ids)) < _MIN_LOOP_TOKENS - 1:  # a loop has at least so many equal ones
        return False
    return _has_loop(target_ids) and not _has_loop(source_ids)


def _has_loop(ids: Sequence[int]) -> bool:
    """Whether a group of 1 to `_MAX_PERIOD` tokens stands `_MIN_COPIES` times in a row, `_MIN_LOOP_TOKENS` in all."""
    length = len(ids)
    for period in range(1, min(_MAX_PERIOD, length // _MIN_COPIES) + 1):
        needed = max(_MIN_COPIES * period, _MIN_LOOP_TOKENS) - period  # equal pairs one period apart, in a row
        run = 0
        for i in range(length - period):
            run = run + 1 if ids[i] == ids[i + period] else 0
            if run >= needed:
                return True
    return False


def placeholders(text: str) -> Counter[str]:
    """The placeholders of a text and how often each occurs: `{name}`, `{0}`, `${x}`, `%s`, `%(n)s`, `%1$s`,
    `<0>`, `<ph0>`."""
    if not any(sign in text for sign in _PLACEHOLDER_SIGNS):
        return Counter()
    return Counter(match[0] for match in _PLACEHOLDER.finditer(text))


def lost_placeholders(source: str, target: str) -> Counter[str]:
    """The placeholders that `source` has more often than `target`; empty when none is lost."""
    wanted = placeholders(source)
    return wanted - placeholders(target) if wanted else wanted
