"""Every search and option, mixed in one running batch, against the plain reference and against itself alone."""

from __future__ import annotations

import random
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from service.engine import Engine
from service.options import DecodingOptions, Sampling
from service.repetition import find_loop
from service.request import FinishReason, Sequence
from service.tokenizer import BOS_ID, EOS_ID
from tests.parity import reference_search
from tests.synthetic.fake_runner import Babble, FakeRunner
from tests.synthetic.random_options import random_options

MAX_TARGET_TOKENS = 18
VOCABULARY_SIZE = 24
LANGUAGES = {
    "babble": Babble(VOCABULARY_SIZE),
    "sharp": Babble(VOCABULARY_SIZE, sharpness=5.0),
    "large": Babble(160, sharpness=2.5),
}


def new_engine(language: Babble, *, max_rows: int = 24) -> Engine:
    return Engine.over(FakeRunner(max_rows=max_rows, max_target_tokens=MAX_TARGET_TOKENS, language=language))


def random_sequences(chance: random.Random, count: int, language: Babble) -> list[Sequence]:
    return [
        Sequence(
            source_ids=(*chance.choices(range(4, 900), k=chance.randrange(9)), EOS_ID),
            options=random_options(
                chance, vocabulary_size=language.vocabulary_size, max_target_tokens=MAX_TARGET_TOKENS
            ),
        )
        for _ in range(count)
    ]


def copy_of(sequence: Sequence) -> Sequence:
    return Sequence(source_ids=sequence.source_ids, options=sequence.options)


def run_staggered(engine: Engine, sequences: list[Sequence], chance: random.Random) -> None:
    pending = list(sequences)
    while pending or not engine.is_idle:
        engine.submit([pending.pop() for _ in range(min(len(pending), chance.randint(0, 3)))])
        engine.step()
    assert isinstance(engine.runner, FakeRunner)
    assert engine.runner.violations == []
    assert engine.store.num_rows == engine.store.num_lanes == 0


def everything(sequence: Sequence) -> list[object]:
    """All a caller sees, bit by bit."""
    assert sequence.error is None, sequence.error
    return [
        (
            each.target_ids,
            each.token_log_probabilities,
            each.score,
            each.normalized_score,
            each.finish_reason,
            None if each.attention is None else each.attention.tobytes(),
        )
        for each in sequence.hypotheses
    ]


def reference_of(sequence: Sequence, language: Babble) -> reference_search.Found:
    def model(source_ids: tuple[int, ...], target_ids: tuple[int, ...]) -> reference_search.Prediction:
        cached = [BOS_ID, *target_ids]
        return reference_search.Prediction(
            log_probabilities=language.log_probabilities(source_ids, cached),
            attention=language.attention(source_ids, cached).mean(axis=0),
        )

    return reference_search.search(model, sequence.source_ids, sequence.options)


def assert_equals_reference(sequence: Sequence, language: Babble) -> None:
    found = reference_of(sequence, language).hypotheses
    assert [tuple(each.target_ids) for each in sequence.hypotheses] == [each.target_ids for each in found]
    for ours, theirs in zip(sequence.hypotheses, found, strict=True):
        assert ours.token_log_probabilities == list(theirs.token_log_probabilities)
        assert ours.finish_reason.value == theirs.finish_reason
        assert ours.score == pytest.approx(theirs.score)
        assert ours.normalized_score == pytest.approx(theirs.normalized_score)
        if ours.attention is not None:
            np.testing.assert_allclose(ours.attention, np.stack(theirs.attention), rtol=1e-5)


@pytest.mark.parametrize("name", LANGUAGES)
@settings(max_examples=60, deadline=None, derandomize=True)
@given(seed=st.integers(0, 10**6), count=st.integers(1, 8))
def test_mixed_searches_equal_the_plain_reference(name: str, seed: int, count: int) -> None:
    chance = random.Random(seed)
    language = LANGUAGES[name]
    sequences = random_sequences(chance, count, language)
    for sequence in sequences:
        sequence.options = replace(sequence.options, guards_repetition=False)
    run_staggered(new_engine(language), sequences, chance)
    for sequence in sequences:
        if sequence.options.sampling is None:
            assert_equals_reference(sequence, language)


@pytest.mark.parametrize("beam_size", [2, 3, 4, 8])
def test_plain_beams_equal_the_plain_reference(beam_size: int) -> None:
    language = LANGUAGES["babble"]
    chance = random.Random(beam_size)
    sequences = random_sequences(chance, 25, language)
    for sequence in sequences:
        sequence.options = DecodingOptions(
            beam_size=beam_size, num_hypotheses=chance.randint(1, beam_size), guards_repetition=False
        )
    run_staggered(new_engine(language), sequences, chance)
    for sequence in sequences:
        sequence.options = replace(sequence.options, max_target_tokens=MAX_TARGET_TOKENS)
        assert_equals_reference(sequence, language)


@settings(max_examples=80, deadline=None, derandomize=True)
@given(seed=st.integers(0, 10**6), count=st.integers(2, 10))
def test_every_option_gives_the_same_bits_in_any_company(seed: int, count: int) -> None:
    chance = random.Random(seed)
    language = LANGUAGES["sharp"]
    alone = random_sequences(chance, count, language)
    engine = new_engine(language)
    for sequence in alone:
        engine.run_to_completion([sequence])
    for max_rows in (8, 24):
        together = [copy_of(sequence) for sequence in alone]
        run_staggered(new_engine(language, max_rows=max_rows), together, chance)
        for one, other in zip(alone, together, strict=True):
            assert everything(one) == everything(other)


