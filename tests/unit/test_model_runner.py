"""The real runner over real graphs with known translations: placing, copying, refusing, failing."""

from __future__ import annotations

import dataclasses
import shutil
from collections.abc import Sequence as Row
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import numpy.typing as npt
import onnx
import pytest

from export.bundle_writer import seal
from service.bundle import DECODER_NAME, ENCODER_NAME, GREEDY_NAME, Bundle, load_bundle
from service.engine import Engine
from service.graph_signature import SOURCE_MULTIPLE
from service.graphs import Graphs, ModelRunnerError, open_graphs
from service.model_runner import OnnxModelRunner
from service.options import DecodingOptions
from service.request import FinishReason, Sequence
from service.runner import StepOutputs
from service.tokenizer import BOS_ID, EOS_ID
from tests.synthetic.bundle import expected_tokens, sentences
from tests.synthetic.fixtures import COPY, REVERSE, synthetic_bundle, synthetic_runner
from tests.synthetic.steps import step_inputs


def source(length: int, *, seed: int = 0) -> tuple[int, ...]:
    rng = np.random.default_rng([seed, length])
    return (*rng.integers(30, 400, length - 1).tolist(), EOS_ID)


def bits(found: StepOutputs, row: int) -> bytes:
    """Everything a row gave."""
    parts = [found.candidate_ids[row], found.candidate_log_probabilities[row], found.log_probabilities[row]]
    return b"".join(part.tobytes() for part in parts)


def step_alone(runner: OnnxModelRunner, row_tokens: list[int], source_ids: tuple[int, ...]) -> bytes:
    """Bits of row 0 after it was fed `row_tokens` from a fresh start."""
    runner.place(0, runner.encode([source_ids]).sources[0])
    last = b""
    for position, token in enumerate(row_tokens):
        inputs = step_inputs([0], [token], [position], [len(source_ids)], num_candidates=3)
        last = bits(runner.decode_step(inputs), 0)
    return last


@pytest.mark.parametrize("reverse", [False, True])
def test_translations_are_the_known_ones(reverse: bool) -> None:
    options = REVERSE if reverse else COPY
    bundle = synthetic_bundle(options)
    decoded = [
        Sequence(source_ids=tuple(bundle.tokenizer.encode_source(text)))
        for text in [*sentences(30, seed=3), "", "你好 🎉"]
    ]
    Engine.over(synthetic_runner(options, max_target_tokens=128)).run_to_completion(decoded)
    for sequence in decoded:
        assert sequence.target_ids == expected_tokens(sequence.source_ids, reverse=reverse)
        assert sequence.finish_reason is FinishReason.STOP
        assert all(-3 < value < -0.01 for value in sequence.token_log_probabilities)  # far from certain, bits at stake


@pytest.mark.parametrize("length", [1, 2, 7, 8, 9, 63, 64])
def test_every_source_length_up_to_the_limit(length: int) -> None:
    sequence = Sequence(source_ids=source(length))
    Engine.over(synthetic_runner(REVERSE)).run_to_completion([sequence])
    assert sequence.target_ids == expected_tokens(sequence.source_ids, reverse=True)


def test_the_cache_is_used_to_its_end() -> None:
    runner = synthetic_runner(COPY, max_target_tokens=9)
    sequence = Sequence(source_ids=source(20))
    short = Sequence(source_ids=source(20), options=DecodingOptions(max_target_tokens=3))
    Engine.over(runner).run_to_completion([sequence, short])
    assert sequence.target_ids == list(sequence.source_ids[:9])
    assert short.target_ids == list(sequence.source_ids[:3])
    assert {sequence.finish_reason, short.finish_reason} == {FinishReason.LENGTH}


