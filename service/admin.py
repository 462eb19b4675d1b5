"""How are the methods of AdminService answered?

On a port of its own: who may translate may not change what is served. Where callers are known, the key of an
administrator is needed; where they are not, the port is on loopback.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from service.call_life import CallLife
from service.canary import CanaryReport
from service.catalog import Catalog
from service.handlers import parse
from service.pb.translation.admin.v1 import admin_pb2 as pb
from service.refusals import NotAllowedError
from service.served_model import ServedModel
from service.stream_writer import Context
from service.swap import Swap

SERVICE = pb.DESCRIPTOR.services_by_name["AdminService"]


class AdminServicer:
    """Answers operators; belongs to the event loop."""

    def __init__(self, catalog: Catalog, swap: Swap, calls: CallLife, *, needs_administrator: bool) -> None:
        """`calls` gives each call its identity and its status code. `needs_administrator`: whether the caller must be
        one."""
        self._catalog = catalog
        self._swap = swap
        self._calls = calls
        self._needs_administrator = needs_administrator

    @asynccontextmanager
    async def _call(self, context: Context, method: str) -> AsyncIterator[None]:
        """The life of a call."""
        async with self._calls.question(context, method=method) as call:
            if self._needs_administrator and not call.caller.is_admin:
                raise NotAllowedError("Only an administrator may do this.")
            yield

    async def ListModels(self, data: bytes, context: Context) -> pb.ListModelsResponse:  # noqa: N802  # its name
        """What is served, and what serves its last calls."""
        async with self._call(context, "ListModels"):
            parse(pb.ListModelsRequest, data)
            served = self._catalog.models
            order = sorted(self._catalog.in_use, key=lambda model: (model not in served, model.name))
            return pb.ListModelsResponse(models=[self._message(model) for model in order])

    async def LoadModel(self, data: bytes, context: Context) -> pb.LoadModelResponse:  # noqa: N802  # its name
        """Serves a bundle; see the interface."""
        async with self._call(context, "LoadModel"):
            request = parse(pb.LoadModelRequest, data)
            report = await self._swap.load(
                request.directory,
                canary_texts=request.canary_texts,
                min_similarity=request.min_similarity if request.HasField("min_similarity") else None,
                dry_run=request.dry_run,
            )
            return pb.LoadModelResponse(
                name=report.name,
                digest=report.digest,
                replaced_digest=report.replaced_digest,
                has_changed=report.has_changed,
                canary=_canary_message(report.canary),
            )

    async def UnloadModel(self, data: bytes, context: Context) -> pb.UnloadModelResponse:  # noqa: N802  # its name
        """Takes a model out of service; see the interface."""
        async with self._call(context, "UnloadModel"):
            request = parse(pb.UnloadModelRequest, data)
            return pb.UnloadModelResponse(digest=await self._swap.unload(request.name, digest=request.digest))

    async def SetDefaultModel(self, data: bytes, context: Context) -> pb.SetDefaultModelResponse:  # noqa: N802  # its name
        """Makes a model its pair's default; see the interface."""
        async with self._call(context, "SetDefaultModel"):
            request = parse(pb.SetDefaultModelRequest, data)
            return pb.SetDefaultModelResponse(previous_name=await self._swap.set_default(request.name))

    def _message(self, model: ServedModel) -> pb.Model:
        return pb.Model(
            name=model.name,
            digest=model.digest,
            source_language_code=model.source_language,
            target_language_code=model.target_language,
            precision=model.precision,
            directory="" if model.directory is None else model.directory.name,
            is_default=self._catalog.view.translator.defaults.get(model.language_pair) is model,
            is_served=model in self._catalog.models,
            num_running=model.loop.num_running,
            num_waiting=model.loop.num_waiting,
        )


def _canary_message(report: CanaryReport) -> pb.CanaryReport:
    return pb.CanaryReport(
        num_texts=report.num_texts,
        num_compared=report.num_compared,
        num_equal=report.num_equal,
        mean_similarity=report.mean_similarity,
        num_cut_before=report.num_cut_before,
        num_cut_after=report.num_cut_after,
    )
