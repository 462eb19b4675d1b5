"""Who may ask for the interface (`grpc.reflection.v1alpha`)? Whoever may call."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterable
from typing import TYPE_CHECKING, Any, cast

from grpc_reflection.v1alpha import reflection, reflection_pb2_grpc

from service.call_life import CallLife
from service.stream_writer import Context

if TYPE_CHECKING:
    import grpc


class _Reflection:
    """Answers those whom the access knows."""

    def __init__(self, names: Iterable[str], calls: CallLife) -> None:
        self._servicer = cast(Any, reflection).aio.ReflectionServicer(names)
        self._calls = calls

    async def ServerReflectionInfo(self, request_iterator: Any, context: Context) -> AsyncIterator[Any]:  # noqa: N802  # its name
        """See the interface."""
        async with self._calls.question(context, method="ServerReflectionInfo"):
            async for reply in self._servicer.ServerReflectionInfo(request_iterator, context):
                yield reply


def add_reflection(names: Iterable[str], calls: CallLife, server: grpc.aio.Server) -> None:
    """Makes `server` answer what the services called `names` look like."""
    servicer = _Reflection((*names, reflection.SERVICE_NAME), calls)
    reflection_pb2_grpc.add_ServerReflectionServicer_to_server(servicer, server)
