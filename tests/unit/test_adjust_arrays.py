"""Candidates of many hypotheses, adjusted at once, come to what one hypothesis at a time comes to."""

from __future__ import annotations

import random

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from service.adjust import Adjuster
from service.adjust_arrays import adjust_candidates
from service.options import DecodingOptions
from service.tokenizer import EOS_ID

VOCABULARY_SIZE = 9


def random_adjuster(chance: random.Random) -> Adjuster:
    return Adjuster(
        DecodingOptions(
            repetition_penalty=chance.choice([1.0, 1.0, 1.3, 2.0]),
            no_repeat_ngram_size=chance.choice([0, 0, 1, 2, 3, 5]),
            suppressed_tokens=tuple(chance.sample(range(VOCABULARY_SIZE), chance.choice([0, 0, 1, 3]))),
            min_target_tokens=chance.choice([0, 0, 2, 7]),
        ),
        eos_id=EOS_ID,
    )


@settings(max_examples=300, deadline=None, derandomize=True)
@given(seed=st.integers(0, 10**6), num_lanes=st.integers(1, 4), size=st.integers(1, 3), are_alike=st.booleans())
def test_all_at_once_equal_one_by_one(seed: int, num_lanes: int, size: int, are_alike: bool) -> None:
    chance = random.Random(seed)
    numbers = np.random.default_rng(seed)
    first = random_adjuster(chance)
    adjusters = [first if are_alike else random_adjuster(chance) for _ in range(num_lanes)]
    width = chance.randint(1, 10)
    lengths = numbers.integers(0, width + 1, num_lanes)
    tokens = numbers.integers(4, VOCABULARY_SIZE, (num_lanes, size, width)).astype(np.int32)  # few: n-grams recur
    given_values = -numbers.exponential(size=(num_lanes, size, VOCABULARY_SIZE)).astype(np.float32)
    given_values[numbers.random(given_values.shape) < 0.05] = -1e9  # no tokens at all
    ids = np.argsort(-given_values, axis=2, kind="stable")
    values = np.take_along_axis(given_values, ids, axis=2).astype(np.float64)
    adjust_candidates(adjusters, tokens, lengths, ids, values, vocabulary_size=VOCABULARY_SIZE, eos_id=EOS_ID)
    for lane, adjuster in enumerate(adjusters):
        for hypothesis in range(size):
            found = np.full(VOCABULARY_SIZE, np.nan)
            found[ids[lane, hypothesis]] = values[lane, hypothesis]
            target = tokens[lane, hypothesis, : lengths[lane]].tolist()
            wanted = adjuster.all(target, given_values[lane, hypothesis])
            if np.isneginf(found).all():  # then the end of sentence is left, which is the caller's to see to
                wanted[EOS_ID] = -np.inf
            np.testing.assert_array_equal(found, wanted)
