"""ONNX = PyTorch, cached = full pass, batched = alone, staggered = alone: random models, the code that serves."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import onnxruntime
import pytest
import torch
from onnx import numpy_helper

from export.build import write_bundle
from export.calibrate import INSIDE, INSIDE_CHANNEL, calibrate_decoder, decoder_channel_ranges
from export.config import ExportConfig
from export.decoding import decode_by_engine, open_runner
from export.parity import compare_values, open_value_runner, torch_log_probabilities
from export.quantize import product_inputs
from export.same_bytes import check_same_bytes
from service.bundle import DECODER_NAME, ENCODER_NAME, Bundle
from service.engine import Engine
from service.graph_signature import SOURCE_MULTIPLE
from service.model_runner import OnnxModelRunner
from service.tokenizer import BOS_ID, EOS_ID, PAD_ID
from tests.parity.graph_bundles import Exported, export_random, random_checkpoint, random_sentences
from tests.synthetic.steps import step_inputs
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
    found = compare_values(exported.checkpoint.model, bundle, num_threads=1)
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
    engine = Engine.over(open_runner(exported.fp32, sentences, max_rows=6, num_threads=1))
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
def test_the_encoder_gives_the_same_bits_in_any_batch_and_padding(exported: Exported, precision: str) -> None:
    """Alone on one thread, beside any rows, any multiple of 8 that holds it, and two threads."""
    path = getattr(exported, precision).directory / ENCODER_NAME
    sessions = [_open_session(path, num_threads) for num_threads in (1, 2)]
    most = exported.checkpoint.architecture.max_positions
    generator = np.random.default_rng(3)

    def encode(session: onnxruntime.InferenceSession, rows: list[list[int]], width: int) -> list[npt.NDArray[Any]]:
        source_ids = np.full((len(rows), width), PAD_ID, np.int64)
        for row, ids in zip(source_ids, rows, strict=True):
            row[: len(ids)] = ids
        lengths = np.array([len(ids) for ids in rows], np.int32)
        outputs: list[npt.NDArray[Any]] = session.run(None, {"source_ids": source_ids, "source_lengths": lengths})
        return outputs

    sources: list[list[int]] = [
        [*generator.integers(EOS_ID + 1, 250, length - 1).tolist(), EOS_ID] for length in range(1, most + 1)
    ]
    alone = [encode(sessions[0], [source], -(-len(source) // SOURCE_MULTIPLE) * SOURCE_MULTIPLE) for source in sources]
    assert len({encoded[0].tobytes() for encoded in alone}) == most

    def compare(chosen: list[int], width: int, session: onnxruntime.InferenceSession) -> None:
        together = encode(session, [sources[index] for index in chosen], width)
        for row, index in enumerate(chosen):
            for found, wanted in zip(together, alone[index], strict=True):
                length = len(sources[index])
                np.testing.assert_array_equal(found[row, :, :length], wanted[0, :, :length])

    for index, source in enumerate(sources):  # every length in every padding
        for width in range(SOURCE_MULTIPLE, most + 1, SOURCE_MULTIPLE):
            if len(source) <= width:
                compare([index], width, sessions[1])
    for _ in range(60):  # and in random company
        width = SOURCE_MULTIPLE * int(generator.integers(1, most // SOURCE_MULTIPLE + 1))
        chosen = generator.integers(0, width, int(generator.integers(2, 20))).tolist()
        compare(chosen, width, sessions[int(generator.integers(2))])


def _open_session(path: Path, num_threads: int) -> onnxruntime.InferenceSession:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = num_threads
    return onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])


def test_the_encoder_is_as_few_nodes_as_it_can_be(exported: Exported) -> None:
    """What makes it quick (docs/decisions/0004): nothing creeps back in between the products."""
    model = exported.checkpoint.model
    layers = len(model.encoder.layers)
    is_pre_norm = model.config.norm == "pre"
    int8 = onnx.load(exported.int8.directory / ENCODER_NAME)
    for graph, attention, product in (
        (exported.graphs[ENCODER_NAME].graph, "Attention", "MatMul"),
        (int8.graph, "QAttention", "MatMulIntegerToFloat"),
    ):
        operators = Counter(node.op_type for node in graph.node)
        assert operators[attention] == layers
        assert operators[product] == 3 * layers + 1
        assert operators["RMSNormalization"] == (2 * layers + 1 if is_pre_norm else 0)
        assert operators["LayerNormalization"] == (0 if is_pre_norm else 2 * layers)
        assert operators["Transpose"] == operators["Reshape"] == operators["Split"] == 1
    assert operators["QuantizeLinear"] == 4 * layers + 2  # one before each product, and the outputs
    assert operators["Relu"] == operators["ReduceMax"] == 0
    assert operators["Add"] == 2 * layers + 1  # the residuals and the positions; no bias
    assert operators.total() == 12 * layers + 13 + is_pre_norm


def test_the_decoder_is_as_few_nodes_as_it_can_be(exported: Exported) -> None:
    """docs/decisions/0007."""
    layers = len(exported.checkpoint.model.decoder.layers)
    is_pre_norm = exported.checkpoint.model.config.norm == "pre"
    operators = Counter(node.op_type for node in onnx.load(exported.int8.directory / DECODER_NAME).graph.node)
    assert operators["MatMulIntegerToFloat"] == operators["QuantizeLinear"] == 6 * layers + 1
    assert operators["GroupQueryAttention"] == operators["GatherND"] == 2 * layers
    assert operators["RMSNormalization"] == (3 * layers + 1 if is_pre_norm else 0)
    assert operators["LayerNormalization"] == (0 if is_pre_norm else 3 * layers)
    assert operators["Add"] == 3 * layers + 1  # the residuals and the positions; no bias
    assert operators["Gather"] == 3  # the embedding's bytes and scales, and the positions
    assert operators.total() == 22 * layers + 10 + is_pre_norm


def test_calibration_sees_the_activations_of_pytorch(exported: Exported) -> None:
    """Through all positions of ragged targets, and nothing after their ends."""
    checkpoint = exported.checkpoint
    model, most = checkpoint.model, checkpoint.architecture.target_tokens
    pairs = [
        (sentence.source_ids, [BOS_ID, *(id_ % most for id_ in target.source_ids)])
        for sentence, target in zip(
            random_sentences(checkpoint, 40, seed=5), random_sentences(checkpoint, 40, seed=6), strict=True
        )
    ]
    decoder = exported.graphs[DECODER_NAME]
    name = product_inputs(decoder)[-1]  # before the projection
    found = calibrate_decoder(exported.graphs[ENCODER_NAME], decoder, pairs)
    channels = decoder_channel_ranges(exported.graphs[ENCODER_NAME], decoder, pairs)[name]
    hidden = []
    with torch.inference_mode():
        for source, target in pairs:
            states = model(torch.tensor([source]), torch.tensor([len(source)]), torch.tensor([target]))[0].double()
            if model.config.norm == "pre":  # the norm's factors are the projection's business
                assert isinstance(model.decoder.norm, torch.nn.LayerNorm)
                states = (states - model.decoder.norm.bias) / model.decoder.norm.weight
            hidden.append(states.numpy())
    wanted = np.concatenate(hidden)  # [positions,D]
    assert len({len(target) for _, target in pairs}) > 10
    np.testing.assert_allclose(found.moments[name], wanted.T @ wanted / len(wanted), atol=1e-4)
    assert found.ranges[name] == pytest.approx(np.quantile(np.abs(wanted).max(axis=1), INSIDE), rel=1e-4)
    np.testing.assert_allclose(channels, np.quantile(np.abs(wanted), INSIDE_CHANNEL, axis=0), rtol=1e-4)


def test_the_slots_length_and_older_contents_do_not_matter(exported: Exported) -> None:
    """M and S of the slab may be anything: positions that are not in use are never looked at."""
    sentences = random_sentences(exported.checkpoint, 12, seed=2)
    results = []
    for extra in (0, 17):
        runner = OnnxModelRunner(
            exported.fp32, max_rows=3, max_source_tokens=31 + extra, max_target_tokens=31 + extra, num_threads=1
        )
        if extra:  # rubbish from earlier rows, NaN among it, in every buffer
            for _, buffer in runner._slab.inputs(3, 3):
                buffer.fill(np.nan)
        limited = [sentence for sentence in sentences if sentence.max_target_tokens <= 31]
        results.append([one.target_ids for one in decode_by_engine(Engine.over(runner), limited)])
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
    found = runner.decode_step(step_inputs([0], [BOS_ID], [0], [3]))
    probabilities = found.log_probabilities[0].tolist()
    assert len(forbidden) > 2  # the vocabulary is padded
    assert all(probabilities[token] < -1e8 for token in forbidden)
    assert sum(np.exp(probabilities)) == pytest.approx(1.0, abs=1e-4)


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
        parameters: dict[int | str, int] = {
            id(p): p.numel() for module in modules for p in module.parameters() if p.dim() == 2
        }
        if name == DECODER_NAME:
            # Under pre-norm the projection takes in the last norm, and is the target embedding no more.
            own = "projection" if model.config.norm == "pre" else id(model.projection.weight)
            assert own in parameters or own == "projection" or not model.config.tied_projection
            parameters[own] = model.projection.weight.numel()
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
