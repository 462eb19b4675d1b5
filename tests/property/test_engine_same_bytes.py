"""Promise 1 on real graphs: whoever else is decoded, in whatever order and with however many threads."""

from __future__ import annotations

import functools
import random
import struct

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from service.engine import Engine
from service.model_runner import OnnxModelRunner
from service.options import DecodingOptions
from service.request import FinishReason, Sequence
from service.runner import StepInputs, StepOutputs
from service.same_bytes import probe_same_bytes
from service.tokenizer import EOS_ID
from tests.synthetic.fake_runner import FakeRunner
from tests.synthetic.fixtures import REVERSE, synthetic_bundle, synthetic_runner
from tests.synthetic.random_options import random_options

MAX_ROWS = 10
PLAIN = DecodingOptions()

Bits = list[tuple[list[int], bytes, bytes | None]]


def bits(sequence: Sequence) -> Bits:
    """Everything a caller sees of every result."""
    assert sequence.error is None, sequence.error
    return [
        (
            each.target_ids,
            struct.pack(
                f"<{len(each.token_log_probabilities) + 2}d",
                *each.token_log_probabilities,
                each.score,
                each.normalized_score,
            ),
            None if each.attention is None else each.attention.tobytes(),
        )
        for each in sequence.hypotheses
    ]


@functools.cache
def runner() -> OnnxModelRunner:
    return synthetic_runner(REVERSE, max_rows=MAX_ROWS)


@functools.cache
def alone(source: tuple[int, ...], options: DecodingOptions = PLAIN) -> Bits:
    sequence = Sequence(source_ids=source, options=options)
    Engine.over(runner()).run_to_completion([sequence])
    return bits(sequence)


def random_sources(chance: random.Random, count: int) -> list[tuple[int, ...]]:
    """Sources of 1 to 41 tokens."""
    return [(*chance.choices(range(4, 480), k=chance.randrange(41)), EOS_ID) for _ in range(count)]


@settings(max_examples=60, deadline=None, derandomize=True)
@given(
    seed=st.integers(0, 10**6),
    count=st.integers(1, 14),
    most_joining=st.integers(1, 4),
    budget=st.sampled_from([1, 40, 1024]),
    cancels=st.booleans(),
)
def test_staggered_equals_alone_to_the_bit(
    seed: int, count: int, most_joining: int, budget: int, cancels: bool
) -> None:
    chance = random.Random(seed)
    sequences = [Sequence(source_ids=source) for source in random_sources(chance, count)]
    engine = Engine.over(runner(), max_encode_tokens_per_step=budget)
    pending = list(sequences)
    while pending or not engine.is_idle:
        joining = [pending.pop() for _ in range(min(len(pending), chance.randint(0, most_joining)))]
        engine.submit(joining)
        if cancels and chance.random() < 0.05 and engine.scheduler.running:
            engine.cancel([chance.choice(engine.scheduler.running)])
        engine.step()
    for sequence in sequences:
        if sequence.finish_reason is not FinishReason.CANCELLED:
            assert bits(sequence) == alone(sequence.source_ids)


@settings(max_examples=60, deadline=None, derandomize=True)
@given(seed=st.integers(0, 10**6), count=st.integers(2, 8))
def test_every_option_staggered_equals_alone_to_the_bit(seed: int, count: int) -> None:
    chance = random.Random(seed)
    vocabulary_size = runner().target_vocabulary_size
    sequences = [
        Sequence(
            source_ids=source,
            options=random_options(
                chance, vocabulary_size=vocabulary_size, max_target_tokens=14, max_beam_size=min(5, MAX_ROWS)
            ),
        )
        for source in random_sources(chance, count)
    ]
    engine = Engine.over(runner())
    pending = list(sequences)
    while pending or not engine.is_idle:
        engine.submit([pending.pop() for _ in range(min(len(pending), chance.randint(0, 3)))])
        engine.step()
    for sequence in sequences:
        assert bits(sequence) == alone(sequence.source_ids, sequence.options)


@pytest.mark.parametrize("num_threads", [2, 3])
def test_threads_do_not_change_a_bit(num_threads: int) -> None:
    sequences = [Sequence(source_ids=source) for source in random_sources(random.Random(1), 12)]
    Engine.over(synthetic_runner(REVERSE, max_rows=MAX_ROWS, num_threads=num_threads)).run_to_completion(sequences)
    for sequence in sequences:
        assert bits(sequence) == alone(sequence.source_ids)


def test_the_probe_passes_here() -> None:
    result = probe_same_bytes(runner())
    assert result.is_same_bytes, result.summary()
    assert result.num_sentences == 12
    assert "passed" in result.summary()
    assert probe_same_bytes(FakeRunner(max_rows=5)).is_same_bytes


class DependsOnCompany(FakeRunner):
    """Breaks the promise: scores, and tokens if told so, depend on how many rows there are."""

    is_tokens = False

    def decode_step(self, inputs: StepInputs) -> StepOutputs:
        """One step, wrong where there are more than two rows."""
        found = super().decode_step(inputs)
        if len(inputs.target_ids) > 2:
            found.candidate_log_probabilities[0, 0] -= 1e-6
            if self.is_tokens:
                found = found._replace(candidate_ids=found.candidate_ids.copy())
                found.candidate_ids[0, 0] = 77
        return found


@pytest.mark.parametrize("is_tokens", [False, True])
def test_the_probe_finds_what_depends_on_company(is_tokens: bool) -> None:
    broken = DependsOnCompany()
    broken.is_tokens = is_tokens
    result = probe_same_bytes(broken)
    assert not result.is_same_bytes
    assert {difference.way for difference in result.differences} == {"together", "staggered"}
    assert any(difference.is_tokens for difference in result.differences) == is_tokens
    assert "differences" in result.summary()


def test_the_probe_reports_what_fails() -> None:
    broken = FakeRunner()
    broken.fail_decode = lambda step: step > 5
    result = probe_same_bytes(broken)
    assert not result.is_same_bytes
    assert "RunnerBrokeError" in result.summary()


def test_the_probe_is_quick_and_takes_other_sources() -> None:
    bundle = synthetic_bundle(REVERSE)
    sources = bundle.tokenizer.encode_sources(["Re gonomu 843.", "Ke rizo fukiva gibe se ve luta."])
    result = probe_same_bytes(runner(), sources, max_target_tokens=30)
    assert result.is_same_bytes
    assert result.num_sentences == 2
