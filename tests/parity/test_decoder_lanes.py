"""Rows that share a source: what a row gives is its own, whoever reads beside it; the attention is PyTorch's."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
import torch
from torch import Tensor

from export.build import fp32_graphs, write_bundle
from export.config import ExportConfig, ExportError
from service.bundle import Bundle
from service.model_runner import OnnxModelRunner
from service.tokenizer import BOS_ID, EOS_ID
from tests.parity.graph_bundles import Exported, export_random, random_checkpoint
from tests.synthetic.steps import step_inputs
from training.model import DecoderLayer, MultiHeadAttention, Transformer

NUM_STEPS = 4


@pytest.fixture(scope="module", autouse=True)
def _one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Exported:
    """Three layers and heads of 24: neither is a power of 2."""
    directory = tmp_path_factory.mktemp("lanes")
    shape = {"width": 72, "heads": 3, "feed_forward": 40, "decoder_layers": 3, "encoder_layers": 1}
    return export_random(directory, random_checkpoint(directory, **shape))  # type: ignore[arg-type]


def open_runner(bundle: Bundle, *, max_rows: int = 48, num_threads: int = 1, spare: int = 0) -> OnnxModelRunner:
    most = bundle.architecture.max_positions
    return OnnxModelRunner(
        bundle,
        max_rows=max_rows,
        max_source_tokens=min(most, 40 + spare),
        max_target_tokens=NUM_STEPS + spare,
        num_threads=num_threads,
    )


@dataclasses.dataclass(frozen=True, kw_only=True)
class Sentence:
    """A source and the targets of its rows."""

    source_ids: list[int]
    targets: npt.NDArray[np.int64]
    """[rows,NUM_STEPS], the begin of sentence first."""


def random_sentence(generator: np.random.Generator, bundle: Bundle, num_rows: int) -> Sentence:
    source = generator.integers(EOS_ID + 1, bundle.tokenizer.source_vocab_size, generator.integers(0, 40)).tolist()
    targets = generator.integers(EOS_ID + 1, bundle.tokenizer.target_vocab_size, (num_rows, NUM_STEPS))
    targets[:, 0] = BOS_ID
    return Sentence(source_ids=[*source, EOS_ID], targets=targets)


def decode(
    runner: OnnxModelRunner, sentences: list[Sentence], order: list[int], *, with_attention: bool = False
) -> tuple[list[list[bytes]], list[list[npt.NDArray[np.float32]]]]:
    """Feeds every row its target, the rows standing in `order` (numbers of sentences, each as often as it has rows).

    Returns:
        For each sentence and row the bits of the log-probabilities of all steps, and the attention of the last, [S].
    """
    for lane, encoded in enumerate(runner.encode([each.source_ids for each in sentences]).sources):
        runner.place(lane, encoded)
    lengths = [len(each.source_ids) for each in sentences]
    numbers = [order[:row].count(lane) for row, lane in enumerate(order)]
    bits: list[list[bytes]] = [[b""] * len(each.targets) for each in sentences]
    attention: list[list[npt.NDArray[np.float32]]] = [[np.zeros(())] * len(each.targets) for each in sentences]
    for step in range(NUM_STEPS):
        fed = [int(sentences[lane].targets[number, step]) for lane, number in zip(order, numbers, strict=True)]
        inputs = step_inputs(order, fed, [step] * len(order), lengths, with_attention=with_attention)
        found = runner.decode_step(inputs)
        for row, (lane, number) in enumerate(zip(order, numbers, strict=True)):
            bits[lane][number] += found.log_probabilities[row].tobytes()
            if found.attention is not None:
                bits[lane][number] += found.attention[row, : lengths[lane]].tobytes()
                attention[lane][number] = found.attention[row, : lengths[lane]]
    return bits, attention


@pytest.mark.parametrize("with_attention", [False, True])
@pytest.mark.parametrize("num_threads", [1, 2])
@pytest.mark.parametrize("precision", ["fp32", "int8"])
def test_a_sentence_gives_the_same_bits_in_any_company(
    exported: Exported, precision: str, num_threads: int, with_attention: bool
) -> None:
    bundle: Bundle = getattr(exported, precision)
    generator = np.random.default_rng(num_threads)
    alone = open_runner(bundle, max_rows=16)
    together = open_runner(bundle, num_threads=num_threads, spare=8)
    for _ in range(6):
        sizes = generator.choice([1, 1, 2, 3, 4, 5, 8, 13, 16], generator.integers(2, 5)).tolist()
        sentences = [random_sentence(generator, bundle, size) for size in sizes]
        order = [lane for lane, size in enumerate(sizes) for _ in range(size)]
        generator.shuffle(order)
        found, _ = decode(together, sentences, order, with_attention=with_attention)
        for sentence, bits in zip(sentences, found, strict=True):
            expected, _ = decode(alone, [sentence], [0] * len(sentence.targets), with_attention=with_attention)
            assert bits == expected[0]


@pytest.mark.parametrize("precision", ["fp32", "int8"])
def test_rows_of_one_source_do_not_touch_each_other(exported: Exported, precision: str) -> None:
    """A row that shares its lane gives the same bits beside one other row as beside fifteen, at any place."""
    bundle: Bundle = getattr(exported, precision)
    generator = np.random.default_rng(5)
    runner = open_runner(bundle, max_rows=16)
    for _ in range(4):
        sentence = random_sentence(generator, bundle, 16)
        (full,), _ = decode(runner, [sentence], [0] * 16)
        for row in generator.choice(16, 4, replace=False).tolist():
            other = int(generator.integers(16))
            for pair in ([row, other], [other, row]):
                part = dataclasses.replace(sentence, targets=sentence.targets[pair])
                (found,), _ = decode(runner, [part], [0, 0])
                assert found == [full[one] for one in pair]


def test_numbers_equal_those_of_rows_with_sources_of_their_own(exported: Exported) -> None:
    generator = np.random.default_rng(6)
    runner = open_runner(exported.fp32)
    sentence = random_sentence(generator, exported.fp32, 5)
    (shared,), _ = decode(runner, [sentence], [0] * 5)
    single = [dataclasses.replace(sentence, targets=sentence.targets[[row]]) for row in range(5)]
    apart, _ = decode(runner, single, list(range(5)))
    for row in range(5):
        np.testing.assert_allclose(
            np.frombuffer(shared[row], np.float32), np.frombuffer(apart[row][0], np.float32), rtol=1e-5, atol=1e-5
        )


def torch_attention(model: Transformer, layer: int, sentence: Sentence) -> npt.NDArray[np.float32]:
    """Weights of a layer's cross-attention at the last position of every target, the mean of the heads [rows,S]."""
    decoder_layer = model.decoder.layers[layer]
    assert isinstance(decoder_layer, DecoderLayer)
    attention = decoder_layer.cross_attention
    seen: list[Tensor] = []
    attend = attention.attend

    def watched(queries: Tensor, keys: Tensor, *rest: object, **options: object) -> Tensor:
        assert isinstance(attention, MultiHeadAttention)
        heads = attention.split_heads(attention.query(queries))  # [B,H,T,K]
        scores = heads @ keys.transpose(-1, -2) / heads.size(-1) ** 0.5  # [B,H,T,S]
        seen.append(scores.softmax(dim=-1)[:, :, -1])
        return attend(queries, keys, *rest, **options)  # type: ignore[arg-type]

    rows = len(sentence.targets)
    source = torch.tensor([sentence.source_ids] * rows)
    try:
        attention.attend = watched  # type: ignore[method-assign]
        with torch.inference_mode():
            model(source, torch.full((rows,), source.size(1)), torch.from_numpy(sentence.targets))
    finally:
        del attention.attend
    (weights,) = seen
    return weights.mean(dim=1).numpy()  # [rows,H,S] -> [rows,S]


