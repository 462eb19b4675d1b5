"""ONNX = PyTorch, cached = full pass, batched = alone, staggered = alone: random models, the code that serves."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from onnx import numpy_helper

from export.build import write_bundle
from export.config import ExportConfig
from export.decoding import decode_by_engine, open_runner
from export.parity import compare_values, open_value_runner, torch_log_probabilities
from export.same_bytes import check_same_bytes
from service.bundle import DECODER_NAME, ENCODER_NAME, Bundle
from service.engine import Engine
from service.model_runner import OnnxModelRunner
from service.tokenizer import BOS_ID, PAD_ID
from tests.parity.graph_bundles import Exported, export_random, random_checkpoint, random_sentences
from training.decode import DecodeOptions, decode

SHAPES: dict[str, dict[str, object]] = {
    "pre-norm": {"norm": "pre"},
    "post-norm, heads not a power of 4": {"norm": "post", "width": 96, "heads": 4, "feed_forward": 32},
    "nothing shared": {"is_joint": False, "shared_embeddings": False, "tied_projection": False, "encoder_layers": 1},
}


@pytest.fixture(scope="module", autouse=True)
def _one_thread() -> Iterator[None]:
    """Such small products only lose by being shared out."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module", params=SHAPES)
def exported(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Exported:
    directory = tmp_path_factory.mktemp("exported")
    return export_random(directory, random_checkpoint(directory, **SHAPES[request.param]))  # type: ignore[arg-type]


def values(exported: Exported, bundle: Bundle) -> tuple[float, float]:
    """Largest differences of encoder and decoder from PyTorch."""
    found = compare_values(
        exported.checkpoint.model,
        open_value_runner(bundle, num_threads=1),
        bundle.architecture.target_tokens,
        bundle.manifest.precision,
    )
    assert found.problems() == []
    return found.encoder.max_difference, found.decoder.max_difference


def test_fp32_numbers_equal_the_full_pass_of_pytorch(exported: Exported) -> None:
    encoder, decoder = values(exported, exported.fp32)
    assert encoder < 3e-6
    assert decoder < 3e-6


def test_int8_numbers_differ_by_rounding_only(exported: Exported) -> None:
    encoder, decoder = values(exported, exported.int8)
    assert 1e-4 < encoder < 0.1
    assert 1e-4 < decoder < 0.1


def test_greedy_tokens_equal_those_of_pytorch(exported: Exported) -> None:
    sentences = random_sentences(exported.checkpoint, 40)
    num_tokens = exported.checkpoint.architecture.target_tokens
    engine = Engine.greedy(open_runner(exported.fp32, sentences, max_rows=6, num_threads=1))
    found = decode_by_engine(engine, sentences)
    options = DecodeOptions(max_length_factor=2, max_length_extra=0)
    for sentence, sequence in zip(sentences, found, strict=True):
        (hypothesis,) = decode(
            exported.checkpoint.model,
            [sentence.source_ids],
            options,
            target_vocab_size=num_tokens,
        )
        assert sequence.text_ids == hypothesis.ids
        begun = torch.tensor([[BOS_ID, *sequence.target_ids[:-1]]])
        with torch.inference_mode():  # the graphs' probabilities leave out what is no token; `decode` leaves it in
            full = torch_log_probabilities(exported.checkpoint.model, [list(sentence.source_ids)], begun, num_tokens)[0]
        wanted = [full[position, token] for position, token in enumerate(sequence.target_ids)]
        np.testing.assert_allclose(sequence.token_log_probabilities, wanted, atol=1e-4)
    assert len({tuple(sequence.text_ids) for sequence in found}) > 20  # the source matters


@pytest.mark.parametrize("precision", ["fp32", "int8"])
def test_the_same_bytes_alone_together_and_in_random_company(exported: Exported, precision: str) -> None:
    bundle: Bundle = getattr(exported, precision)
    found = check_same_bytes(bundle, random_sentences(exported.checkpoint, 60), num_threads=2)
    assert (found.num_sentences, found.num_different) == (60, 0)


@pytest.mark.parametrize("precision", ["fp32", "int8"])
def test_the_encoder_gives_the_same_bits_in_any_batch(exported: Exported, precision: str) -> None:
    runner = open_value_runner(getattr(exported, precision), num_threads=2)
    sources = [list(sentence.source_ids) for sentence in random_sentences(exported.checkpoint, 24, seed=1)]
    together = runner.encode(sources).sources
    for source, encoded in zip(sources, together, strict=True):
        alone = runner.encode([source]).sources[0]
        np.testing.assert_array_equal(alone.payload[:, :, :, : len(source)], encoded.payload[:, :, :, : len(source)])


def test_the_slots_length_and_older_contents_do_not_matter(exported: Exported) -> None:
    """M and S of the slab may be anything: positions that are not in use are never looked at."""
    sentences = random_sentences(exported.checkpoint, 12, seed=2)
    results = []
    for extra in (0, 17):
        runner = OnnxModelRunner(
            exported.fp32, max_rows=3, max_source_tokens=31 + extra, max_target_tokens=31 + extra, num_threads=1
        )
        if extra:  # rubbish from earlier rows, NaN among it, in every buffer
            for buffer in (buffer for _, buffer in runner._slab.inputs(3)):
                buffer.fill(np.nan)
        limited = [sentence for sentence in sentences if sentence.max_target_tokens <= 31]
        results.append([one.target_ids for one in decode_by_engine(Engine.greedy(runner), limited)])
    assert len(results[0]) > 4
    assert results[0] == results[1]


def test_what_is_no_token_is_never_chosen(exported: Exported, tmp_path: Path) -> None:
    """Pad, bos and the rows that pad the vocabulary keep a probability of 0 even where the weights prefer them."""
    checkpoint, architecture = exported.checkpoint, exported.checkpoint.architecture
    forbidden = [PAD_ID, BOS_ID, *range(architecture.target_tokens, architecture.target_vocabulary)]
    decoder = onnx.ModelProto()
    decoder.CopyFrom(exported.graphs[DECODER_NAME])
    for tensor in decoder.graph.initializer:
        if list(tensor.dims) == [architecture.target_vocabulary, architecture.width]:
            weights = numpy_helper.to_array(tensor).copy()
            weights[forbidden] *= 50
            tensor.CopyFrom(numpy_helper.from_array(weights, tensor.name))
    config = ExportConfig(checkpoint=checkpoint.directory, output=tmp_path / "unused", precision="fp32")
    (tmp_path / "bundle").mkdir()
    graphs = {**exported.graphs, DECODER_NAME: decoder}
    bundle = write_bundle(tmp_path / "bundle", config, checkpoint, graphs, precision="fp32")
    runner = open_value_runner(bundle, num_threads=1)
    runner.place(0, runner.encode([[5, 6, 3]]).sources[0])
    candidates = runner.decode_step([BOS_ID], [0], [3], architecture.target_vocabulary)
    probabilities = dict(zip(candidates.token_ids[0].tolist(), candidates.log_probabilities[0].tolist(), strict=True))
    assert len(forbidden) > 2  # the vocabulary is padded
    assert all(probabilities[token] < -1e8 for token in forbidden)
    assert sum(np.exp(list(probabilities.values()))) == pytest.approx(1.0, abs=1e-4)


def test_weights_are_stored_once_and_nothing_branches(exported: Exported) -> None:
    model, architecture = exported.checkpoint.model, exported.checkpoint.architecture
    width, layers = architecture.width, architecture.decoder_layers
    wanted = {
        ENCODER_NAME: [
            model.source_embedding,
            model.encoder,
            *(layer.cross_attention.key for layer in model.decoder.layers),
        ]
        + [layer.cross_attention.value for layer in model.decoder.layers],
        DECODER_NAME: [model.target_embedding, model.decoder],
    }
    for name, modules in wanted.items():
        graph = exported.graphs[name].graph
        stored = sum(int(np.prod(tensor.dims)) for tensor in graph.initializer if len(tensor.dims) == 2)
        parameters = {id(p): p.numel() for module in modules for p in module.parameters() if p.dim() == 2}
        if name == DECODER_NAME:
            parameters[id(model.projection.weight)] = model.projection.weight.numel()
            cross = layers * 2 * width * width  # keys and values of the source are the encoder's business
            assert stored == sum(parameters.values()) - cross + model.positions.numel()
        else:
            assert stored == sum(parameters.values()) + model.positions.numel()
        operators = {node.op_type for node in graph.node}
        assert not operators & {"If", "Loop", "Scan", "Constant"}
        assert not any(node.op_type == "Cast" and node.input[0] in _floats(graph) for node in graph.node)


def _floats(graph: onnx.GraphProto) -> set[str]:
    return {tensor.name for tensor in graph.initializer if tensor.data_type == onnx.TensorProto.FLOAT}


def test_the_graphs_say_nothing_of_the_machine_that_made_them(exported: Exported) -> None:
    for graph in exported.graphs.values():
        content = graph.SerializeToString()
        assert str(Path(__file__).parents[2]).encode() not in content
        assert b".py" not in content
