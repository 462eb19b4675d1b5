"""The real runner over real graphs with known translations: placing, moving, refusing, failing."""

from __future__ import annotations

import dataclasses
import shutil
from collections.abc import Sequence as Row
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest

from service.bundle import DECODER_NAME, ENCODER_NAME, Bundle
from service.engine import Engine
from service.graph_signature import SOURCE_MULTIPLE
from service.model_runner import ModelRunnerError, OnnxModelRunner
from service.request import DecodingOptions, FinishReason, Sequence
from service.tokenizer import BOS_ID, EOS_ID
from tests.synthetic.bundle import expected_tokens, sentences
from tests.synthetic.fixtures import COPY, REVERSE, synthetic_bundle, synthetic_runner


def source(length: int, *, seed: int = 0) -> tuple[int, ...]:
    rng = np.random.default_rng([seed, length])
    return (*rng.integers(30, 400, length - 1).tolist(), EOS_ID)


def step_alone(runner: OnnxModelRunner, row_tokens: list[int], source_ids: tuple[int, ...]) -> bytes:
    """Bits of the log-probabilities of row 0 after it was fed `row_tokens` from a fresh start."""
    runner.place(0, runner.encode([source_ids]).sources[0])
    bits = b""
    for position, token in enumerate(row_tokens):
        candidates = runner.decode_step([token], [position], [len(source_ids)], 3)
        bits = candidates.token_ids.tobytes() + candidates.log_probabilities.tobytes()
    return bits


@pytest.mark.parametrize("reverse", [False, True])
def test_translations_are_the_known_ones(reverse: bool) -> None:
    options = REVERSE if reverse else COPY
    bundle = synthetic_bundle(options)
    decoded = [
        Sequence(source_ids=tuple(bundle.tokenizer.encode_source(text)))
        for text in [*sentences(30, seed=3), "", "你好 🎉"]
    ]
    Engine.greedy(synthetic_runner(options, max_target_tokens=128)).run_to_completion(decoded)
    for sequence in decoded:
        assert sequence.target_ids == expected_tokens(sequence.source_ids, reverse=reverse)
        assert sequence.finish_reason is FinishReason.STOP
        assert all(-3 < value < -0.01 for value in sequence.token_log_probabilities)  # far from certain, bits at stake


@pytest.mark.parametrize("length", [1, 2, 7, 8, 9, 63, 64])
def test_every_source_length_up_to_the_limit(length: int) -> None:
    sequence = Sequence(source_ids=source(length))
    Engine.greedy(synthetic_runner(REVERSE)).run_to_completion([sequence])
    assert sequence.target_ids == expected_tokens(sequence.source_ids, reverse=True)


def test_the_cache_is_used_to_its_end() -> None:
    runner = synthetic_runner(COPY, max_target_tokens=9)
    sequence = Sequence(source_ids=source(20))
    short = Sequence(source_ids=source(20), options=DecodingOptions(max_target_tokens=3))
    Engine.greedy(runner).run_to_completion([sequence, short])
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
    whole = runner.encode(sources)
    monkeypatch.setattr("service.model_runner.MAX_PADDED_TOKENS_PER_RUN", 50)  # two of 24 fit
    sizes: list[int] = []
    run = runner._encode_run

    def watched(some: list[Row[int]], length: int) -> npt.NDArray[np.float32]:
        sizes.append(len(some))
        return run(some, length)

    monkeypatch.setattr(runner, "_encode_run", watched)
    parts = runner.encode(sources)
    assert sizes == [2, 2, 2, 1]
    assert [s.payload.tobytes() for s in parts.sources] == [s.payload.tobytes() for s in whole.sources]


def test_a_moved_row_goes_on_with_the_same_bits() -> None:
    one, other = source(13, seed=1), source(22, seed=2)
    tokens = [BOS_ID, *one[:6]]
    wanted = step_alone(synthetic_runner(COPY), tokens, one)
    runner = synthetic_runner(COPY)
    encoded = runner.encode([other, one]).sources
    for row in range(3):
        runner.place(row, encoded[0])
    runner.place(3, encoded[1])
    for position, token in enumerate(tokens[:-1]):
        runner.decode_step([BOS_ID, 9, 8, token], [0, 5, 2, position], [22, 22, 22, 13], 1)
    runner.move_row(3, 1, past_length=len(tokens) - 1, source_length=13)
    found = runner.decode_step([BOS_ID, tokens[-1]], [0, len(tokens) - 1], [22, 13], 3)
    assert found.token_ids[1].tobytes() + found.log_probabilities[1].tobytes() == wanted