@pytest.mark.parametrize("layer", [None, 0])
def test_attention_is_that_of_pytorch(exported: Exported, layer: int | None, tmp_path: Path) -> None:
    checkpoint, bundle = exported.checkpoint, exported.fp32
    if layer is not None:
        graphs = fp32_graphs(checkpoint, alignment_layer=layer)
        config = ExportConfig(
            checkpoint=checkpoint.directory, output=tmp_path / "unused", precision="fp32", alignment_layer=layer
        )
        (tmp_path / "bundle").mkdir()
        bundle = write_bundle(tmp_path / "bundle", config, checkpoint, graphs, precision="fp32")
    assert bundle.manifest.alignment_layer == (2 if layer is None else layer)
    generator = np.random.default_rng(7)
    sentences = [random_sentence(generator, bundle, size) for size in (1, 4, 2)]
    _, found = decode(open_runner(bundle), sentences, [1, 0, 2, 1, 1, 2, 1], with_attention=True)
    for sentence, rows in zip(sentences, found, strict=True):
        wanted = torch_attention(checkpoint.model, bundle.manifest.alignment_layer, sentence)
        np.testing.assert_allclose(np.stack(rows), wanted, atol=1e-5)
        np.testing.assert_allclose(np.stack(rows).sum(axis=-1), 1, atol=1e-5)


def test_a_layer_that_the_model_lacks_is_refused(exported: Exported) -> None:
    for layer in (-1, 3):
        with pytest.raises(ExportError, match=f"`alignment_layer` must be between 0 and the model's 2, but is {layer}"):
            fp32_graphs(exported.checkpoint, alignment_layer=layer)
