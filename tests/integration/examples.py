"""The worked examples of docs/behaviour.md: read from the page, run against a server, and written back.

    python -m tests.integration.examples

runs them against the shipped model and writes their outputs, and the picture, into the page.
"""

from __future__ import annotations

import contextlib
import io
import os
import re
import shlex
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from service.cli import main
from tests.integration.serving import server_process

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs" / "behaviour.md"
PICTURE = ROOT / "docs" / "alignment.svg"
MODELS = ROOT / "models"
DEFAULT_ADDRESS = "127.0.0.1:50051"
_BEGIN, _END = re.compile(r"<!-- examples: begin.*?-->\n"), "<!-- examples: end -->"
_BLOCK = re.compile(r"```(console|python)\n(.*?)```\n(?:\n```text\n(.*?)```\n)?", re.DOTALL)
_PROMPT = "$ python -m service "


@dataclass(frozen=True)
class Example:
    """One command, or one piece of Python, and what the page says it prints."""

    source: str
    """The command behind its prompt, or the code."""
    is_command: bool
    """Whether it is a command."""
    output: str
    """What the page says it prints."""


def section(page: str) -> tuple[int, int]:
    """Where the examples begin and end in the page."""
    begin = _BEGIN.search(page)
    assert begin, "the page must have examples"
    return begin.end(), page.index(_END, begin.end())


def examples(page: str) -> list[Example]:
    """Every example of the page, in order."""
    start, stop = section(page)
    found = []
    for block in _BLOCK.finditer(page, start, stop):
        if block[1] == "python":
            found.append(Example(block[2], False, block[3] or ""))
            continue
        for part in ("\n" + block[2]).split("\n" + _PROMPT)[1:]:
            command, _, output = part.partition("\n")
            found.append(Example(command, True, output.rstrip("\n") + "\n" if output.strip() else ""))
    return found


def run(example: Example, address: str) -> str:
    """What an example prints, in the folder that is current."""
    output = io.StringIO()
    with contextlib.redirect_stdout(output):
        if example.is_command:
            name, *arguments = shlex.split(example.source)
            exit_code = main([name, "--address", address, *arguments])
            assert exit_code == 0, example.source
        else:
            exec(compile(example.source.replace(DEFAULT_ADDRESS, address), "example", "exec"), {})
    return output.getvalue()


def rewritten(page: str, outputs: Iterator[str]) -> str:
    """The page with these outputs."""
    start, stop = section(page)

    def replaced(block: re.Match[str]) -> str:
        if block[1] == "python":
            return f"```python\n{block[2]}```\n\n```text\n{next(outputs)}```\n"
        commands = [part.partition("\n")[0] for part in ("\n" + block[2]).split("\n" + _PROMPT)[1:]]
        shown = "\n".join(f"{_PROMPT}{command}\n{next(outputs)}" for command in commands)
        return f"```console\n{shown}```\n"

    return page[:start] + _BLOCK.sub(replaced, page[start:stop]) + page[stop:]


@contextlib.contextmanager
def inside(directory: Path) -> Iterator[None]:
    """Makes a folder the current one for a while."""
    before = Path.cwd()
    os.chdir(directory)
    try:
        yield
    finally:
        os.chdir(before)


def write_outputs() -> None:
    """Runs every example against the shipped model and writes what they print into the page."""
    page = PAGE.read_text(encoding="utf-8")
    with tempfile.TemporaryDirectory() as name:
        directory = Path(name)
        with server_process(MODELS, directory) as server, inside(directory):
            outputs = [run(example, server.address) for example in examples(page)]
        PICTURE.write_bytes((directory / PICTURE.name).read_bytes())
    PAGE.write_text(rewritten(page, iter(outputs)), encoding="utf-8")


if __name__ == "__main__":
    write_outputs()
