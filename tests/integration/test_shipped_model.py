"""The models in `models/` are what this repository promises: whole, small, proven, and they translate."""

import asyncio
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from service.bundle import load_bundle
from service.client import AsyncClient, Client, Segment
from tests.integration.serving import ServerProcess, server_process

MODELS = Path(__file__).parents[2] / "models"
SHIPPED = sorted(path for path in MODELS.glob("*") if path.is_dir() and not path.name.startswith("."))
MAX_BUNDLE_BYTES = 30_000_000
MIN_SENTENCES = 200
SENTENCES = (
    "The server writes its log to a file.",
    "Select the folder in which the program was installed, and then click OK.",
    "If the value is empty, the function returns an error.",
)
CHINESE = re.compile(r"[\u4e00-\u9fff]")

each_model = pytest.mark.parametrize("directory", SHIPPED, ids=lambda path: path.name)


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    """A server of all shipped models."""
    with server_process(MODELS, tmp_path_factory.mktemp("shipped")) as running:
        yield running


def test_there_is_a_model() -> None:
    """Without one the tests below would have nothing to look at, and pass."""
    assert SHIPPED, f"{MODELS} must have a bundle, but has none."


@each_model
def test_it_is_whole_and_small(directory: Path) -> None:
    bundle = load_bundle(directory)
    assert bundle.manifest.name == directory.name
    num_bytes = sum(path.stat().st_size for path in directory.rglob("*") if path.is_file())
    assert num_bytes <= MAX_BUNDLE_BYTES


@each_model
def test_its_fp32_graphs_make_the_tokens_of_the_trained_model(directory: Path) -> None:
    parity = load_bundle(directory).manifest.parity
    assert parity is not None
    assert parity.fp32_tokens.num_sentences >= MIN_SENTENCES
    assert parity.fp32_tokens.num_equal == parity.fp32_tokens.num_sentences
    assert parity.encoder.max_difference <= parity.encoder.tolerance
    assert parity.decoder.max_difference <= parity.decoder.tolerance


@each_model
def test_its_bytes_did_not_depend_on_company_where_it_was_made(directory: Path) -> None:
    same_bytes = load_bundle(directory).manifest.same_bytes
    assert same_bytes is not None
    assert same_bytes.num_sentences >= MIN_SENTENCES
    assert same_bytes.num_different == 0


@each_model
async def test_it_translates_into_chinese_alone_and_together_alike(server: ServerProcess, directory: Path) -> None:
    async with AsyncClient(server.address) as client:

        async def translate(*texts: str) -> list[tuple[str, tuple[Segment, ...]]]:
            made = await client.translate(list(texts), model=directory.name)
            return [(each.text, tuple(each.segments)) for each in made]

        alone = [(await translate(text))[0] for text in SENTENCES]
        for text, (translation, segments) in zip(SENTENCES, alone, strict=True):
            assert CHINESE.search(translation), translation
            assert [segment.source_text for segment in segments] == [text]
            assert segments[0].finish_reason == "STOP"
        together = await asyncio.gather(*(translate(*SENTENCES) for _ in range(8)))
        assert all(each == alone for each in together)  # scores too, to the bit


def test_the_server_says_what_it_serves(server: ServerProcess) -> None:
    with Client(server.address) as client:
        served = {model.name: (model.digest, model.is_same_bytes) for model in client.info().models}
    assert served == {path.name: (load_bundle(path).digest, True) for path in SHIPPED}