@pytest.mark.parametrize("garbage", [np.nan, np.inf, 1e30])
def test_what_a_row_held_before_is_never_seen(garbage: float) -> None:
    one = source(13)
    tokens = [BOS_ID, *one[:9]]
    wanted = step_alone(synthetic_runner(COPY), tokens, one)
    runner = synthetic_runner(COPY)
    for buffer in (runner._slab._self, runner._slab._cross, runner._slab._cross_last):
        buffer[:] = garbage
    assert step_alone(runner, tokens, one) == wanted


def test_a_row_of_broken_numbers_does_not_touch_the_others() -> None:
    one, other = source(13), source(21)
    tokens = [BOS_ID, *one[:5]]
    wanted = step_alone(synthetic_runner(COPY), tokens, one)
    runner = synthetic_runner(COPY)
    first, second = runner.encode([one, other]).sources
    runner.place(0, second)
    runner.place(1, first)
    runner.place(2, second)
    runner._slab._cross[:, :, 0, :, :21] = np.nan
    runner._slab._cross[:, :, 2, :, :21] = np.nan
    for position, token in enumerate(tokens):
        found = runner.decode_step([token] * 3, [position] * 3, [21, 13, 21], 3)
    assert found.token_ids[1].tobytes() + found.log_probabilities[1].tobytes() == wanted
    assert not np.isfinite(found.log_probabilities[[0, 2], 0]).any()


def test_arguments_out_of_bounds_are_refused_together() -> None:
    with pytest.raises(ModelRunnerError) as refused:
        OnnxModelRunner(
            synthetic_bundle(COPY),
            max_rows=0,
            max_source_tokens=513,
            max_target_tokens=0,
            num_threads=0,
            provider="abacus",
        )
    for name in ("max_rows", "max_source_tokens", "max_target_tokens", "num_threads", "provider"):
        assert f"`{name}` must be" in str(refused.value)


def damaged(tmp_path: Path) -> Bundle:
    """A copy of the bundle whose files a test may change: the loader's checks are past."""
    bundle = synthetic_bundle(COPY)
    shutil.copytree(bundle.directory, tmp_path / "copy")
    return dataclasses.replace(bundle, directory=tmp_path / "copy")


def refusal(bundle: Bundle) -> str:
    with pytest.raises(ModelRunnerError) as refused:
        OnnxModelRunner(bundle, max_rows=1, max_source_tokens=8, max_target_tokens=8, num_threads=1)
    return str(refused.value)


def test_a_graph_that_is_none_is_refused(tmp_path: Path) -> None:
    bundle = damaged(tmp_path)
    bundle.encoder_path.write_bytes(b"no graph")
    assert "encoder.onnx must be a graph that ONNX Runtime can load" in refusal(bundle)


def test_graphs_of_another_signature_are_refused(tmp_path: Path) -> None:
    bundle = damaged(tmp_path)
    shutil.copy(bundle.directory / DECODER_NAME, bundle.directory / ENCODER_NAME)
    message = refusal(bundle)
    assert "`source_ids` must be among the encoder's inputs, but is missing" in message
    assert "`log_probabilities` among the encoder's outputs is not known" in message


def test_the_engine_survives_a_graph_that_fails() -> None:
    runner = synthetic_runner(COPY)
    engine = Engine.greedy(runner)
    running = Sequence(source_ids=source(9))
    engine.submit([running])
    engine.step()
    binding = runner._bindings[1]
    binding.clear_binding_inputs()  # the next step of one row lacks its inputs
    report = engine.step()
    assert report.decode_error is not None
    assert running.finish_reason is FinishReason.FAILED
    runner._bindings.clear()
    later = Sequence(source_ids=source(9))
    engine.run_to_completion([later])
    assert later.target_ids == expected_tokens(later.source_ids)
