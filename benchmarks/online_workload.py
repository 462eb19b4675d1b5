"""What callers ask in the online comparison: mixed single sentences, the same for every server."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from benchmarks.test_sets import english_chinese
from service.pb.translation.v1 import translation_pb2 as pb
from service.segments import Encode, split_item
from service.tokenizer import Tokenizer

MAX_SOURCE_TOKENS = 128
"""As the service's default: no sentence is split, so both servers translate the same pieces."""


@dataclass(frozen=True, kw_only=True)
class Scenario:
    """How the sentences are to be searched for."""

    name: str
    """Also its name in files and on the command line."""
    beam_size: int
    """1: greedy."""

    def message(self, sentence: str) -> bytes:
        """A serialised request for one sentence. A beam is told CTranslate2's defaults, which are the service's too."""
        options = None
        if self.beam_size > 1:
            options = pb.DecodingOptions(
                beam_size=self.beam_size, length_penalty=1.0, early_stopping=True, patience=1.0
            )
        return pb.TranslateTextRequest(contents=[sentence], decoding_options=options).SerializeToString()


SCENARIOS = (Scenario(name="greedy", beam_size=1), Scenario(name="beam4", beam_size=4))


class Workload:
    """Sentences of the docs, Tatoeba and FLORES sets that the service takes as one segment each, in one pool."""

    def __init__(self, data: Path, bundle: Path) -> None:
        """Reads the sets below `data` and the tokenizer of a bundle.

        Raises:
            OSError, ValueError: when they cannot be read.
        """
        encode = Tokenizer.load(bundle / "tokenizer").encode_source
        pool = [sentence for test_set in english_chinese(data) for sentence in test_set.sources]
        taken = [(len(encode(sentence)), sentence) for sentence in pool if _is_one_segment(sentence, encode)]
        taken.sort()
        self.sentences: Sequence[str] = [sentence for _, sentence in taken]
        """Each a line of a test set; the shortest first."""
        self.lengths: Sequence[int] = [length for length, _ in taken]
        """Source tokens of each."""
        self.num_left_out = len(pool) - len(taken)
        """Lines of several sentences, and those too long."""

    def messages(self, scenario: Scenario, count: int, seed: int) -> list[bytes]:
        """Requests for so many sentences in random order, drawn with `seed` alone."""
        return [scenario.message(self.sentences[index]) for index in spread_draw(len(self.sentences), count, seed)]


def spread_draw(size: int, count: int, seed: int) -> list[int]:
    """So many of `size` indices, evenly spread from a random start, in random order.

    Over a pool in order of length, each draw has the pool's mix of lengths: percentiles of latency then differ from
    draw to draw by what the server did, and little by which sentences it got.
    """
    chance = random.Random(seed)
    start = chance.random()
    drawn = [int((start + number) * size / count) for number in range(count)]
    chance.shuffle(drawn)
    return drawn


def _is_one_segment(sentence: str, encode: Encode) -> bool:
    segments = split_item(sentence, encode, MAX_SOURCE_TOKENS)
    return len(segments) == 1 and bool(segments[0].core)
