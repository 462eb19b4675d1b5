"""A bundle on disk: loaded only when every byte of it is what its maker wrote. `docs/bundle.md` describes the layout.

    encoder.onnx, decoder.onnx, candidates.onnx, greedy.onnx
                        the graphs (`*.onnx.data` beside them where the weights are stored apart); the last is optional
    tokenizer/          what `service.tokenizer` reads
    manifest.json       what the bundle is, with the SHA-256 of every file above
    manifest.sha256     the SHA-256 of manifest.json, as `sha256sum` writes it

Each file is read once: the bytes that were verified are the bytes that are used, whatever happens to the directory
meanwhile. Whether the graphs have the inputs and outputs that the manifest says is checked where they are opened, in
`service.graphs`, with `bundle.manifest.signature`.
"""

from __future__ import annotations

import hashlib
import os
import stat
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath

from service.graph_signature import Architecture, GraphSignature
from service.manifest import FORMAT_VERSION, FileRecord, Manifest, ManifestError
from service.tokenizer import Tokenizer, TokenizerError

__all__ = ["FORMAT_VERSION", "Bundle", "BundleError", "Manifest", "load_bundle", "manifest_checksum_line"]

MANIFEST_NAME = "manifest.json"
CHECKSUM_NAME = "manifest.sha256"
ENCODER_NAME = "encoder.onnx"
DECODER_NAME = "decoder.onnx"
CANDIDATES_NAME = "candidates.onnx"
GREEDY_NAME = "greedy.onnx"
TOKENIZER_DIRECTORY = "tokenizer"
MAX_MANIFEST_BYTES = 16 * 2**20


class BundleError(ValueError):
    """A bundle that must not be served; `problems` lists every reason, one sentence each."""

    def __init__(self, directory: str | Path, problems: list[str]) -> None:
        lines = "\n".join(f"  - {problem}" for problem in problems)
        super().__init__(f"{directory} is not a bundle that can be used: {len(problems)} problem(s)\n{lines}")
        self.problems = problems


@dataclass(frozen=True, kw_only=True)
class Bundle:
    """A verified bundle."""

    directory: Path
    """Where it lies."""
    manifest: Manifest
    """What it says of itself."""
    digest: str
    """SHA-256 of `manifest.json`, and so of the whole bundle."""
    tokenizer: Tokenizer
    """Its tokenizer."""
    files: Mapping[str, bytes] = field(repr=False)
    """The verified bytes of every file that the manifest names, by path: what graphs are opened from. They stay in
    memory as long as this object does."""

    @property
    def encoder_path(self) -> Path:
        """The encoder's graph."""
        return self.directory / ENCODER_NAME

    @property
    def decoder_path(self) -> Path:
        """The decoder's graph."""
        return self.directory / DECODER_NAME

    @property
    def candidates_path(self) -> Path:
        """The graph that picks candidates."""
        return self.directory / CANDIDATES_NAME

    @property
    def greedy_path(self) -> Path | None:
        """The graph of several steps of greedy search; None where there is none."""
        return self.directory / GREEDY_NAME if self.manifest.greedy_steps > 1 else None

    @property
    def architecture(self) -> Architecture:
        """Shapes of the model."""
        return self.manifest.architecture

    @property
    def signature(self) -> GraphSignature:
        """Names, axes and element types of the graphs."""
        return self.manifest.signature


def manifest_checksum_line(manifest: bytes) -> bytes:
    """What `manifest.sha256` must hold for a `manifest.json` of these bytes."""
    return f"{hashlib.sha256(manifest).hexdigest()}  {MANIFEST_NAME}\n".encode()


def load_bundle(directory: str | Path) -> Bundle:
    """Reads a bundle and verifies every byte of it.

    Raises:
        BundleError: listing every problem: a file missing, altered or not named in the manifest; a path that leaves
            the directory; a symbolic link; a format version that this build does not read; a manifest that is not what
            it must be; a tokenizer that does not load or does not fit the model.
    """
    directory = Path(directory)
    problems: list[str] = []
    try:
        if not directory.is_dir():
            raise BundleError(directory, ["It must be a directory, but is not."])
        present = set(_walk(directory, problems))
    except OSError as error:  # a name that is too long, or a file that goes just now
        raise BundleError(directory, [f"It must be readable, but is not: {error.strerror}."]) from error
    manifest_bytes, checksum_line = (
        _read_small_or_none(directory / name, problems) for name in (MANIFEST_NAME, CHECKSUM_NAME)
    )
    if manifest_bytes is None:
        raise BundleError(directory, problems)
    if checksum_line is not None and checksum_line != manifest_checksum_line(manifest_bytes):
        problems.append(f"The SHA-256 of {MANIFEST_NAME} must be the one in {CHECKSUM_NAME}, but is not: altered.")
    manifest = None
    try:
        manifest = Manifest.from_json(manifest_bytes.decode("utf-8"))
    except UnicodeDecodeError as error:
        problems.append(f"{MANIFEST_NAME} must be UTF-8, but is not: {error}")
    except ManifestError as error:
        problems += error.problems
    if manifest is None:
        raise BundleError(directory, problems)
    files = _read_files(directory, manifest, present, problems)
    if problems:  # what does not match its checksum is not used
        raise BundleError(directory, problems)
    tokenizer_files = {
        path.name: content
        for path, content in ((PurePosixPath(name), content) for name, content in files.items())
        if path.parent == PurePosixPath(TOKENIZER_DIRECTORY)
    }
    try:
        tokenizer = Tokenizer.from_files(tokenizer_files, where=directory / TOKENIZER_DIRECTORY)
    except TokenizerError as error:
        raise BundleError(directory, [str(error)]) from error
    problems = _check_tokenizer(manifest, tokenizer)
    if problems:
        raise BundleError(directory, problems)
    return Bundle(
        directory=directory,
        manifest=manifest,
        digest=hashlib.sha256(manifest_bytes).hexdigest(),
        tokenizer=tokenizer,
        files=files,
    )


