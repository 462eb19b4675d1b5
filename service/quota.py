"""How much may a caller ask for, a second?

A bucket holds `burst` and is refilled at a steady rate: on average the rate is what can be had, and for a moment all
that the bucket holds.
"""

_TOLERANCE_SECONDS = 1e-6
"""Who comes when it was told to is not turned away for the rounding of the time."""


class TokenBucket:
    """What one caller may still have. It keeps no time of its own: each call says what time it is."""

    def __init__(self, rate: float, burst: float) -> None:
        """The bucket is full at first.

        Args:
            rate: what comes back to it, a second.
            burst: what it holds at most.

        Raises:
            ValueError: when one of them is not above 0.
        """
        if not (rate > 0 and burst > 0):
            raise ValueError(f"Rate and burst must be above 0, but are {rate} and {burst}.")
        self._rate = rate
        self._burst = burst
        self._full_at = float("-inf")

    def take(self, n: float, now: float) -> float:
        """Takes `n` at the time `now`, when there is as much.

        What is more than the bucket ever holds can be had when it is full, and is paid for after.

        Returns:
            0.0 when it was taken; else nothing was, and could be after so many seconds.
        """
        seconds = self.wait_seconds(n, now)
        if seconds == 0.0:
            self._full_at = max(self._full_at, now) + n / self._rate
        return seconds

    def wait_seconds(self, n: float, now: float) -> float:
        """After how many seconds `take` would take `n`; 0.0: at once."""
        seconds = self._full_at - (self._burst - min(n, self._burst)) / self._rate - now
        return seconds if seconds > _TOLERANCE_SECONDS else 0.0
