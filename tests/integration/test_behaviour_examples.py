"""Every worked example of docs/behaviour.md prints what the page says, on the shipped model."""

import argparse
import re
import shlex
from collections.abc import Iterator
from pathlib import Path

import pytest

from service.cli_decoding import add_decoding_flags
from tests.integration.examples import MODELS, PAGE, Example, examples, inside, rewritten, run
from tests.integration.serving import ServerProcess, server_process

EXAMPLES = examples(PAGE.read_text(encoding="utf-8"))
NUMBER = re.compile(r"-?\d+\.\d+")
TOLERANCE = 0.05
"""Of scores: processors round int8 products differently."""


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    with server_process(MODELS, tmp_path_factory.mktemp("server")) as running:
        yield running


@pytest.mark.parametrize("example", EXAMPLES, ids=lambda example: example.source[:60])
def test_an_example_prints_what_the_page_says(example: Example, server: ServerProcess, tmp_path: Path) -> None:
    with inside(tmp_path):
        printed = run(example, server.address)
    assert NUMBER.sub("#", printed) == NUMBER.sub("#", example.output)
    for got, said in zip(NUMBER.findall(printed), NUMBER.findall(example.output), strict=True):
        assert float(got) == pytest.approx(float(said), abs=TOLERANCE)
    for name in re.findall(r"--alignment-plot (\S+)", example.source):
        assert (tmp_path / name).stat().st_size > 1000


def test_every_option_has_an_example() -> None:

    parser = argparse.ArgumentParser()
    add_decoding_flags(parser)
    flags = {action.option_strings[0] for action in parser._actions if action.option_strings[0] != "-h"}
    used = {word for example in EXAMPLES if example.is_command for word in shlex.split(example.source)}
    used |= {"--early-stopping"} if "--no-early-stopping" in used else set()
    assert flags - used == {"--sample"}  # the others of sampling turn it on
    assert {"--alignment", "--alignment-plot", "--stream"} <= used
    assert any(example.source.startswith("score ") for example in EXAMPLES)


def test_writing_the_outputs_back_changes_nothing_else() -> None:
    page = PAGE.read_text(encoding="utf-8")
    outputs = [example.output for example in EXAMPLES]
    assert rewritten(page, iter(outputs)) == page
    changed = rewritten(page, iter([*outputs[:-1], "new\n"]))
    assert changed != page
    assert [example.output for example in examples(changed)] == [*outputs[:-1], "new\n"]
