"""Which bundles have come, changed or gone in the directory of models?

The directory is looked at again and again: notices of the file system do not reach network and container volumes. What
has changed is acted on when it looks the same twice, so that a bundle that is being copied is left alone; one that is
caught half-copied all the same fails its checksums and is tried again when its files have changed.
"""

from __future__ import annotations

import asyncio
import json
import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from service.bundle import CHECKSUM_NAME, MANIFEST_NAME, read_small
from service.catalog import Catalog
from service.daemon_thread import in_daemon_thread
from service.refusals import ChangeRefusedError, NotServedError
from service.swap import Swap

logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class FoundBundle:
    """What a directory looks like, without its files being verified. Equal: nothing has changed."""

    name: str
    """Of the model, by its manifest."""
    digest: str
    """As its `manifest.sha256` has it."""
    files: tuple[tuple[str, int, int, int], ...]
    """Path, inode, size and time of change in nanoseconds of each file, in order."""


def find(root: Path) -> dict[str, FoundBundle]:
    """The bundles in a directory, by the names of their own; those that begin with a dot, or whose manifest cannot be
    read, are left out.

    Raises:
        OSError: when the directory cannot be read.
    """
    found = {}
    for directory in root.iterdir():
        if directory.name.startswith("."):
            continue
        try:
            found[directory.name] = _look(directory)
        except (OSError, ValueError, KeyError, TypeError, RecursionError):
            continue  # no bundle, or one that comes or goes right now
    return found


def _look(directory: Path) -> FoundBundle:
    manifest = json.loads(read_small(directory / MANIFEST_NAME))
    states = ((path, path.lstat()) for path in sorted(directory.rglob("*")))
    return FoundBundle(
        name=str(manifest["name"]),
        digest=read_small(directory / CHECKSUM_NAME).decode("ascii").split(" ")[0],
        files=tuple(
            (path.relative_to(directory).as_posix(), state.st_ino, state.st_size, state.st_mtime_ns)
            for path, state in states
        ),
    )


class Watch:
    """Keeps what a server serves true to its directory of models; belongs to the event loop."""

    def __init__(self, root: Path, catalog: Catalog, swap: Swap) -> None:
        self._root = root
        self._catalog = catalog
        self._swap = swap
        self._last: dict[str, FoundBundle] = {}
        self._refused: dict[str, FoundBundle] = {}
        self._missing: set[str] = set()

    async def run(self, seconds: float) -> None:
        """Looks every `seconds`, until cancelled."""
        while True:
            await asyncio.sleep(seconds)
            try:
                await self.look()
            except Exception as error:
                logger.error("The directory of models could not be looked at.", exc_info=error)

    async def look(self) -> None:
        """Looks once, and acts on what looks as it did the last time.

        Raises:
            OSError: when the directory cannot be read; nothing is taken for gone then.
        """
        found = await in_daemon_thread(lambda: find(self._root), name="watch")
        last, self._last = self._last, found
        for directory, bundle in sorted(found.items()):
            if last.get(directory) == bundle and self._is_new(directory, bundle, found):
                await self._load(directory, bundle)
        await self._unload_missing(found)

    def _is_new(self, directory: str, bundle: FoundBundle, found: dict[str, FoundBundle]) -> bool:
        """Whether a bundle is to be loaded: not one that is served or was refused as it is, nor one beside another of
        its name that is served and still there."""
        if self._refused.get(directory) == bundle:
            return False
        served = {model.name: model.digest for model in self._catalog.models}
        if bundle.digest in served.values():
            return False
        if served.get(bundle.name) in {other.digest for name, other in found.items() if name != directory}:
            self._refused[directory] = bundle
            facts: dict[str, Any] = {"model": bundle.name, "directory": directory}
            logger.error("A bundle is not loaded: another one of its name is there and served.", extra=facts)
            return False
        return True

    async def _load(self, directory: str, bundle: FoundBundle) -> None:
        try:
            await self._swap.load(directory)
        except ChangeRefusedError as error:  # which has logged it
            if error.reason != "SWAP_IN_PROGRESS":
                self._refused[directory] = bundle
        except Exception as error:
            self._refused[directory] = bundle
            logger.error("A bundle could not be loaded.", exc_info=error, extra={"directory": directory})

    async def _unload_missing(self, found: dict[str, FoundBundle]) -> None:
        """Unloads models whose directory was missing the last time, too; never the last one."""
        digests = {bundle.digest for bundle in found.values()}
        missing = {
            model.digest: model.name
            for model in self._catalog.models
            if model.directory is not None
            and model.directory.parent == self._root
            and not model.directory.name.startswith(".")
            and not model.directory.exists()
            and model.digest not in digests
        }
        for digest in sorted(missing.keys() & self._missing):
            if len(self._catalog.models) > 1:
                try:
                    await self._swap.unload(missing[digest], digest=digest)
                except (ChangeRefusedError, NotServedError):  # another change is in progress, or was: the next time
                    continue
        self._missing = set(missing)
