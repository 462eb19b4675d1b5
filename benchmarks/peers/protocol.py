"""How the benchmark speaks with a peer's process: JSON lines, one answer for each request. The standard library alone.

    {"load": {...}}        a `Load`; the answer is {"version": ..., "seconds": ...}
    {"translate": {...}}   a `Request`; the answer is an `Answer`, or {"error": ...}

A peer's program calls `serve`, which takes the time and the peak of the memory around the translation alone: what can
be prepared before (ids as tokens, slabs of a size) and read afterwards (tokens as ids) is not counted.
"""

from __future__ import annotations

import dataclasses
import json
import os
import re
import sys
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

CLEAR_PEAK = "5"
"""What makes the kernel begin the peak of a process's memory anew, written to `clear_refs`."""


@dataclass(frozen=True, kw_only=True)
class Load:
    """Which model a process opens, and how it uses the cores."""

    model: str
    """Path, in the form the peer reads."""
    precision: str
    """"float32" or "int8"."""
    workers: int
    """Translations computed side by side, each with threads of its own."""
    threads: int
    """Threads of each."""


@dataclass(frozen=True, kw_only=True)
class Request:
    """What is translated, and how."""

    sources: list[list[int]]
    """Token ids, end of sentence included."""
    beam_size: int
    """1: greedy search. Beams end as with length penalty 1 and patience 1."""
    batch_size: int
    """Sentences that may be decoded at a time, over all workers."""
    max_target_tokens: int
    """The most tokens of a target, end of sentence included."""
    is_forced: bool
    """Whether nothing ends a target but its length, so that each has `max_target_tokens` tokens."""


@dataclass(frozen=True, kw_only=True)
class Answer:
    """What came of a request."""

    targets: list[list[int]]
    """The best translation of each source, end of sentence not included."""
    seconds: float
    """Duration of the translation."""
    peak_bytes: int
    """Most resident memory of the process during the translation, the model included."""


class Translator(Protocol):
    """A peer with an opened model."""

    version: str

    def prepare(self, request: Request) -> Callable[[], Any]:
        """The translation, ready to be called; its time is what counts."""
        ...

    def targets(self, result: Any) -> list[list[int]]:
        """What the call gave, as `Answer.targets`."""
        ...


def serve(load: Callable[[Load], Translator]) -> None:
    """Answers the requests on stdin until it ends. What anything else prints goes to stderr."""
    answers = os.fdopen(os.dup(sys.stdout.fileno()), "w", encoding="utf-8")
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())
    translator: Translator | None = None
    for line in sys.stdin:
        asked = json.loads(line)
        try:
            if "load" in asked:
                started = time.perf_counter()
                translator = load(Load(**asked["load"]))
                answer = {"version": translator.version, "seconds": time.perf_counter() - started}
            else:
                assert translator is not None
                answer = dataclasses.asdict(_translate(translator, Request(**asked["translate"])))
        except Exception:  # told to who asked; the process goes on
            answer = {"error": traceback.format_exc()}
        answers.write(json.dumps(answer) + "\n")
        answers.flush()


def _translate(translator: Translator, request: Request) -> Answer:
    run = translator.prepare(request)
    clear_peak()
    started = time.perf_counter()
    result = run()
    seconds = time.perf_counter() - started
    peak = peak_bytes()
    return Answer(targets=translator.targets(result), seconds=seconds, peak_bytes=peak)


def clear_peak() -> None:
    """Makes `peak_bytes` begin with what the process holds now, where the kernel can."""
    try:
        Path("/proc/self/clear_refs").write_text(CLEAR_PEAK, encoding="ascii")
    except OSError:
        return


def peak_bytes() -> int:
    """The most memory this process has had resident since `clear_peak`; 0 where the system does not say."""
    try:
        status = Path("/proc/self/status").read_text(encoding="ascii", errors="replace")
    except OSError:
        return 0
    found = re.search(r"^VmHWM:\s+(\d+) kB$", status, re.MULTILINE)
    return int(found.group(1)) * 1024 if found else 0
