"""The first promise, tested on real sentences: tokens and scores do not depend on company, order or threads."""

from __future__ import annotations

import random
from collections.abc import Sequence as Items

from export.decoding import decode_by_engine, open_runner
from export.validation import Sentence
from service.bundle import Bundle
from service.engine import Engine
from service.manifest import SameBytes
from service.request import Sequence

NUM_SENTENCES = 200
"""Sentences decoded each way."""


def check_same_bytes(bundle: Bundle, sentences: Items[Sentence], num_threads: int) -> SameBytes:
    """Decodes up to 200 sentences alone, together, and in random order; counts those with any bit different."""
    generator = random.Random(0)
    chosen = generator.sample(list(sentences), min(NUM_SENTENCES, len(sentences)))
    alone = Engine.over(open_runner(bundle, chosen, max_rows=1, num_threads=1))
    expected = [_bits(decode_by_engine(alone, [sentence]))[0] for sentence in chosen]
    different: set[int] = set()
    ways = ["alone, 1 thread"]
    for max_rows, threads in ((64, num_threads), (7, 1), (23, num_threads)):
        engine = Engine.over(open_runner(bundle, chosen, max_rows=max_rows, num_threads=threads))
        order = list(range(len(chosen)))
        if max_rows != 64:
            generator.shuffle(order)
        found = _bits(decode_by_engine(engine, [chosen[index] for index in order]))
        different.update(index for index, bits in zip(order, found, strict=True) if bits != expected[index])
        shuffled = "in order" if max_rows == 64 else "in random order"
        ways.append(f"up to {max_rows} together {shuffled}, {threads} thread(s)")
    return SameBytes(num_sentences=len(chosen), ways=tuple(ways), num_different=len(different))


def _bits(sequences: Items[Sequence]) -> list[tuple[tuple[int, ...], tuple[str, ...]]]:
    """Tokens and the exact values of their scores."""
    return [
        (tuple(each.target_ids), tuple(float(value).hex() for value in each.token_log_probabilities))
        for each in sequences
    ]
