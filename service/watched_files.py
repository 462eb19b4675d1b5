"""What do files say that may be replaced while the server runs?

Certificates are renewed and keys revoked without a restart: whoever needs what the files say asks for it each time, and
they are read anew when they have changed. Files that cannot be used change nothing: what they said before stays.
"""

import logging
import os
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Generic, TypeVar

logger = logging.getLogger(__name__)

Content = TypeVar("Content")
_Stamp = tuple[tuple[int, ...] | None, ...]
_MAX_READS = 3
"""How often files that change while they are read are read again, at once."""


class FilesError(ValueError):
    """Files that cannot be used; `problems` lists every reason, one sentence each, without what the files hold."""

    def __init__(self, problems: list[str]) -> None:
        super().__init__(" ".join(problems))
        self.problems = problems


class WatchedFiles(Generic[Content]):
    """What some files say together, as of now. May be asked by any thread."""

    def __init__(
        self,
        paths: Sequence[str],
        load: Callable[[], Content],
        *,
        what: str,
        on_failure: Callable[[], None] = lambda: None,
    ) -> None:
        """Reads the files.

        Args:
            paths: of the files.
            load: reads and checks them; raises `FilesError` or `OSError` when they cannot be used.
            what: one word for the log and the metrics, as in "certificates".
            on_failure: called when changed files cannot be used, once for each change.

        Raises:
            FilesError: when they cannot be used.
        """
        self._paths = tuple(paths)
        self._load = load
        self._what = what
        self._on_failure = on_failure
        self._lock = threading.Lock()
        self._bad_stamp: _Stamp | None = None
        self._stamp, content = self._read()
        if isinstance(content, FilesError):
            raise content
        self._content: Content = content

    def current(self) -> Content:
        """What the files say; while they cannot be used, what they said before."""
        with self._lock:
            stamp = self._stamp_of_files()
            if stamp not in (self._stamp, self._bad_stamp):
                self._read_anew()
            return self._content

    def _read_anew(self) -> None:
        stamp, content = self._read()
        if isinstance(content, FilesError):
            self._bad_stamp = stamp
            message = "Changed files could not be used; what they said before stays."
            logger.error(message, extra={"what": self._what, "problems": content.problems})
            self._on_failure()
            return
        self._stamp, self._content, self._bad_stamp = stamp, content, None
        logger.info("Changed files were read anew.", extra={"what": self._what})

    def _read(self) -> tuple[_Stamp, Content | FilesError]:
        """What the files say and how they were stamped while they were read."""
        for _ in range(_MAX_READS):
            stamp = self._stamp_of_files()
            content: Content | FilesError
            try:
                content = self._load()
            except FilesError as error:
                content = error
            except OSError as error:
                content = FilesError([f"{error.filename} must be readable, but is not: {error.strerror}."])
            if stamp == self._stamp_of_files():
                return stamp, content
        return stamp, FilesError([f"{', '.join(self._paths)} must not change all the time, but do."])

    def _stamp_of_files(self) -> _Stamp:
        """What tells one state of the files from another."""
        stamps: list[tuple[int, ...] | None] = []
        for path in self._paths:
            try:
                found = os.stat(path)
            except OSError:
                stamps.append(None)
            else:
                stamps.append((found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns, found.st_ctime_ns))
        return tuple(stamps)


def read_text(path: str) -> str:
    """The text of a file.

    Raises:
        OSError: when it cannot be read.
        FilesError: when it is no UTF-8.
    """
    try:
        return Path(path).read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise FilesError([f"{path} must be UTF-8, but its byte {error.start} is not."]) from None
