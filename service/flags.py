"""What a reader should know about a segment: signs, read from its texts alone, that it went wrong."""

import re
from collections import Counter

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
