"""Which models are served now, and which must stay alive because a call uses them?

What is served is one immutable view, replaced whole: nobody sees half of a change. A call leases the models of the view
that it begins with, and keeps the one that answers it until it ends, so that a model that is taken out of service
serves its last call to the end. Everything but `view`, `models` and `in_use` belongs to the event loop.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from types import MappingProxyType

from service.config import Config
from service.pb.translation.v1 import translation_pb2 as pb
from service.served_model import ServedModel
from service.server_info import server_info
from service.translator import Translator


@dataclass(frozen=True, kw_only=True, eq=False)
class CatalogView:
    """What is served at one time."""

    models: tuple[ServedModel, ...]
    """At least one; their loops run."""
    translator: Translator
    """Checks requests against them."""
    info: pb.GetServerInfoResponse
    """What GetServerInfo says of them."""
    defaults: Mapping[str, str] = field(default_factory=dict)
    """Name of the model that is taken for a language pair, where that is not the first by name."""

    @classmethod
    def of(
        cls,
        models: Sequence[ServedModel],
        config: Config,
        *,
        clock: Callable[[], float],
        defaults: Mapping[str, str] = MappingProxyType({}),
    ) -> CatalogView:
        """The view of these models. `clock` gives the monotonic seconds of the calls' deadlines; a default that is
        not served means nothing until it is."""
        translator = Translator(models, config.limits, clock=clock, defaults=defaults)
        return cls(
            models=tuple(models),
            translator=translator,
            info=server_info(config, models, defaults=translator.defaults),
            defaults=dict(defaults),
        )


class Lease:
    """Models that stay alive for one call: all of a view, until one is kept."""

    def __init__(self, view: CatalogView) -> None:
        self.view = view
        """What the call is checked against; no newer one, even if there is one by then."""
        self.models: tuple[ServedModel, ...] = view.models
        """The models that stay."""


class Catalog:
    """The models of one server."""

    def __init__(self) -> None:
        self._view: CatalogView | None = None
        self._num_leases: Counter[ServedModel] = Counter()
        self._waiting: dict[ServedModel, asyncio.Event] = {}

    @property
    def view(self) -> CatalogView:
        """What is served now.

        Raises:
            LookupError: before the first view.
        """
        if self._view is None:
            raise LookupError("Nothing is served yet.")
        return self._view

    @property
    def models(self) -> tuple[ServedModel, ...]:
        """The models that are served now; none before the first view."""
        return () if self._view is None else self._view.models

    @property
    def in_use(self) -> tuple[ServedModel, ...]:
        """The models that are served, and those that are not any more and serve their last calls."""
        models = self.models
        return (*models, *(model for model in list(self._num_leases) if model not in models))

    def replace(self, view: CatalogView) -> tuple[ServedModel, ...]:
        """Serves what `view` says from now on. Calls that have a lease go on as they began.

        Returns:
            The models that are not served any more; see `wait_unused`.
        """
        before = self.models
        self._view = view
        return tuple(model for model in before if model not in view.models)

    @contextmanager
    def lease(self) -> Iterator[Lease]:
        """While entered, the models of the view as it is now stay alive, or the one that was kept.

        Raises:
            LookupError: before the first view.
        """
        lease = Lease(self.view)
        self._num_leases.update(lease.models)
        try:
            yield lease
        finally:
            self._give_back(lease.models)

    def keep(self, lease: Lease, model: ServedModel) -> None:
        """Gives back all that `lease` holds but `model`, which it must hold."""
        if model not in lease.models:
            raise ValueError(f"A lease keeps a model that it holds, but {model.name} is none.")
        self._give_back(tuple(other for other in lease.models if other is not model))
        lease.models = (model,)

    async def wait_unused(self, model: ServedModel) -> None:
        """Returns when the last lease of a model was given back.

        Raises:
            ValueError: when it is still served, for it may be leased again at any time.
        """
        if model in self.models:
            raise ValueError(f"A model must be out of service to be waited for, but {model.name} is served.")
        if model in self._num_leases:
            await self._waiting.setdefault(model, asyncio.Event()).wait()

    def _give_back(self, models: Sequence[ServedModel]) -> None:
        for model in models:
            self._num_leases[model] -= 1
            if not self._num_leases[model]:
                del self._num_leases[model]
                if event := self._waiting.pop(model, None):
                    event.set()
