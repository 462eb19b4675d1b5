"""The first promise, tested on real sentences: tokens and scores do not depend on company, order or threads."""

from __future__ import annotations

import random
from collections.abc import Sequence as Items

from export.decoding import decode_by_engine, open_runner
from export.validation import Sentence
from service.bundle import Bundle
from service.engine import Engine
from service.manifest import SameBytes
from service.options import DecodingOptions
from service.same_bytes import result_bits

NUM_SENTENCES = 200
"""Sentences decoded each way."""
BEAM_SIZES = (1, 4, 1, 2)
"""Beam sizes that the sentences take turns with."""


def check_same_bytes(bundle: Bundle, sentences: Items[Sentence], num_threads: int) -> SameBytes:
    """Decodes up to 200 sentences alone, together, and in random order; counts those with any bit different.

    Every second is decoded by beam search, with all its hypotheses and their attention.
    """
    generator = random.Random(0)
    chosen = generator.sample(list(sentences), min(NUM_SENTENCES, len(sentences)))
    options = [_options(BEAM_SIZES[index % len(BEAM_SIZES)]) for index in range(len(chosen))]
    alone = Engine.over(open_runner(bundle, chosen, max_rows=max(BEAM_SIZES), num_threads=1))
    expected = [
        result_bits(decode_by_engine(alone, [each], [its])[0]) for each, its in zip(chosen, options, strict=True)
    ]
    different: set[int] = set()
    ways = ["alone, 1 thread"]
    for max_rows, threads in ((64, num_threads), (7, 1), (23, num_threads)):
        engine = Engine.over(open_runner(bundle, chosen, max_rows=max_rows, num_threads=threads))
        order = list(range(len(chosen)))
        if max_rows != 64:
            generator.shuffle(order)
        found = decode_by_engine(engine, [chosen[index] for index in order], [options[index] for index in order])
        different.update(index for index, one in zip(order, found, strict=True) if result_bits(one) != expected[index])
        shuffled = "in order" if max_rows == 64 else "in random order"
        ways.append(f"up to {max_rows} rows together {shuffled}, {threads} thread(s)")
    beams = f"beam sizes {', '.join(map(str, sorted(set(BEAM_SIZES))))} mixed"
    return SameBytes(num_sentences=len(chosen), ways=(*ways, beams), num_different=len(different))


def _options(beam_size: int) -> DecodingOptions:
    return DecodingOptions(beam_size=beam_size, num_hypotheses=beam_size, with_alignment=beam_size > 1)
