"""The checked options of a call, and what they come to for each of its segments."""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace

from service.options import DecodingOptions

Ids = tuple[int, ...]


@dataclass(frozen=True, kw_only=True)
class CallOptions:
    """How to decode the segments of a call."""

    base: DecodingOptions
    """What holds for every segment, without lengths and prefix."""
    limit: int
    """The most target tokens that the model can make of a segment."""
    max_target_tokens: int = 0
    """The most that are wanted; 0: not said."""
    max_target_ratio: float | None = None
    """The most for each source token; None: not said."""
    min_target_tokens: int = 0
    """The fewest."""
    min_target_ratio: float = 0.0
    """The fewest for each source token."""
    prefixes: tuple[Ids, ...] = ()
    """Target tokens that the first segment with text of each item begins with; empty, or one for each item."""
    prefix_bias: float = 0.0
    """For the segments that have a prefix."""
    _made: dict[tuple[int, int], DecodingOptions] = field(default_factory=dict, repr=False, compare=False)

    def for_segment(self, num_source_tokens: int, prefix: Ids = ()) -> DecodingOptions:
        """The options of one segment. They depend on the segment alone, so a translation does not depend on its
        company; equal ones without a prefix are one object."""
        most = self._most(num_source_tokens, len(prefix))
        fewest = max(self.min_target_tokens, math.floor(self.min_target_ratio * num_source_tokens))
        fewest = min(fewest, most - 1)
        if prefix:
            return replace(
                self.base,
                max_target_tokens=most,
                min_target_tokens=fewest,
                target_prefix=prefix,
                prefix_bias=self.prefix_bias,
            )
        made = self._made.get((most, fewest))
        if made is None:
            made = replace(self.base, max_target_tokens=most, min_target_tokens=fewest)
            self._made[most, fewest] = made
        return made

    def _most(self, num_source_tokens: int, num_prefix_tokens: int) -> int:
        if self.max_target_ratio is not None:
            most = min(self.max_target_tokens or self.limit, math.ceil(self.max_target_ratio * num_source_tokens))
        else:
            most = self.max_target_tokens or default_max_target_tokens(num_source_tokens, num_prefix_tokens)
        return min(max(most, num_prefix_tokens, 1), self.limit)


def default_max_target_tokens(num_source_tokens: int, num_prefix_tokens: int = 0) -> int:
    """The most target tokens of a segment where neither its caller nor the model's defaults say.

    Three for each source token and 16 besides, those of a prefix not counted: sentences that end by themselves stay
    below it (such a ratio occurs only in very short pairs of the training data), while a translation that loops ends
    after a bounded time.
    """
    return 3 * num_source_tokens + 16 + num_prefix_tokens
