"""Has a caller had what is due to it?"""

from collections import OrderedDict

from service.caller import Caller
from service.quota import TokenBucket

BURST_SECONDS = 10.0
"""So much of its rate a caller may take at once that has asked for nothing for as long."""
_MAX_CALLERS = 10_000


class CallerQuotas:
    """What each caller with a rate of its own may still ask for."""

    def __init__(self) -> None:
        self._buckets: OrderedDict[tuple[str, str, float], TokenBucket] = OrderedDict()

    def take(self, caller: Caller, *, num_segments: int, num_tokens: int, now: float) -> float:
        """Takes segments and source tokens, all of them or none.

        Returns:
            0.0 when they were taken; else in how many seconds they could be.
        """
        wanted = [
            (self._bucket(caller.name, kind, rate), number)
            for kind, rate, number in (
                ("segments", caller.segments_per_second, num_segments),
                ("tokens", caller.tokens_per_second, num_tokens),
            )
            if rate
        ]
        seconds = max((bucket.wait_seconds(number, now) for bucket, number in wanted), default=0.0)
        if not seconds:
            for bucket, number in wanted:
                bucket.take(number, now)
        return seconds

    def _bucket(self, name: str, kind: str, rate: float) -> TokenBucket:
        """A caller whose rate was changed begins anew; of too many callers who was away longest is forgotten."""
        key = (name, kind, rate)
        bucket = self._buckets.get(key)
        if bucket is None:
            bucket = self._buckets[key] = TokenBucket(rate, rate * BURST_SECONDS)
            if len(self._buckets) > 2 * _MAX_CALLERS:
                self._buckets.popitem(last=False)
        self._buckets.move_to_end(key)
        return bucket
