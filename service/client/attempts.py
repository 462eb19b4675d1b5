"""How long a call may still take, and when it is tried again."""

import random
import time

from service.client.errors import TranslationError, TryAgainError

_FIRST_BACKOFF_SECONDS = 0.2
_MAX_BACKOFF_SECONDS = 5.0


class Attempts:
    """How long a call may still take, and when it is tried again."""

    def __init__(self, timeout_seconds: float, max_retries: int) -> None:
        self._ends_at = time.monotonic() + timeout_seconds
        self._num_left = max_retries
        self._backoff_seconds = _FIRST_BACKOFF_SECONDS

    def remaining_seconds(self) -> float:
        """What is left of the timeout."""
        return max(0.001, self._ends_at - time.monotonic())

    def delay_after(self, error: TranslationError) -> float:
        """How long to wait before the next attempt.

        Raises:
            TranslationError: `error`, when there is none: it is no passing refusal, the retries are used up, or the
                wait would outlast the timeout.
        """
        if not isinstance(error, TryAgainError) or self._num_left == 0:
            raise error
        self._num_left -= 1
        delay = error.retry_seconds
        if delay is None:
            delay = self._backoff_seconds * random.uniform(0.8, 1.2)
            self._backoff_seconds = min(2 * self._backoff_seconds, _MAX_BACKOFF_SECONDS)
        if delay < 0 or delay >= self._ends_at - time.monotonic():  # negative: the server says not to come back
            raise error
        return delay
