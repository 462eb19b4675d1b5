"""The graph of several greedy steps beside as many single steps of the decoder, to the bit."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from benchmarks.step_parts import parts_of
from export.build import write_bundle
from export.config import ExportConfig
from service.bundle import DECODER_NAME, GREEDY_NAME, Bundle
from service.model_runner import OnnxModelRunner
from service.tokenizer import BOS_ID, EOS_ID
from tests.parity.graph_bundles import Exported, export_random, random_checkpoint
from tests.synthetic.steps import step_inputs

SLOT = 24
"""Positions of a row's cache."""


@pytest.fixture(scope="module", params=[{}, {"norm": "post"}], ids=["pre-norm", "post-norm"])
def exported(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Exported:
    directory = tmp_path_factory.mktemp("exported")
    return export_random(directory, random_checkpoint(directory, **request.param))


def new_runner(bundle: Bundle, lengths: list[int]) -> OnnxModelRunner:
    """A runner that has random sources of these lengths in its lanes."""
    runner = OnnxModelRunner(bundle, max_rows=8, max_source_tokens=24, max_target_tokens=SLOT, num_threads=1)
    chance = np.random.default_rng(1)
    for lane, length in enumerate(lengths):
        ids = [*chance.integers(EOS_ID + 1, 250, length - 1).tolist(), EOS_ID]
        runner.place(lane, runner.encode([ids]).sources[0])
    return runner


@pytest.mark.parametrize("precision", ["fp32", "int8"])
@pytest.mark.parametrize("num_rows", [1, 2, 3, 7])
def test_a_run_is_as_many_steps_to_the_bit(exported: Exported, precision: str, num_rows: int) -> None:
    bundle: Bundle = getattr(exported, precision)
    lengths = [3, 17, 9, 1, 24, 8, 11][:num_rows]
    lanes = list(range(num_rows))
    several, single = new_runner(bundle, lengths), new_runner(bundle, lengths)
    assert several.greedy_steps == 4
    tokens, positions = [BOS_ID] * num_rows, [0] * num_rows
    for _ in range(SLOT // 4):
        outputs = several.decode_greedy(step_inputs(lanes, tokens, positions, lengths))
        for step in range(4):
            wanted = single.decode_step(step_inputs(lanes, tokens, positions, lengths))
            np.testing.assert_array_equal(outputs.token_ids[:, step], wanted.candidate_ids[:, 0])
            found = outputs.log_probabilities[:, step]
            np.testing.assert_array_equal(found, wanted.candidate_log_probabilities[:, 0])
            tokens = wanted.candidate_ids[:, 0].tolist()
            positions = [position + 1 for position in positions]
    for ours, theirs in zip(
        several._slab.inputs(num_rows, num_rows), single._slab.inputs(num_rows, num_rows), strict=True
    ):
        np.testing.assert_array_equal(ours[1], theirs[1])


def test_a_row_at_the_end_of_its_cache_touches_no_other(exported: Exported) -> None:
    """It would write its next positions into the slot of the row after it."""
    lengths = [5, 6]
    several, single = new_runner(exported.fp32, lengths), new_runner(exported.fp32, lengths)
    for position in range(3):
        for runner in (several, single):
            runner.decode_step(step_inputs([0, 1], [BOS_ID, 9], [position, position], lengths))
    outputs = several.decode_greedy(step_inputs([0, 1], [9, 9], [SLOT - 1, 3], lengths))
    tokens, wanted_ids = [9, 9], []
    for position in range(3, 7):
        step = single.decode_step(step_inputs([0, 1], tokens, [0, position], lengths))
        wanted_ids.append(int(step.candidate_ids[1, 0]))
        tokens = [9, wanted_ids[-1]]
    assert outputs.token_ids[1].tolist() == wanted_ids
    first, _ = (values for _, values in list(several._slab.inputs(2, 2))[:2])
    other, _ = (values for _, values in list(single._slab.inputs(2, 2))[:2])
    np.testing.assert_array_equal(first[1], other[1])


def test_of_equal_tokens_the_lowest_id_is_taken_and_broken_numbers_come_through(
    exported: Exported, tmp_path: Path
) -> None:
    architecture = exported.checkpoint.architecture
    decoder = onnx.ModelProto()
    decoder.CopyFrom(exported.graphs[DECODER_NAME])
    for tensor in decoder.graph.initializer:
        if list(tensor.dims) == [architecture.target_vocabulary, architecture.width]:
            tensor.CopyFrom(numpy_helper.from_array(0 * numpy_helper.to_array(tensor), tensor.name))
        elif list(tensor.dims) == [architecture.target_vocabulary]:
            bias = np.full(architecture.target_vocabulary, -5.0, np.float32)
            bias[[6, 7, 200, 299]] = 1.0
            tensor.CopyFrom(numpy_helper.from_array(bias, tensor.name))
    config = ExportConfig(checkpoint=exported.checkpoint.directory, output=tmp_path / "unused", precision="fp32")
    (tmp_path / "bundle").mkdir()
    graphs = {**exported.graphs, DECODER_NAME: decoder}
    bundle = write_bundle(tmp_path / "bundle", config, exported.checkpoint, graphs, precision="fp32")
    runner = new_runner(bundle, [4, 5])
    outputs = runner.decode_greedy(step_inputs([0, 1], [BOS_ID, BOS_ID], [0, 0], [4, 5]))
    assert outputs.token_ids.tolist() == [[6] * 4] * 2
    keys = next(values for name, values in runner._slab.inputs(2, 2) if name == "cross_key_0")
    keys[0] = np.nan
    outputs = runner.decode_greedy(step_inputs([0, 1], [BOS_ID, BOS_ID], [0, 0], [4, 5]))
    assert np.isnan(outputs.log_probabilities[0]).all()
    assert outputs.token_ids[1].tolist() == [6] * 4


def test_without_the_graph_or_for_more_than_best_tokens_a_run_is_refused(exported: Exported, tmp_path: Path) -> None:
    runner = new_runner(exported.fp32, [4])
    with pytest.raises(ValueError, match="best tokens and nothing else"):
        runner.decode_greedy(step_inputs([0], [BOS_ID], [0], [4], num_candidates=2))
    with pytest.raises(ValueError, match="best tokens and nothing else"):
        runner.decode_greedy(step_inputs([0], [BOS_ID], [0], [4], with_attention=True))
    config = ExportConfig(
        checkpoint=exported.checkpoint.directory, output=tmp_path / "unused", precision="fp32", greedy_steps=1
    )
    (tmp_path / "bundle").mkdir()
    bundle = write_bundle(tmp_path / "bundle", config, exported.checkpoint, exported.graphs, precision="fp32")
    assert (bundle.manifest.greedy_steps, bundle.greedy_path) == (1, None)
    assert not (bundle.directory / GREEDY_NAME).exists()
    runner = new_runner(bundle, [4])
    assert runner.greedy_steps == 1
    with pytest.raises(ValueError, match="must be in the bundle"):
        runner.decode_greedy(step_inputs([0], [BOS_ID], [0], [4]))


def test_the_profile_finds_the_parts_of_every_step(exported: Exported) -> None:
    single = Counter(parts_of(exported.graphs[DECODER_NAME].graph).values())
    several = Counter(parts_of(onnx.load(exported.fp32.directory / GREEDY_NAME).graph).values())
    assert several.pop("best token") >= 8 * 4
    for part in single.keys() - {"embedding"}:  # of that, a step's position comes from the step before
        assert several[part] == 4 * single[part]