def test_encoding_does_not_depend_on_company() -> None:
    runner = synthetic_runner(COPY)
    sources = [source(length, seed=length) for length in (3, 8, 9, 30, 5, 64, 8, 1, 17, 24)]
    together = runner.encode(sources)
    assert together.num_tokens == sum(map(len, sources))
    padded = [-(-len(one) // SOURCE_MULTIPLE) * SOURCE_MULTIPLE for one in sources]
    assert together.num_padded_tokens == sum(padded)
    for one, encoded in zip(sources, together.sources, strict=True):
        alone = runner.encode([one]).sources[0]
        assert encoded.source_length == len(one)
        assert encoded.payload.tobytes() == alone.payload.tobytes()


def test_long_groups_are_encoded_in_bounded_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    runner = synthetic_runner(COPY)
    sources = [source(20, seed=seed) for seed in range(7)]
    whole = [each.payload.tobytes() for each in runner.encode(sources).sources]
    monkeypatch.setattr("service.model_runner.MAX_PADDED_TOKENS_PER_RUN", 50)  # two of 24 fit
    sizes: list[int] = []
    run = runner._encode_run

    def watched(some: list[Row[int]], length: int, *, may_keep: bool) -> npt.NDArray[np.float32]:
        sizes.append(len(some))
        return run(some, length, may_keep=may_keep)

    monkeypatch.setattr(runner, "_encode_run", watched)
    parts = runner.encode(sources)
    assert sizes == [2, 2, 2, 1]
    assert [each.payload.tobytes() for each in parts.sources] == whole
    assert [each.payload.tobytes() for each in runner.encode(sources[::-1]).sources] == whole[::-1]


def test_kept_buffers_of_the_encoder_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("service.model_runner.MAX_ENCODER_BINDINGS", 2)
    monkeypatch.setattr("service.model_runner.MAX_KEPT_ENCODER_TOKENS", 32)
    runner = synthetic_runner(COPY)
    short = runner.encode([source(5)]).sources[0].payload.tobytes()
    for length in (3, 12, 20, 30, 40, 5):
        encoded = runner.encode([source(length)]).sources[0].payload
        assert len(runner._encoder_bindings) <= 2
        assert all(np.prod(shape) <= 32 for shape in runner._encoder_bindings)
    assert encoded.tobytes() == short


def test_a_copied_row_and_lane_go_on_with_the_same_bits() -> None:
    one, other = source(13, seed=1), source(22, seed=2)
    tokens = [BOS_ID, *one[:6]]
    wanted = step_alone(synthetic_runner(COPY), tokens, one)
    runner = synthetic_runner(COPY)
    encoded = runner.encode([other, one]).sources
    for lane in range(3):
        runner.place(lane, encoded[0])
    runner.place(3, encoded[1])
    for position, token in enumerate(tokens[:-1]):
        fed = [BOS_ID, 9, 8, token]
        runner.decode_step(step_inputs([0, 1, 2, 3], fed, [0, 5, 2, position], [22, 22, 22, 13]))
    runner.copy_row(3, 1, start=0, stop=len(tokens) - 1)
    runner.copy_lane(3, 1, source_length=13)
    inputs = step_inputs([0, 1], [BOS_ID, tokens[-1]], [0, len(tokens) - 1], [22, 13], num_candidates=3)
    assert bits(runner.decode_step(inputs), 1) == wanted


def test_a_row_that_branches_copies_only_what_differs() -> None:
    """Two rows of a lane whose targets part after two tokens; the second then becomes the first."""
    one = source(13, seed=1)
    tokens = [BOS_ID, *one[:5]]

    def decode(copied_from: int) -> bytes:
        runner = synthetic_runner(COPY)
        runner.place(0, runner.encode([one]).sources[0])
        for position, token in enumerate(tokens[:-1]):
            others = token if position < 2 else token + 1
            runner.decode_step(step_inputs([0, 0], [token, others], [position] * 2, [13]))
        runner.copy_row(0, 1, start=copied_from, stop=len(tokens) - 1)
        inputs = step_inputs([0, 0], [tokens[-1]] * 2, [len(tokens) - 1] * 2, [13], num_candidates=4)
        found = runner.decode_step(inputs)
        assert (bits(found, 0) == bits(found, 1)) == (copied_from <= 2)
        return bits(found, 1)

    assert decode(0) == decode(2) != decode(3)


def test_rows_of_many_lanes_translate_what_their_lane_holds() -> None:
    """Rows stand anywhere, lanes have 1 to 16 of them: each copies its own source, and its attention says so."""
    runner = synthetic_runner(COPY, max_rows=30)
    sizes = [3, 1, 16, 2, 1]
    sources = [source(length, seed=length) for length in (9, 4, 17, 6, 25)]
    for lane, encoded in enumerate(runner.encode(sources).sources):
        runner.place(lane, encoded)
    lanes = [lane for lane, size in enumerate(sizes) for _ in range(size)]
    np.random.default_rng(1).shuffle(lanes)
    fed = [BOS_ID] * len(lanes)
    for position in range(4):
        inputs = step_inputs(
            lanes, fed, [position] * len(lanes), list(map(len, sources)), num_candidates=2, with_attention=True
        )
        found = runner.decode_step(inputs)
        fed = found.candidate_ids[:, 0].tolist()
        assert fed == [sources[lane][position] for lane in lanes]
        assert found.attention is not None
        assert found.attention.shape == (len(lanes), 25)
        for row, lane in enumerate(lanes):
            own = found.attention[row, : len(sources[lane])]
            assert own.argmax() == position
            np.testing.assert_allclose(own.sum(), 1, atol=1e-6)


def test_attention_is_the_mean_of_the_heads_and_outlives_the_step() -> None:
    runner = synthetic_runner(COPY)
    sources = [source(9), source(30)]
    for lane, encoded in enumerate(runner.encode(sources).sources):
        runner.place(lane, encoded)
    inputs = step_inputs([1, 0, 1], [BOS_ID] * 3, [0] * 3, [9, 30], with_attention=True)
    found = runner.decode_step(inputs).attention
    assert found is not None
    by_slot = runner._attention_by_slot().copy()  # [N,H,Q,P]
    kept = found.copy()
    runner._attention.fill(np.nan)
    np.testing.assert_array_equal(found, kept)
    for row, (lane, place, length) in enumerate(((1, 0, 30), (0, 0, 9), (1, 1, 30))):
        np.testing.assert_allclose(kept[row, :length], by_slot[lane, :, place, :length].mean(axis=0), rtol=1e-6)


@pytest.mark.parametrize("num_candidates", [1, 2, 5, 40])
def test_candidates_are_the_best_of_the_log_probabilities(num_candidates: int) -> None:
    runner = synthetic_runner(COPY)
    runner.place(0, runner.encode([source(9)]).sources[0])
    found = runner.decode_step(step_inputs([0, 0], [BOS_ID, 40], [0, 0], [9], num_candidates=num_candidates))
    order = np.argsort(-found.log_probabilities, axis=1, kind="stable")[:, :num_candidates]
    np.testing.assert_array_equal(found.candidate_ids, order)
    np.testing.assert_array_equal(
        found.candidate_log_probabilities, np.take_along_axis(found.log_probabilities, order, axis=1)
    )
    assert found.attention is None


def test_steps_of_every_size_are_bound_anew_in_bounds(monkeypatch: pytest.MonkeyPatch) -> None:
    """Bindings that were thrown away, and one whose sources have grown longer, give the same bits."""
    monkeypatch.setattr("service.model_runner.MAX_BINDINGS", 2)
    runner = synthetic_runner(COPY)
    sources = [source(9), source(60), source(30), source(14)]
    for lane, encoded in enumerate(runner.encode(sources).sources):
        runner.place(lane, encoded)
    wanted = None
    for lanes in ([0], [0, 1], [0, 1, 2], [0, 3], [0, 2, 3, 3], [0, 1]):
        num_lanes = max(lanes) + 1
        lengths = list(map(len, sources[:num_lanes]))
        rows = [*lanes, *(lane for lane in range(num_lanes) if lane not in lanes)]
        for with_attention in (False, True):
            inputs = step_inputs(
                rows, [BOS_ID] * len(rows), [0] * len(rows), lengths, num_candidates=3, with_attention=with_attention
            )
            found = bits(runner.decode_step(inputs), 0)
            wanted = wanted or found
            assert found == wanted
    assert len(runner._bindings) <= 2
    assert len(runner._candidates_bindings) <= 2


@pytest.mark.parametrize("num_candidates", [0, -1, 505])
def test_candidates_that_cannot_be_are_refused(num_candidates: int) -> None:
    runner = synthetic_runner(COPY)
    assert runner.target_vocabulary_size == 504
    runner.place(0, runner.encode([source(9)]).sources[0])
    with pytest.raises(ValueError, match="`num_candidates` must be between 1 and 504"):
        runner.decode_step(step_inputs([0], [BOS_ID], [0], [9], num_candidates=num_candidates))


@pytest.mark.parametrize("lanes", [[0] * 17, [0, 0, 2]])
def test_lanes_of_too_many_rows_or_none_are_refused(lanes: list[int]) -> None:
    runner = synthetic_runner(COPY, max_rows=20)
    for lane, encoded in enumerate(runner.encode([source(9)] * 3).sources):
        runner.place(lane, encoded)
    sound = step_inputs([0], [BOS_ID], [0], [9])
    before = bits(runner.decode_step(sound), 0)
    lengths = [9] * (max(lanes) + 1)
    with pytest.raises(ValueError, match="A lane must have between 1 and 16 rows"):
        runner.decode_step(step_inputs(lanes, [BOS_ID] * len(lanes), [0] * len(lanes), lengths))
    assert bits(runner.decode_step(sound), 0) == before


@pytest.mark.parametrize("garbage", [np.nan, np.inf, 1e30])
def test_what_a_row_held_before_is_never_seen(garbage: float) -> None:
    one = source(13)
    tokens = [BOS_ID, *one[:9]]
    wanted = step_alone(synthetic_runner(COPY), tokens, one)
    runner = synthetic_runner(COPY)
    for buffer in (runner._slab._self, runner._slab._cross, runner._attention, runner._layout._bias):
        buffer[:] = garbage
    assert step_alone(runner, tokens, one) == wanted


@pytest.mark.parametrize("num_candidates", [1, 3])
def test_a_row_of_broken_numbers_does_not_touch_other_lanes(num_candidates: int) -> None:
    one, other = source(13), source(21)
    tokens = [BOS_ID, *one[:5]]
    lanes = [0, 1, 2, 2, 2]

    def decode(*, is_broken: bool) -> StepOutputs:
        runner = synthetic_runner(COPY)
        first, second = runner.encode([one, other]).sources
        for lane, encoded in enumerate((second, first, second)):
            runner.place(lane, encoded)
        if is_broken:
            runner._slab._cross[:, :, 0, :, :21] = np.nan
            runner._slab._cross[:, :, 2, :, :21] = np.nan
        for position, token in enumerate(tokens):
            found = runner.decode_step(
                step_inputs(lanes, [token] * 5, [position] * 5, [21, 13, 21], num_candidates=num_candidates)
            )
        return found

    found = decode(is_broken=True)
    assert bits(found, 1) == bits(decode(is_broken=False), 1)
    assert not np.isfinite(found.candidate_log_probabilities[[0, 2, 3, 4], 0]).any()


def test_arguments_out_of_bounds_are_refused_together() -> None:
    with pytest.raises(ModelRunnerError) as refused:
        OnnxModelRunner(synthetic_bundle(COPY), max_rows=0, max_source_tokens=513, max_target_tokens=0)
    for name in ("max_rows", "max_source_tokens", "max_target_tokens"):
        assert f"`{name}` must be" in str(refused.value)
    with pytest.raises(ModelRunnerError, match=r"`num_threads` must be .*`provider` must be"):
        open_graphs(synthetic_bundle(COPY), num_threads=0, provider="abacus")


def test_runners_that_share_graphs_do_not_touch_each_other() -> None:
    """Two threads decode at once on the same weights; each gets the bits it gets alone."""
    bundle = synthetic_bundle(COPY)
    graphs = open_graphs(bundle, num_threads=1)
    sources = [source(5 + 3 * seed, seed=seed) for seed in range(12)]

    def decoded(shared: Graphs | None, some: list[list[int]]) -> list[list[float]]:
        runner = OnnxModelRunner(bundle, max_rows=4, max_source_tokens=64, max_target_tokens=64, graphs=shared)
        sequences = [Sequence(source_ids=tuple(ids)) for ids in some]
        Engine.over(runner).run_to_completion(sequences)
        return [[*each.target_ids, *each.token_log_probabilities] for each in sequences]

    alone = decoded(None, sources)
    with ThreadPoolExecutor(2) as pool:
        for _ in range(3):
            first = pool.submit(decoded, graphs, sources)
            second = pool.submit(decoded, graphs, sources[::-1])
            assert first.result() == alone
            assert second.result() == alone[::-1]


def with_files(bundle: Bundle, **changed: bytes) -> Bundle:
    """A bundle as it would be with other bytes: the loader's checks are past."""
    names = {"encoder": ENCODER_NAME, "decoder": DECODER_NAME}
    return dataclasses.replace(bundle, files={**bundle.files, **{names[key]: changed[key] for key in changed}})


def refusal(bundle: Bundle) -> str:
    with pytest.raises(ModelRunnerError) as refused:
        OnnxModelRunner(bundle, max_rows=1, max_source_tokens=8, max_target_tokens=8, num_threads=1)
    return str(refused.value)


def test_a_graph_that_is_none_is_refused() -> None:
    bundle = with_files(synthetic_bundle(COPY), encoder=b"no graph")
    assert "encoder.onnx must be a graph that ONNX Runtime can load" in refusal(bundle)


def test_graphs_of_another_signature_are_refused() -> None:
    bundle = synthetic_bundle(COPY)
    message = refusal(with_files(bundle, encoder=bundle.files[DECODER_NAME]))
    assert "`source_ids` must be among the encoder's inputs, but is missing" in message
    assert "`log_probabilities` among the encoder's outputs is not known" in message


def with_weights_apart(directory: Path) -> Path:
    """A copy of the bundle whose graphs keep their weights in files of their own."""
    bundle = synthetic_bundle(COPY)
    shutil.copytree(bundle.directory, directory)
    for name in (ENCODER_NAME, DECODER_NAME, GREEDY_NAME):
        graph = onnx.load(directory / name)
        onnx.save_model(
            graph, directory / name, save_as_external_data=True, location=f"{name}.data", size_threshold=1024
        )
    seal(directory, bundle.manifest)
    return directory


def decoded_tokens(bundle: Bundle) -> list[list[int]]:
    runner = OnnxModelRunner(bundle, max_rows=4, max_source_tokens=64, max_target_tokens=64)
    sequences = [Sequence(source_ids=source(5 + 3 * seed, seed=seed)) for seed in range(4)]
    Engine.over(runner).run_to_completion(sequences)
    assert [each.target_ids for each in sequences] == [expected_tokens(each.source_ids) for each in sequences]
    return [[*each.target_ids, *each.token_log_probabilities] for each in sequences]  # type: ignore[list-item]


@pytest.mark.parametrize("is_apart", [False, True])
def test_what_is_run_is_what_was_verified(tmp_path: Path, is_apart: bool) -> None:
    directory = tmp_path / "bundle"
    if is_apart:
        with_weights_apart(directory)
    else:
        shutil.copytree(synthetic_bundle(COPY).directory, directory)
    bundle = load_bundle(directory)
    for path in directory.rglob("*"):
        if path.is_file():
            path.write_bytes(bytes(path.stat().st_size))
    assert decoded_tokens(bundle) == decoded_tokens(synthetic_bundle(COPY))


def test_weights_that_no_manifest_names_are_not_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    directory = with_weights_apart(tmp_path / "bundle")
    monkeypatch.chdir(directory)  # where the runtime would look by itself
    bundle = load_bundle(directory)
    names = {f"{name}.data" for name in (ENCODER_NAME, DECODER_NAME, GREEDY_NAME)}
    assert names < bundle.files.keys()
    for missing in (names, {f"{ENCODER_NAME}.data"}):
        files = {name: content for name, content in bundle.files.items() if name not in missing}
        assert "encoder.onnx must be a graph" in refusal(dataclasses.replace(bundle, files=files))


def test_the_engine_survives_a_graph_that_fails() -> None:
    runner = synthetic_runner(COPY)
    engine = Engine.over(runner)
    running = Sequence(source_ids=source(9))
    engine.submit([running])
    engine.step()
    (bound,) = runner._greedy_bindings.values()
    bound.binding.clear_binding_inputs()  # the next run of one row lacks its inputs
    report = engine.step()
    assert report.decode_error is not None
    assert running.finish_reason is FinishReason.FAILED
    runner._greedy_bindings.clear()
    later = Sequence(source_ids=source(9))
    engine.run_to_completion([later])
    assert later.target_ids == expected_tokens(later.source_ids)
