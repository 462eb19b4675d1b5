"""`grpc.health.v1`: is the process alive, and does it take calls?

`liveness` follows the engines' progress and never their load: a server with a full queue is alive. `readiness`, the
service's full name and "" say whether calls are taken.
"""

import asyncio
from collections.abc import Callable, Sequence
from typing import Any, cast

from grpc_health.v1 import health, health_pb2

from service.handlers import SERVICE_NAME
from service.loop_group import LoopGroup
from service.served_model import ServedModel

LIVENESS = "liveness"
READINESS = "readiness"
READY_NAMES = ("", SERVICE_NAME, READINESS)
MAX_STALLED_SECONDS = 60.0
"""An engine that has work and makes no step for so long is taken for dead; an honest step takes milliseconds."""
MAX_FAILED_STEPS = 5
"""An engine that fails so many steps in a row is taken for broken, as with a device that is gone."""
_LOOK_SECONDS = 1.0

_SERVING = health_pb2.HealthCheckResponse.SERVING
_NOT_SERVING = health_pb2.HealthCheckResponse.NOT_SERVING


def is_sound(engine_loop: LoopGroup) -> bool:
    """Whether an engine is idle or makes progress without failing."""
    return (
        engine_loop.stalled_seconds() < MAX_STALLED_SECONDS and engine_loop.num_consecutive_failures < MAX_FAILED_STEPS
    )


class Health:
    """The health of one server; belongs to its event loop."""

    def __init__(self) -> None:
        self.servicer = cast(Any, health).aio.HealthServicer()
        self._is_ready = False
        self._is_sound = True

    async def set_ready(self, is_ready: bool) -> None:
        """Whether calls are taken."""
        self._is_ready = is_ready
        await self._publish()

    async def watch(self, models: Callable[[], Sequence[ServedModel]]) -> None:
        """Keeps the answers true to the engines of what `models` gives, as of each moment, until cancelled."""
        while True:
            await self.look([model.loop for model in models()])
            await asyncio.sleep(_LOOK_SECONDS)

    async def look(self, loops: Sequence[LoopGroup]) -> None:
        """Looks at the engines once."""
        self._is_sound = all(is_sound(engine_loop) for engine_loop in loops)
        await self._publish()

    async def _publish(self) -> None:
        await self.servicer.set(LIVENESS, _SERVING if self._is_sound else _NOT_SERVING)
        for name in READY_NAMES:
            await self.servicer.set(name, _SERVING if self._is_ready and self._is_sound else _NOT_SERVING)
