"""What happens to a stream whose client does not read, or is gone?

A write waits while the client has not made room, and gRPC says only that it failed when the client goes away meanwhile.
"""

import asyncio
from typing import Any, TypeAlias

import grpc
from google.protobuf.message import Message

from service.refusals import ClientNotReadingError

Context: TypeAlias = "grpc.aio.ServicerContext[Any, Any]"


class ClientGoneError(Exception):
    """The client has cancelled, reached its deadline or vanished: there is nobody to answer."""


class StreamWriter:
    """Writes the messages of one call."""

    def __init__(self, context: Context, *, max_stall_seconds: float) -> None:
        """`max_stall_seconds`: what a message may take to be written."""
        self._context = context
        self._max_stall_seconds = max_stall_seconds

    async def write(self, message: Message) -> None:
        """Returns when gRPC has taken the message.

        Raises:
            ClientNotReadingError: when it has not in time, because the client reads nothing.
            ClientGoneError: when it never will.
        """
        try:
            async with asyncio.timeout(self._max_stall_seconds):
                await self._context.write(message)
        except TimeoutError as error:
            raise ClientNotReadingError(
                f"The client must read, but made no room for a message in {self._max_stall_seconds:g} s."
            ) from error
        except grpc.aio.InternalError as error:  # a write fails only with its call
            raise ClientGoneError from error
