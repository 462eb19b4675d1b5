"""Work that takes seconds beside the event loop, or waits for a file system, in a thread that does not keep the process
from ending."""

import asyncio
import contextlib
import threading
from collections.abc import Callable
from typing import TypeVar

Result = TypeVar("Result")


def in_daemon_thread(work: Callable[[], Result], *, name: str) -> "asyncio.Future[Result]":
    """Runs `work` in a thread that does not keep the process from ending."""
    event_loop = asyncio.get_running_loop()
    future: asyncio.Future[Result] = event_loop.create_future()

    def settle(outcome: Callable[[], Result]) -> None:
        if future.done():
            return
        try:
            future.set_result(outcome())
        except Exception as error:
            future.set_exception(error)

    def run() -> None:
        try:
            result = work()
        except Exception as error:
            failure = error

            def outcome() -> Result:
                raise failure
        else:

            def outcome() -> Result:
                return result

        with contextlib.suppress(RuntimeError):  # the event loop has ended: nobody waits
            event_loop.call_soon_threadsafe(settle, outcome)

    threading.Thread(target=run, name=name, daemon=True).start()
    return future
