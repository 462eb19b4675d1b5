"""Writes what makes a directory a bundle, and puts a finished bundle in its place in one step."""

from __future__ import annotations

import dataclasses
import hashlib
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from service.bundle import CHECKSUM_NAME, MANIFEST_NAME, manifest_checksum_line
from service.manifest import FileRecord, Manifest


def seal(directory: Path, manifest: Manifest) -> Manifest:
    """Writes `manifest.json` and `manifest.sha256` into `directory` for all the files it holds now.

    `manifest.files` is replaced by what is there. Returns the manifest as written.
    """
    files = {}
    for path in sorted(path for path in directory.rglob("*") if path.is_file()):
        relative = path.relative_to(directory).as_posix()
        if relative not in (MANIFEST_NAME, CHECKSUM_NAME):
            with path.open("rb") as file:
                digest = hashlib.file_digest(file, "sha256").hexdigest()
            files[relative] = FileRecord(sha256=digest, num_bytes=path.stat().st_size)
    sealed = dataclasses.replace(manifest, files=files)
    text = sealed.to_json().encode()
    (directory / MANIFEST_NAME).write_bytes(text)
    (directory / CHECKSUM_NAME).write_bytes(manifest_checksum_line(text))
    return sealed


@contextmanager
def new_directory(output: Path) -> Iterator[Path]:
    """An empty directory beside `output` to build in; renamed to `output` when the block ends well, removed otherwise.

    Raises:
        FileExistsError: if `output` exists, at the start or by the end. Nothing is ever overwritten.
    """
    _must_not_exist(output)
    output.parent.mkdir(parents=True, exist_ok=True)
    building = Path(tempfile.mkdtemp(prefix=f".{output.name}.", suffix=".building", dir=output.parent))
    try:
        yield building
        for path in building.rglob("*"):
            _flush(path)
        building.chmod(0o755)
        _flush(building)
        _must_not_exist(output)
        building.rename(output)
        _flush(output.parent)
    finally:
        shutil.rmtree(building, ignore_errors=True)


def _must_not_exist(output: Path) -> None:
    if output.exists() or output.is_symlink():
        raise FileExistsError(f"{output} must not exist yet, but does: a bundle is never overwritten.")


def _flush(path: Path) -> None:
    """Sends a file or directory to the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
