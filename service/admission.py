"""Which calls are taken, while much is in progress?

Refusing must be cheap, or it is what brings a server down: a call is refused before its request is read where that can
be known, else before its texts are cut, else before anything is decoded. What is refused is told when to come back,
where that helps.
"""

import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING
from weakref import WeakKeyDictionary

from service import request
from service.caller_quotas import CallerQuotas
from service.config import LimitsConfig
from service.refusals import OverloadedError, UnreachableDeadlineError
from service.served_model import ServedModel
from service.standing import StandingDelay

if TYPE_CHECKING:
    from service.call_life import Call

_MAX_RETRY_SECONDS = 30.0
_SURE_SHARE = 0.8
"""A deadline is refused when so much of the predicted time is too long for it: a call is rather begun in vain than
refused wrongly."""
_TRIAL_SECONDS = 1.0
"""When nobody was taken for so long after a call that was refused for its deadline, the next is begun whatever is
predicted: a prediction that is too long, as after the machine stood still, is set right by steps alone."""


class Admission:
    """Takes calls or refuses them; belongs to the event loop."""

    def __init__(
        self,
        limits: LimitsConfig,
        models: Callable[[], Sequence[ServedModel]],
        *,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """`models` gives what is served now, `clock` the monotonic seconds of the calls' deadlines."""
        self._limits = limits
        self._models = models
        self._clock = clock
        self._num_calls = 0
        self._num_calls_of: Counter[str] = Counter()
        self._num_uncut_characters = 0
        self._standing: WeakKeyDictionary[ServedModel, StandingDelay] = WeakKeyDictionary()
        # Since when calls are refused for their deadlines, and none was taken.
        self._late_since: WeakKeyDictionary[ServedModel, float] = WeakKeyDictionary()
        self._quotas = CallerQuotas()

    def enter(self, call: "Call") -> None:
        """Takes a call, of which nothing but its caller is known; `leave` follows, unless this raises.

        Raises:
            OverloadedError: when too many calls are in progress, of all or of its caller, or no model has room for
                another segment.
        """
        limits = self._limits
        if self._num_calls >= limits.max_concurrent_calls:
            message = f"At most {limits.max_concurrent_calls} calls may be in progress."
            raise OverloadedError(message, reason="TOO_MANY_CALLS", retry_seconds=self.retry_seconds())
        caller = call.caller
        most = caller.max_calls or limits.max_calls_per_caller
        if most and self._num_calls_of[caller.name] >= most:
            message = f"At most {most} calls of one caller may be in progress."
            raise OverloadedError(message, reason="TOO_MANY_CALLS_OF_CALLER", retry_seconds=limits.retry_seconds)
        if all(model.loop.is_full for model in self._models()):
            raise self.queue_full()
        self._num_calls += 1
        self._num_calls_of[caller.name] += 1

    def check(self, call: "Call", model: ServedModel) -> None:
        """Refuses a call that was taken, now that its model is known and before its texts are cut.

        Raises:
            OverloadedError: when the model has no room for another segment, or more work than it gets done.
            UnreachableDeadlineError: when the call would still wait at its deadline.
        """
        if model.loop.is_full_for(call.priority, call.caller.name):
            raise self.queue_full()
        load = model.load(call.priority)
        now = self._clock()
        standing = self._standing.get(model)
        if standing is None:
            standing = self._standing[model] = StandingDelay(
                target_seconds=self._limits.standing_delay_seconds,
                interval_seconds=self._limits.standing_interval_seconds,
            )
        delay_seconds = model.forecast.delay_seconds(load)
        if call.priority is request.Priority.INTERACTIVE and standing.refuses(delay_seconds, now):
            message = "More is asked for than gets done, and what waits does not become less."
            raise OverloadedError(message, reason="STANDING_DELAY", retry_seconds=self._retry_after(delay_seconds))
        self._check_deadline(call, model.forecast.wait_seconds(load), now)

    @contextmanager
    def cutting(self, num_characters: int) -> Iterator[None]:
        """While entered, texts of so many characters wait to be cut.

        Raises:
            OverloadedError: when there are too many besides; a call alone is never refused.
        """
        waiting = self._num_uncut_characters
        if waiting and waiting + num_characters > self._limits.max_waiting_characters:
            message = f"At most {self._limits.max_waiting_characters} characters may wait to be cut."
            raise OverloadedError(message, reason="QUEUE_FULL", retry_seconds=self.retry_seconds())
        self._num_uncut_characters += num_characters
        try:
            yield
        finally:
            self._num_uncut_characters -= num_characters

    def check_sequences(self, call: "Call", model: ServedModel, sequences: Sequence[request.Sequence]) -> None:
        """Refuses a call whose sequences, at least one, are known and about to be submitted.

        Raises:
            UnreachableDeadlineError: when they would not be decoded by its deadline.
            OverloadedError: when they are more than is due to its caller now.
        """
        now = self._clock()
        if call.remaining is not None and now - self._late_since.get(model, now) < _TRIAL_SECONDS:
            try:
                self._check_deadline(call, model.forecast.finish_seconds(model.load(call.priority), sequences), now)
            except UnreachableDeadlineError:
                self._late_since.setdefault(model, now)
                raise
        num_tokens = sum(len(sequence.source_ids) for sequence in sequences)
        seconds = self._quotas.take(call.caller, num_segments=len(sequences), num_tokens=num_tokens, now=now)
        if seconds:
            message = "The caller has had more than is due to it."
            raise OverloadedError(message, reason="QUOTA_EXCEEDED", retry_seconds=seconds)
        self._late_since.pop(model, None)

    def leave(self, call: "Call") -> None:
        """A call that was taken has ended."""
        self._num_calls -= 1
        name = call.caller.name
        self._num_calls_of[name] -= 1
        if not self._num_calls_of[name]:
            del self._num_calls_of[name]

    def queue_full(self) -> OverloadedError:
        """The refusal of a call whose segments cannot wait."""
        message = "The queue of waiting segments is full."
        return OverloadedError(message, reason="QUEUE_FULL", retry_seconds=self.retry_seconds())

    def retry_seconds(self) -> float:
        """When a call would be taken again if nobody else came, by the model that has least to do."""
        return self._retry_after(min((model.delay_seconds() for model in self._models()), default=0.0))

    def _retry_after(self, delay_seconds: float) -> float:
        """When a delay has fallen to the target, or to a half."""
        seconds = delay_seconds - min(self._limits.standing_delay_seconds, delay_seconds / 2)
        return min(max(self._limits.retry_seconds, seconds), _MAX_RETRY_SECONDS)

    def _check_deadline(self, call: "Call", seconds: float, now: float) -> None:
        """Refuses a call that is predicted to need so many seconds from now."""
        deadline = call.deadline
        if deadline is not None and self._limits.refuse_late and now + _SURE_SHARE * seconds > deadline:
            raise UnreachableDeadlineError("The call would not be answered by its deadline.")
