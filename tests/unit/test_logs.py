"""Logs carry facts, never text."""

import io
import json
import logging
from collections.abc import Iterator

import pytest

from service import logs

SENTINEL = "The quick brown fox 42 jumps"


@pytest.fixture
def stream() -> Iterator[io.StringIO]:
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    yield io.StringIO()
    root.handlers[:] = handlers
    root.setLevel(level)


def test_json_lines(stream: io.StringIO) -> None:
    logs.set_up(log_format="json", log_level="info", stream=stream)
    logging.getLogger("service.test").info("A call ended.", extra={"request_id": "r-1", "seconds": 0.5})
    logging.getLogger("service.test").debug("Not written.")
    (line,) = stream.getvalue().splitlines()
    parsed = json.loads(line)
    assert parsed.pop("time").endswith("Z")
    assert parsed == {
        "level": "info",
        "logger": "service.test",
        "message": "A call ended.",
        "request_id": "r-1",
        "seconds": 0.5,
    }


def test_text_lines(stream: io.StringIO) -> None:
    logs.set_up(log_format="text", log_level="warning", stream=stream)
    logging.getLogger("service.test").warning("Stopping.", extra={"num_calls": 3})
    assert stream.getvalue().endswith("warning Stopping. num_calls=3\n")


@pytest.mark.parametrize("log_format", ["json", "text"])
def test_facts_that_are_not_named_are_not_written(stream: io.StringIO, log_format: str) -> None:
    logs.set_up(log_format=log_format, log_level="debug", stream=stream)
    logging.getLogger("service.test").info("A call ended.", extra={"source_text": SENTINEL, "code": "OK"})
    assert "OK" in stream.getvalue()
    assert SENTINEL not in stream.getvalue()


@pytest.mark.parametrize("log_format", ["json", "text"])
def test_exceptions_are_written_without_what_they_quote(stream: io.StringIO, log_format: str) -> None:
    logs.set_up(log_format=log_format, log_level="debug", stream=stream)
    try:
        try:
            raise KeyError(SENTINEL)
        except KeyError as error:
            raise ValueError(f"bad text {SENTINEL!r}") from error
    except ValueError as error:
        logging.getLogger("service.test").error("A call failed.", exc_info=error)
    written = stream.getvalue()
    assert "ValueError" in written
    assert "KeyError" in written
    assert "test_exceptions_are_written" in written  # where it happened
    assert SENTINEL not in written


def test_what_the_system_says_is_written(stream: io.StringIO) -> None:
    logs.set_up(log_format="json", log_level="debug", stream=stream)
    logging.getLogger("service.test").error("No file.", exc_info=OSError(28, "No space left on device"))
    assert "No space left on device" in stream.getvalue()


def test_what_an_error_of_a_library_says_is_not_written(stream: io.StringIO) -> None:
    class RequestError(OSError):
        """As HTTP clients have: it quotes what was sent."""

    logs.set_up(log_format="json", log_level="debug", stream=stream)
    logging.getLogger("service.test").error("A hook failed.", exc_info=RequestError(f"/introspect?token={SENTINEL}"))
    assert "RequestError" in stream.getvalue()
    assert SENTINEL not in stream.getvalue()
