"""Decoding options of every kind, drawn at random: what tests and benchmarks mix in one batch."""

from __future__ import annotations

import random
from typing import Any

from service.options import DecodingOptions, Sampling


def random_options(
    chance: random.Random, *, vocabulary_size: int, max_target_tokens: int, max_beam_size: int = 8
) -> DecodingOptions:
    """Sound options: greedy, beams, samples and alternatives, each adjustment in about a quarter of them.

    Args:
        chance: decides.
        vocabulary_size: token ids of lists and prefixes are below it; those below 4 are left alone.
        max_target_tokens: the most that is asked for.
        max_beam_size: likewise, for rows of a sequence.
    """

    def sometimes() -> bool:
        return chance.random() < 0.25

    def some_ids(most: int) -> tuple[int, ...]:
        return tuple(chance.randrange(4, vocabulary_size) for _ in range(chance.randint(1, most)))

    given: dict[str, Any] = {"max_target_tokens": chance.randint(2, max_target_tokens)}
    kind = chance.choice(["greedy", "greedy", "beam", "beam", "beam", "samples", "alternatives"])
    if kind == "beam":
        given["beam_size"] = chance.randint(2, max_beam_size)
        given["num_hypotheses"] = chance.randint(1, given["beam_size"])
        given["early_stopping"] = chance.random() < 0.7
        given["patience"] = chance.choice([0.5, 1.0, 1.0, 2.0])
    elif kind == "samples":
        given["num_hypotheses"] = chance.randint(1, max_beam_size)
        given["sampling"] = Sampling(
            top_k=chance.choice([0, 1, 3, 10]),
            top_p=chance.choice([1.0, 0.9, 0.5]),
            temperature=chance.choice([0.5, 1.0, 1.5]),
            seed=chance.randrange(1000),
        )
    elif kind == "alternatives":
        given["with_alternatives"] = True
        given["num_hypotheses"] = chance.randint(1, max_beam_size)
    given["length_penalty"] = chance.choice([0.0, 0.6, 1.0, 1.0, 2.0])
    if sometimes():
        given["coverage_penalty"] = chance.choice([0.2, 1.0])
    if sometimes():
        given["repetition_penalty"] = chance.choice([1.1, 1.5, 3.0])
    if sometimes():
        given["no_repeat_ngram_size"] = chance.randint(1, 4)
    if sometimes():
        given["suppressed_tokens"] = some_ids(min(8, vocabulary_size // 3))
    if sometimes():
        given["suppressed_sequences"] = tuple(some_ids(3) for _ in range(chance.randint(1, 3)))
    if sometimes():
        given["min_target_tokens"] = chance.randint(1, given["max_target_tokens"] - 1)
    if sometimes():
        given["target_prefix"] = some_ids(min(4, given["max_target_tokens"]))
        if kind in {"greedy", "beam"} and chance.random() < 0.5:
            given["prefix_bias"] = chance.choice([0.2, 0.9])
    given["with_alignment"] = sometimes()
    return DecodingOptions(**given)
