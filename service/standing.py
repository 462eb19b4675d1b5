"""Does a queue stand, or is it a burst that passes?

The idea is CoDel's, in the form for services: not how long a queue is says that there is too much work, but that it
does not get shorter. A burst may wait as it likes; a delay that never falls below the target for an interval is one
that everybody pays and nobody gains from, and then calls are refused until it does.
"""

from __future__ import annotations

import math

_CALM_INTERVALS = 4
"""Refusing ends later than it begins: near the target a moment without a refusal is chance."""


class StandingDelay:
    """Watches the delay that the calls of one model meet."""

    def __init__(self, *, target_seconds: float, interval_seconds: float) -> None:
        """Args:
        target_seconds: a delay up to this is none; 0: nobody is ever refused.
        interval_seconds: how long it may stay above.
        """
        self._target_seconds = target_seconds
        self._interval_seconds = interval_seconds
        self._above_since: float | None = None
        self._below_by = -math.inf
        self._is_standing = False
        self._refused_at = -math.inf

    def refuses(self, delay_seconds: float, now: float) -> bool:
        """Whether a call that comes now, and meets such a delay, is refused.

        Refusing begins when the delay was above the target for an interval, keeps it at the target, and ends when
        nobody had to be refused for four intervals.
        """
        if not self._target_seconds:
            return False
        if self._is_standing and now - self._refused_at >= _CALM_INTERVALS * self._interval_seconds:
            self._is_standing = False
            self._above_since = None
        if delay_seconds <= self._target_seconds:
            self._above_since = None
            return False
        if self._above_since is None or now > self._below_by + self._interval_seconds:
            self._above_since = now  # nobody came while it was below: it fell by itself
        self._below_by = now + delay_seconds - self._target_seconds
        if now - self._above_since >= self._interval_seconds:
            self._is_standing = True
        if self._is_standing:
            self._refused_at = now
        return self._is_standing