def _walk(directory: Path, problems: list[str]) -> Iterator[str]:
    """Paths of all regular files below `directory`, with forward slashes. Anything else becomes a problem."""
    for parent, directories, names in os.walk(directory, onerror=lambda error: problems.append(str(error))):
        for name in sorted([*directories, *names]):
            path = Path(parent, name)
            relative = path.relative_to(directory).as_posix()
            mode = path.lstat().st_mode
            if stat.S_ISREG(mode):
                yield relative
            elif not stat.S_ISDIR(mode):
                problems.append(f"{relative} must be a plain file, but is a symbolic link or something else.")


def read_small(path: Path) -> bytes:
    """The bytes of a manifest or its checksum.

    Raises:
        ValueError: when it is no plain file, which could be read for ever, or is huge.
        OSError: when it cannot be read.
    """
    found = path.lstat()
    if not stat.S_ISREG(found.st_mode):
        raise ValueError(f"{path.name} must be a plain file, but is not.")
    if found.st_size > MAX_MANIFEST_BYTES:
        raise ValueError(f"{path.name} must have at most {MAX_MANIFEST_BYTES} bytes, but has {found.st_size}.")
    return path.read_bytes()


def _read_small_or_none(path: Path, problems: list[str]) -> bytes | None:
    """The same; None with a problem where it cannot be."""
    try:
        mode = path.lstat().st_mode
        if not stat.S_ISREG(mode) and not stat.S_ISDIR(mode):
            return None  # `_walk` has said so
        return read_small(path)
    except ValueError as error:
        problems.append(str(error))
    except OSError as error:
        problems.append(f"{path.name} must be readable, but is not: {error.strerror}.")
    return None


def _read_files(directory: Path, manifest: Manifest, present: set[str], problems: list[str]) -> dict[str, bytes]:
    """The files that the manifest names and that are what it says; `problems` grows by every difference between those
    that it names and those that are there."""
    optional = (GREEDY_NAME,) if manifest.greedy_steps > 1 else ()
    for required in (ENCODER_NAME, DECODER_NAME, CANDIDATES_NAME, *optional):
        if required not in manifest.files:
            problems.append(f"`files` must name {required}, but does not.")
    for extra in sorted(present - manifest.files.keys() - {MANIFEST_NAME, CHECKSUM_NAME}):
        problems.append(f"{extra} must be named in the manifest, but is not.")
    files = {}
    for name, record in manifest.files.items():
        path_problem = _path_problem(name)
        if path_problem:
            problems.append(path_problem)
        elif name not in present:
            problems.append(f"{name} must exist, but is missing.")
        else:
            content = _read_file(directory / name, name, record, problems)
            if content is not None:
                files[name] = content
    return files


def _path_problem(name: str) -> str | None:
    """Why a path of the manifest is not allowed, or None."""
    path = PurePosixPath(name)
    if path.is_absolute() or ".." in path.parts or "\\" in name or ":" in name or "\0" in name:
        return f"A path in `files` must stay inside the bundle, but is {name!r}."
    if not path.parts or path.as_posix() != name or name in (MANIFEST_NAME, CHECKSUM_NAME):
        return f"A path in `files` must be the plain path of a file of the bundle, but is {name!r}."
    return None


def _read_file(path: Path, name: str, record: FileRecord, problems: list[str]) -> bytes | None:
    """The bytes of a file that must be what the manifest says; None with a problem otherwise."""
    try:
        with path.open("rb") as file:
            size = os.fstat(file.fileno()).st_size
            content = file.read() if size == record.num_bytes else b""
    except OSError as error:
        problems.append(f"{name} must be readable, but is not: {error.strerror}.")
        return None
    if size != record.num_bytes:
        problems.append(f"{name} must have {record.num_bytes} bytes, but has {size}: the file was altered.")
        return None
    digest = hashlib.sha256(content).hexdigest()
    if digest != record.sha256:
        problems.append(f"The SHA-256 of {name} must be {record.sha256}, but is {digest}: the file was altered.")
        return None
    return content


def _check_tokenizer(manifest: Manifest, tokenizer: Tokenizer) -> list[str]:
    """Whether tokenizer and model belong together."""
    problems = []
    architecture = manifest.architecture
    languages = (manifest.source_language, manifest.target_language)
    if (tokenizer.source_language, tokenizer.target_language) != languages:
        problems.append(
            f"The tokenizer must be for {languages[0]} to {languages[1]}, "
            f"but is for {tokenizer.source_language} to {tokenizer.target_language}."
        )
    if tokenizer.source_vocab_size > architecture.source_vocabulary:
        problems.append(
            f"The tokenizer must have at most {architecture.source_vocabulary} source tokens, "
            f"but has {tokenizer.source_vocab_size}."
        )
    if tokenizer.target_vocab_size != architecture.target_tokens:
        problems.append(
            f"The tokenizer must have {architecture.target_tokens} target tokens, "
            f"but has {tokenizer.target_vocab_size}."
        )
    return problems
