"""How does what is served change while calls go on?

One change at a time. A new model is read, verified, opened, probed and tried beside the old one before anybody gets
it; then what is served is replaced in one moment, and the old model goes when its last call has ended. Whatever fails
before that moment leaves everything as it was.
"""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import gc
import logging
import sys
from collections.abc import Callable, Coroutine, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePath
from typing import Any, TypeVar

from service.bundle import Bundle, BundleError
from service.canary import CanaryReport, run_canary
from service.catalog import Catalog, CatalogView
from service.config import Config
from service.daemon_thread import in_daemon_thread
from service.loop_group import LoopGroup
from service.models import ModelsError, load_model, memory_problem
from service.refusals import ChangeRefusedError, NotServedError, shortened
from service.request import Delivery
from service.served_model import ServedModel
from service.step_report import StepReport

logger = logging.getLogger(__name__)

Result = TypeVar("Result")

CANARIES_DIRECTORY = "canaries"
_STOP_SECONDS = 10.0
"""How long an engine that has no work left may take to end."""
_CLOSE_SECONDS = 2.0
"""How long the end waits for that; threads that hang end with the process."""


@dataclass(frozen=True, kw_only=True)
class LoadReport:
    """What became of a bundle that was to be served."""

    name: str
    """Of the model."""
    digest: str
    """Of the bundle."""
    replaced_digest: str
    """Of the model whose place it has taken, or would take; "": none."""
    has_changed: bool
    """Whether what is served is another now: not in a dry run, nor when the bundle was served already."""
    canary: CanaryReport
    """How it translates."""


