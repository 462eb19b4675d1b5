"""Which calls are taken, while too much is in progress?

Refusing must be cheap, or it is what brings a server down: a call is refused before its request is read where that can
be known, else before its texts are cut.
"""

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from service.config import LimitsConfig
from service.refusals import OverloadedError
from service.served_model import ServedModel

if TYPE_CHECKING:
    from service.call_life import Call

_MAX_RETRY_SECONDS = 30.0


class Admission:
    """Takes calls or refuses them; belongs to the event loop."""

    def __init__(self, limits: LimitsConfig, models: Callable[[], Sequence[ServedModel]]) -> None:
        """`models` gives what is served now."""
        self._limits = limits
        self._models = models
        self._num_calls = 0

    def enter(self, call: "Call") -> None:  # noqa: ARG002
        """Takes a call, of which nothing but its caller is known; `leave` follows, unless this raises.

        Raises:
            OverloadedError: when too many calls are in progress, or no model has room for another segment.
        """
        if self._num_calls >= self._limits.max_concurrent_calls:
            message = f"At most {self._limits.max_concurrent_calls} calls may be in progress."
            raise OverloadedError(message, reason="TOO_MANY_CALLS", retry_seconds=self.retry_seconds())
        if all(model.loop.is_full for model in self._models()):
            raise self.queue_full()
        self._num_calls += 1

    def check(self, call: "Call", model: ServedModel) -> None:  # noqa: ARG002
        """Refuses a call that was taken, now that its model is known and before its texts are cut.

        Raises:
            OverloadedError: when the model has no room for another segment.
        """
        if model.loop.is_full:
            raise self.queue_full()

    def leave(self, call: "Call") -> None:  # noqa: ARG002
        """A call that was taken has ended."""
        self._num_calls -= 1

    def queue_full(self) -> OverloadedError:
        """The refusal of a call whose segments cannot wait."""
        message = "The queue of waiting segments is full."
        return OverloadedError(message, reason="QUEUE_FULL", retry_seconds=self.retry_seconds())

    def retry_seconds(self) -> float:
        """When room can be expected: half of what the segment that waits longest has waited by now."""
        oldest = max((model.loop.oldest_wait_seconds() for model in self._models()), default=0.0)
        return min(max(self._limits.retry_seconds, oldest / 2), _MAX_RETRY_SECONDS)
