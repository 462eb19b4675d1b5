"""Dynamic batching as one would write it in front of a translator that takes whole batches.

Sentences wait in one queue. A batch is taken as soon as a worker is free and either `max_batch` sentences wait or the
oldest has waited its time; with no time, at once. The oldest always goes; the rest of its batch are those nearest to it
in length, so that a batch has little padding and nobody starves. Where several workers are free they share what waits.

Imports nothing but the standard library: it runs in the environment of the peer that it serves.
"""

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial

Translate = Callable[[list[list[str]], int], list[list[str]]]
"""Source tokens of a batch and the beam size to target tokens, in the same order; runs in a worker's thread."""


@dataclass(kw_only=True, eq=False)
class Waiting:
    """A sentence in the queue."""

    tokens: list[str]
    """Of the source, end of sentence included."""
    beam_size: int
    """1: greedy."""
    arrived_at: float
    """By the event loop's clock."""
    answer: "asyncio.Future[list[str]]"
    """Gets the target tokens, or the error."""


class Batcher:
    """The queue, and who takes what from it. Everything but the translating happens in the event loop's thread."""

    def __init__(self, translate: Translate, *, max_batch: int, max_wait_seconds: float, workers: int) -> None:
        """To be made inside the event loop.

        Args:
            translate: translates a batch.
            max_batch: sentences of a batch at most.
            max_wait_seconds: how long the oldest waits for company while a worker is free.
            workers: batches translated side by side.
        """
        self._translate = translate
        self._max_batch = max_batch
        self._max_wait_seconds = max_wait_seconds
        self._num_free = workers
        self._threads = ThreadPoolExecutor(workers)
        self._waiting: list[Waiting] = []  # oldest first
        self._timer: asyncio.TimerHandle | None = None
        self._loop = asyncio.get_running_loop()

    async def translate(self, tokens: list[str], beam_size: int) -> list[str]:
        """Target tokens of one sentence, translated in whatever company there is; raises what its batch raised."""
        answer: asyncio.Future[list[str]] = self._loop.create_future()
        self._waiting.append(Waiting(tokens=tokens, beam_size=beam_size, arrived_at=self._loop.time(), answer=answer))
        self._dispatch()
        return await answer

    def _dispatch(self) -> None:
        """Hands batches to free workers, as long as there is one that need not wait for company."""
        while self._num_free and self._waiting:
            ready_at = self._waiting[0].arrived_at + self._max_wait_seconds
            if len(self._waiting) < self._max_batch and self._loop.time() < ready_at:
                if self._timer is None:
                    self._timer = self._loop.call_at(ready_at, self._on_timer)
                return
            batch = self._take()
            self._num_free -= 1
            running = self._loop.run_in_executor(
                self._threads, self._translate, [one.tokens for one in batch], batch[0].beam_size
            )
            running.add_done_callback(partial(self._hand_over, batch))

    def _on_timer(self) -> None:
        self._timer = None
        self._dispatch()

    def _take(self) -> list[Waiting]:
        """The oldest sentence, and those with the same search that are nearest to it in length."""
        oldest = self._waiting[0]
        share = -(-len(self._waiting) // self._num_free)
        alike = [one for one in self._waiting if one.beam_size == oldest.beam_size]
        alike.sort(key=lambda one: abs(len(one.tokens) - len(oldest.tokens)))  # stable: the oldest stays first
        batch = alike[: min(self._max_batch, share)]
        taken = set(map(id, batch))
        self._waiting = [one for one in self._waiting if id(one) not in taken]
        return batch

    def _hand_over(self, batch: list[Waiting], ended: "asyncio.Future[list[list[str]]]") -> None:
        self._num_free += 1
        self._dispatch()  # first: the worker need not wait until the answers are made
        error = ended.exception()
        targets = [] if error else ended.result()
        for index, one in enumerate(batch):
            if one.answer.done():  # its call was given up
                continue
            if error is None:
                one.answer.set_result(targets[index])
            else:
                one.answer.set_exception(error)