class Swap:
    """Changes what one server serves; belongs to its event loop."""

    def __init__(
        self,
        config: Config,
        catalog: Catalog,
        *,
        deliver: Callable[[list[Delivery]], None],
        observe: Callable[[StepReport], None],
        clock: Callable[[], float],
    ) -> None:
        """Args:
        config: of the server.
        catalog: what it serves; changed here and nowhere else from now on.
        deliver, observe: of the new models' engine loops.
        clock: monotonic seconds of the calls' deadlines.
        """
        self._config = config
        self._root = Path(config.server.models)
        self._catalog = catalog
        self._deliver = deliver
        self._observe = observe
        self._clock = clock
        self._change: asyncio.Task[Any] | None = None
        self._retiring: set[asyncio.Task[None]] = set()
        self._is_closed = False

    async def load(
        self,
        directory: str,
        *,
        canary_texts: Sequence[str] = (),
        min_similarity: float | None = None,
        dry_run: bool = False,
    ) -> LoadReport:
        """Serves the bundle of a sub-directory of the models' directory, in place of the model of its name.

        Args:
            directory: its path from there.
            canary_texts: what it must translate; empty: the lines of `canaries/PAIR.txt`, if there are any.
            min_similarity: how like the old one's its translations must be, 0 to 1; None: as configured.
            dry_run: do all but serve it.

        Raises:
            ChangeRefusedError: when it is not to be served, or another change is in progress.
            InvalidRequestError: when the canary texts cannot be translated as they are.
        """
        if min_similarity is None:
            min_similarity = self._config.swap.canary_min_similarity
        return await self._alone(self._load(directory, tuple(canary_texts), min_similarity, dry_run))

    async def unload(self, name: str, *, digest: str = "") -> str:
        """Takes a model out of service; calls in progress keep it.

        Args:
            name: of the model.
            digest: its own, or the beginning of it.

        Returns:
            Its digest.

        Raises:
            NotServedError: when it is not served.
            ChangeRefusedError: when nothing would be served, or another change is in progress.
        """
        return await self._alone(self._unload(name, digest))

    async def set_default(self, name: str) -> str:
        """Makes a model the default of its language pair.

        Returns:
            The name of the one that was.

        Raises:
            NotServedError: when it is not served.
            ChangeRefusedError: when another change is in progress.
        """
        return await self._alone(self._set_default(name))

    async def close(self) -> None:
        """Makes no change from now on; one in progress is given up, and what it opened stopped."""
        self._is_closed = True
        tasks = [*filter(None, [self._change]), *self._retiring]
        for task in tasks:
            task.cancel()
        if tasks:
            await asyncio.wait(tasks, timeout=_CLOSE_SECONDS)

    async def wait_retired(self) -> None:
        """Returns when every model that was taken out of service until now has ended its last call and is gone."""
        await asyncio.gather(*self._retiring)

    async def _alone(self, change: Coroutine[Any, Any, Result]) -> Result:
        """The result of a change, which goes on to its end even if nobody waits for it."""
        if self._is_closed or self._change is not None:
            change.close()
            raise _busy()
        self._change = task = asyncio.create_task(change)
        task.add_done_callback(self._has_changed)
        try:
            return await asyncio.shield(task)
        except asyncio.CancelledError:
            if task.cancelled():  # not who waits
                raise _busy() from None
            raise

    def _has_changed(self, task: asyncio.Task[Any]) -> None:
        """A change has ended. What it failed with was logged where it was refused, and would keep models alive."""
        self._change = None
        if not task.cancelled():
            task.exception()

    async def _load(self, directory: str, texts: tuple[str, ...], min_similarity: float, dry_run: bool) -> LoadReport:
        path = self._root / _below(directory)

        def admit(bundle: Bundle) -> None:
            if problem := memory_problem(self._config, bundle, self._catalog.in_use):
                raise self._refused(directory, "MEMORY_LIMIT", [problem])

        def work() -> ServedModel:
            return load_model(path, self._config, deliver=self._deliver, observe=self._observe, admit=admit)

        try:
            new = await in_daemon_thread(work, name="load")
        except (BundleError, ModelsError) as error:
            raise self._refused(directory, "BUNDLE_REFUSED", error.problems) from error
        name, digest = new.name, new.digest
        old = next((model for model in self._catalog.models if model.name == name), None)
        is_served = False
        try:
            new.loop.start()
            texts = texts or await self._canary_texts(directory, new.language_pair)
            canary = await run_canary(old, new, texts, limits=self._config.limits, clock=self._clock)
            if problem := canary.problem(min_similarity):
                raise self._refused(directory, "CANARY_FAILED", [problem])
            if not dry_run and (old is None or old.digest != digest):
                self._serve([*(model for model in self._catalog.models if model is not old), new])
                is_served = True
        finally:
            if not is_served:
                await self._stop(new.loop)
                del new
        if is_served:
            facts = {"model": name, "digest": digest, "precision": new.precision}
            logger.info("A model is served.", extra={**facts, "num_threads": new.num_threads})
        return LoadReport(
            name=name,
            digest=digest,
            replaced_digest=old.digest if old is not None else "",
            has_changed=is_served,
            canary=canary,
        )

    async def _canary_texts(self, directory: str, pair: str) -> tuple[str, ...]:
        """The lines of the pair's file that have text, as many as are configured."""
        path = self._root / CANARIES_DIRECTORY / f"{pair}.txt"
        try:
            lines = (await in_daemon_thread(lambda: path.read_text(encoding="utf-8"), name="load")).splitlines()
        except FileNotFoundError:
            return ()
        except (OSError, UnicodeDecodeError) as error:
            problem = f"{path} must be a file of lines in UTF-8, but cannot be read: {type(error).__name__}."
            raise self._refused(directory, "CANARY_FAILED", [problem]) from error
        return tuple(line for line in lines if line.strip())[: self._config.swap.canary_sentences]

    async def _unload(self, name: str, digest: str) -> str:
        model = self._served(name)
        if not model.digest.startswith(digest):
            raise NotServedError(
                resource_type="model",
                resource_name=f"{name} {digest}",
                served=[f"{each.name} {each.digest[:12]}" for each in self._catalog.models],
            )
        others = [each for each in self._catalog.models if each is not model]
        if not others:
            raise self._refused("", "LAST_MODEL", [f"One model must be served, but {name} is the only one."])
        self._serve(others)
        return model.digest

    async def _set_default(self, name: str) -> str:
        model = self._served(name)
        view = self._catalog.view
        before = view.translator.defaults[model.language_pair].name
        self._catalog.replace(self._view(view.models, {**view.defaults, model.language_pair: name}))
        logger.info("A model is its language pair's default.", extra={"model": name, "digest": model.digest})
        return before

    def _served(self, name: str) -> ServedModel:
        for model in self._catalog.models:
            if model.name == name:
                return model
        names = [model.name for model in self._catalog.models]
        raise NotServedError(resource_type="model", resource_name=name, served=names)

    def _view(self, models: Sequence[ServedModel], defaults: dict[str, str]) -> CatalogView:
        return CatalogView.of(models, self._config, clock=self._clock, defaults=defaults)

    def _serve(self, models: Sequence[ServedModel]) -> None:
        """Serves these models from now on, and lets go of those that were served until now."""
        for model in self._catalog.replace(self._view(models, dict(self._catalog.view.defaults))):
            task = asyncio.create_task(self._retire(model))
            self._retiring.add(task)
            task.add_done_callback(self._retiring.discard)

    async def _retire(self, model: ServedModel) -> None:
        """Stops a model when its last call has ended, and gives its memory back."""
        facts = {"model": model.name, "digest": model.digest}
        await self._catalog.wait_unused(model)
        loop = model.loop
        del model
        await self._stop(loop)
        del loop
        await in_daemon_thread(_give_memory_back, name="retire")
        logger.info("A model is out of service.", extra=facts)

    async def _stop(self, loop: LoopGroup) -> None:
        """Ends a model's engines, whose calls have ended; what was cancelled may still leave."""

        def stop() -> bool:
            has_drained = all(each.drain(_STOP_SECONDS) for each in loop.loops)
            return loop.stop(_STOP_SECONDS) and has_drained

        loop.begin_drain()
        if not await in_daemon_thread(stop, name="retire"):
            logger.error("An engine did not end in time; its memory stays.")

    def _refused(self, what: str, reason: str, problems: list[str]) -> ChangeRefusedError:
        logger.error(
            "A change of models is refused.", extra={"reason": reason, "directory": what, "problems": problems}
        )
        return ChangeRefusedError(problems, reason=reason)


def _below(directory: str) -> PurePath:
    """A path from the directory of models.

    Raises:
        ChangeRefusedError: when it would leave it.
    """
    path = PurePath(directory)
    if not path.parts or path.is_absolute() or ".." in path.parts or "\0" in directory:
        problem = f"`directory` must be a sub-directory of the directory of models, but is {shortened(directory)!r}."
        raise ChangeRefusedError([problem], reason="BUNDLE_REFUSED")
    return path


def _busy() -> ChangeRefusedError:
    message = "One change is made at a time, and another one is in progress or the server is stopping."
    return ChangeRefusedError([message], reason="SWAP_IN_PROGRESS")


def _give_memory_back() -> None:
    """Collects what is in cycles, as an engine and its callbacks are, and returns free memory to the system."""
    gc.collect()
    if sys.platform == "linux":
        with contextlib.suppress(OSError, AttributeError):  # another C library
            ctypes.CDLL(None).malloc_trim(0)
