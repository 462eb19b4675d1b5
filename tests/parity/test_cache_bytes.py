"""Cached keys and values as bytes, beside the same graphs with floats."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import onnx
import pytest

from export.build import Checkpoint, fp32_graphs, write_bundle
from export.cache_bytes import cache_scales, decoder_with_byte_caches, encoder_with_byte_caches
from export.calibrate import CACHE_HEADROOM, Pair, cache_ranges
from export.config import ExportConfig
from export.parity import compare_values
from export.quantize import QuantizeError
from service.bundle import DECODER_NAME, ENCODER_NAME, Bundle
from service.graph_signature import cross_key, cross_value, past_key_self, past_value_self
from service.model_runner import OnnxModelRunner
from service.tokenizer import BOS_ID, EOS_ID
from tests.parity.graph_bundles import random_checkpoint
from tests.synthetic.steps import step_inputs

LAYERS = 2
CROSS, OWN = (cross_key, cross_value), (past_key_self, past_value_self)
Floats = npt.NDArray[np.float32]


@dataclass(frozen=True, kw_only=True)
class Made:
    """A random model with float caches and, nothing else being different, with byte caches."""

    checkpoint: Checkpoint
    graphs: dict[str, onnx.ModelProto]
    pairs: list[Pair]
    ranges: dict[str, Floats]
    floats: Bundle
    bytes: Bundle


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Made:
    directory = tmp_path_factory.mktemp("made")
    checkpoint = random_checkpoint(directory, decoder_layers=LAYERS)
    graphs = fp32_graphs(checkpoint)
    pairs = random_pairs(60)
    ranges = cache_ranges(graphs[ENCODER_NAME], graphs[DECODER_NAME], pairs)
    with_bytes = {
        **graphs,
        ENCODER_NAME: encoder_with_byte_caches(graphs[ENCODER_NAME], ranges),
        DECODER_NAME: decoder_with_byte_caches(graphs[DECODER_NAME], ranges),
    }
    config = ExportConfig(checkpoint=checkpoint.directory, output=directory / "unused", precision="fp32")
    for name in ("floats", "bytes"):
        (directory / name).mkdir()
    return Made(
        checkpoint=checkpoint,
        graphs=graphs,
        pairs=pairs,
        ranges=ranges,
        floats=write_bundle(directory / "floats", config, checkpoint, graphs, precision="fp32"),
        bytes=write_bundle(directory / "bytes", config, checkpoint, with_bytes, precision="int8"),
    )


def random_pairs(count: int) -> list[Pair]:
    """Sources, and targets to be read, of 1 to 19 random tokens."""
    generator = np.random.default_rng(0)
    return [
        (
            [*generator.integers(EOS_ID + 1, 290, source).tolist(), EOS_ID],
            [BOS_ID, *generator.integers(EOS_ID + 1, 290, target).tolist()],
        )
        for source, target in generator.integers(1, 20, (count, 2))
    ]


def cached(bundle: Bundle, pair: Pair) -> dict[str, npt.NDArray[np.generic]]:
    """What the slab holds once a target was read: [positions,D] by the decoder's cache input."""
    source, target = pair
    runner = OnnxModelRunner(bundle, max_rows=1, max_source_tokens=24, max_target_tokens=24, num_threads=1)
    runner.place(0, runner.encode([source]).sources[0])
    positions = {name(i): len(source) for i in range(LAYERS) for name in CROSS}
    found = dict(runner._slab.inputs(1, 1))  # [1,H,positions,K]
    held = {name: found[name][0, :, :count].swapaxes(0, 1).reshape(count, -1) for name, count in positions.items()}
    for position, token in enumerate(target):
        runner.decode_step(step_inputs([0], [token], [position], [len(source)]))
    for name in (name(i) for i in range(LAYERS) for name in OWN):
        held[name] = found[name][0, :, : len(target)].swapaxes(0, 1).reshape(len(target), -1)
    return held


def test_ranges_are_the_largest_that_is_cached_and_some_room(made: Made) -> None:
    largest = {name: np.zeros_like(values) for name, values in made.ranges.items()}
    for pair in made.pairs:
        for name, values in cached(made.floats, pair).items():
            largest[name] = np.maximum(largest[name], np.abs(values).max(axis=0))
    assert set(largest) == {name(i) for i in range(LAYERS) for name in (*CROSS, *OWN)}
    for name, found in made.ranges.items():
        np.testing.assert_allclose(found, largest[name] * CACHE_HEADROOM, rtol=1e-4)


def test_bytes_are_the_numbers_to_half_a_step(made: Made) -> None:
    """Those of the source, and the target's of the first layer, which reads nothing that was rounded before."""
    scales = cache_scales(onnx.load(made.bytes.decoder_path))
    for pair in made.pairs[:10]:
        wanted, found = cached(made.floats, pair), cached(made.bytes, pair)
        for name in (*(name(i) for i in range(LAYERS) for name in CROSS), past_key_self(0), past_value_self(0)):
            assert found[name].dtype == np.int8
            assert np.abs(found[name]).max() > 60  # of 127: the steps are not much coarser than they need be
            difference = np.abs(found[name] * scales[name] - wanted[name])
            assert (difference <= 0.501 * scales[name]).all()


def test_log_probabilities_differ_by_rounding_only(made: Made) -> None:
    found = compare_values(made.checkpoint.model, made.bytes, num_threads=1)
    assert found.problems() == []
    assert 1e-4 < found.encoder.max_difference < 0.1
    assert 1e-4 < found.decoder.max_difference < 0.1


def test_a_slab_of_bytes_is_a_quarter(made: Made) -> None:
    sizes = [
        OnnxModelRunner(bundle, max_rows=4, max_source_tokens=8, max_target_tokens=8, num_threads=1).slab_bytes
        for bundle in (made.floats, made.bytes)
    ]
    assert sizes[0] == 4 * sizes[1]


def test_float_caches_have_no_scales(made: Made) -> None:
    assert cache_scales(made.graphs[DECODER_NAME]) == {}


def test_channels_that_were_always_zero_become_numbers(made: Made) -> None:
    ranges = {name: np.zeros_like(values) for name, values in made.ranges.items()}
    scales = cache_scales(decoder_with_byte_caches(made.graphs[DECODER_NAME], ranges))
    assert len(scales) == 4 * LAYERS
    assert all((values > 0).all() for values in scales.values())
    encoder = encoder_with_byte_caches(made.graphs[ENCODER_NAME], ranges)
    weights = [onnx.numpy_helper.to_array(tensor) for tensor in encoder.graph.initializer]
    assert all(np.isfinite(values).all() for values in weights)


def test_an_encoder_of_another_form_is_refused(made: Made) -> None:
    encoder = onnx.ModelProto()
    encoder.CopyFrom(made.graphs[ENCODER_NAME])
    next(node for node in encoder.graph.node if node.op_type == "Transpose").op_type = "Identity"
    with pytest.raises(QuantizeError, match="must come from a Transpose"):
        encoder_with_byte_caches(encoder, made.ranges)
