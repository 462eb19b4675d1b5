"""Structured logs on stderr: what happened, to which request, never the text that was translated.

A message is a constant sentence; facts go beside it through `extra`, and only those named in `FACTS` are written. So a
text cannot slip into the log by way of a formatted message, and exceptions are written as their type and the places
they passed; their message is written only where it comes from the system or ONNX Runtime, which never see text.
"""

import json
import logging
import sys
import time
import traceback
from typing import Any, TextIO

FACTS = (
    "request_id", "caller", "code", "reason", "seconds", "num_contents", "num_segments", "num_source_tokens",
    "num_target_tokens", "model", "digest", "precision", "provider", "num_threads", "address", "metrics_address",
    "signal", "num_calls", "what", "directory", "problems", "version",
)  # fmt: skip
"""Names that a record may carry beside its message."""


class JsonFormatter(logging.Formatter):
    """One JSON object a line."""

    def format(self, record: logging.LogRecord) -> str:
        """The record as a line."""
        line: dict[str, Any] = {
            "time": _timestamp(record),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
        }
        line.update(facts_of(record))
        if record.exc_info and record.exc_info[1] is not None:
            line["exception"] = describe_exception(record.exc_info[1])
        return json.dumps(line, ensure_ascii=False, default=str)


class TextFormatter(logging.Formatter):
    """A line for people."""

    def format(self, record: logging.LogRecord) -> str:
        """The record as a line, followed by the places of an exception."""
        facts = "".join(f" {name}={value}" for name, value in facts_of(record).items())
        line = f"{_timestamp(record)} {record.levelname.lower():7} {record.getMessage()}{facts}"
        if record.exc_info and record.exc_info[1] is not None:
            line += "\n" + "\n".join(f"    {part}" for part in describe_exception(record.exc_info[1]))
        return line


def facts_of(record: logging.LogRecord) -> dict[str, Any]:
    """The facts of a record, in the order of `FACTS`."""
    return {name: record.__dict__[name] for name in FACTS if name in record.__dict__}


def describe_exception(error: BaseException) -> list[str]:
    """Type and places of an exception and its causes, innermost last. Messages that could quote a text are left out."""
    parts = []
    seen: BaseException | None = error
    while seen is not None:
        frames = traceback.extract_tb(seen.__traceback__)
        module = type(seen).__module__  # some libraries' errors are an OSError, too, and quote what was sent
        is_safe = isinstance(seen, (OSError, MemoryError)) and module in ("builtins", "socket", "ssl")
        is_safe = is_safe or module.startswith("onnxruntime")
        parts.append(f"{type(seen).__name__}: {str(seen)[:500]}" if is_safe else type(seen).__name__)
        parts += [f"{frame.filename}:{frame.lineno} {frame.name}" for frame in frames[-12:]]
        seen = seen.__cause__ or (None if seen.__suppress_context__ else seen.__context__)
    return parts


def _timestamp(record: logging.LogRecord) -> str:
    seconds = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(record.created))
    return f"{seconds}.{int(record.msecs):03d}Z"


def set_up(*, log_format: str, log_level: str, stream: TextIO | None = None) -> None:
    """Sends every record of at least `log_level` ("debug" to "error") to `stream` (stderr) as "json" or "text"."""
    handler = logging.StreamHandler(stream or sys.stderr)
    handler.setFormatter(JsonFormatter() if log_format == "json" else TextFormatter())
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(log_level.upper())