def test_a_beam_of_one_is_greedy_search() -> None:
    language = LANGUAGES["babble"]
    for seed in range(30):
        greedy, other = random_sequences(random.Random(seed), 2, language)
        greedy.options = DecodingOptions()
        # Options that change nothing, and that only the searches with options look at.
        other = Sequence(source_ids=greedy.source_ids, options=DecodingOptions(with_alignment=True))
        new_engine(language).run_to_completion([greedy, other])
        assert everything(greedy)[0][:5] == everything(other)[0][:5]  # type: ignore[index]


def test_samples_depend_on_seed_source_and_number_alone() -> None:
    language = LANGUAGES["babble"]

    def sample(seed: int, source: tuple[int, ...], count: int) -> list[list[int]]:
        options = DecodingOptions(num_hypotheses=count, sampling=Sampling(seed=seed), length_penalty=0.0)
        sequence = Sequence(source_ids=source, options=options)
        new_engine(language).run_to_completion([sequence])
        return [each.target_ids for each in sequence.hypotheses]

    source = (5, 6, 7, EOS_ID)
    assert sample(1, source, 4) == sample(1, source, 4)
    assert sample(1, source, 1)[0] in sample(1, source, 4)
    assert len({tuple(each) for each in sample(1, source, 8)}) > 4
    assert sample(1, source, 4) != sample(2, source, 4)


def test_samples_follow_the_distribution() -> None:
    """The first tokens of many samples come as often as the model says."""
    language = Babble(8, sharpness=1.0)
    source = (5, 6, EOS_ID)
    counts = np.zeros(8)
    num_samples = 1600
    engine = Engine.over(FakeRunner(max_rows=16, max_target_tokens=4, language=language))
    sequences = [
        Sequence(
            source_ids=source,
            options=DecodingOptions(num_hypotheses=16, max_target_tokens=1, sampling=Sampling(seed=seed)),
        )
        for seed in range(num_samples // 16)
    ]
    engine.run_to_completion(sequences)
    for sequence in sequences:
        for each in sequence.hypotheses:
            counts[each.target_ids[0]] += 1
    wanted = np.exp(language.log_probabilities(source, [BOS_ID]).astype(float))
    deviation = np.sqrt(num_samples * wanted * (1 - wanted))
    assert (np.abs(counts - num_samples * wanted) <= 4.5 * deviation + 1e-9).all()


class Loops(Babble):
    """Says one group of tokens again and again once it has begun, unless it is kept from it."""

    def __init__(self, group: tuple[int, ...], begins_at: int = 5) -> None:
        super().__init__(VOCABULARY_SIZE)
        self._group = group
        self._begins_at = begins_at

    def log_probabilities(self, source, cached):  # type: ignore[no-untyped-def]
        """See `Language`."""
        values = super().log_probabilities(source, cached).copy()
        values[EOS_ID] -= 8.0 if len(cached) < 40 else 0.0
        place = len(cached) - 1 - self._begins_at
        if place >= 0:
            values -= 5.0
            values[self._group[place % len(self._group)]] = -0.01
        return values


@pytest.mark.parametrize("beam_size", [1, 3])
@pytest.mark.parametrize("group", [(9,), (9, 10, 11), (5, 6, 7, 8, 9, 10, 11)])
def test_a_loop_is_decoded_again_and_flagged(beam_size: int, group: tuple[int, ...]) -> None:
    def decoded(guards: bool) -> tuple[Sequence, list[int]]:
        told: list[int] = []
        sequence = Sequence(
            source_ids=(5, 9, 7, EOS_ID),
            options=DecodingOptions(beam_size=beam_size, guards_repetition=guards),
            on_progress=lambda _sequence, ids: told.extend(ids),
        )
        runner = FakeRunner(max_rows=4, max_target_tokens=60, language=Loops(group))
        engine = Engine.over(runner)
        engine.submit([sequence])
        while not engine.is_idle:
            for owner, ids in engine.step().progress:
                assert owner is sequence
                assert owner.on_progress is not None
                owner.on_progress(owner, ids)
        assert runner.violations == []
        return sequence, told

    plain, _ = decoded(guards=False)
    loop = find_loop(plain.target_ids)
    assert loop is not None
    assert not plain.was_guarded
    guarded, told = decoded(guards=True)
    assert guarded.was_guarded
    assert find_loop(guarded.target_ids) is None
    assert guarded.target_ids[: loop.first_stop] == plain.target_ids[: loop.first_stop]
    grams = [tuple(guarded.target_ids[i : i + 3]) for i in range(loop.first_stop, len(guarded.target_ids) - 2)]
    assert len(set(grams)) == len(grams)
    assert guarded.finish_reason in {FinishReason.STOP, FinishReason.REPETITION}
    assert told == guarded.target_ids[: len(told)]


@settings(max_examples=60, deadline=None, derandomize=True)
@given(seed=st.integers(0, 10**6), count=st.integers(1, 6))
def test_what_was_told_to_be_certain_stays(seed: int, count: int) -> None:
    chance = random.Random(seed)
    language = LANGUAGES["sharp"]
    told: dict[int, list[int]] = {}
    sequences = random_sequences(chance, count, language)
    for sequence in sequences:
        sequence.on_progress = lambda owner, ids: told.setdefault(id(owner), []).extend(ids)
    engine = new_engine(language)
    pending = list(sequences)
    while pending or not engine.is_idle:
        engine.submit([pending.pop() for _ in range(min(len(pending), 2))])
        for owner, ids in engine.step().progress:
            assert not owner.is_finished
            assert ids
            assert owner.on_progress is not None
            owner.on_progress(owner, ids)
    for sequence in sequences:
        ids = told.get(id(sequence), [])
        assert sequence.hypotheses[0].text_ids[: len(ids)] == ids
        if sequence.options.num_rows == 1 and not sequence.was_guarded and len(set(sequence.target_ids)) > 6:
            assert len(ids) >= 1  # something was told before the end
