"""What the offline benchmark measures: which peers translate how many sentences how, and with which settings."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum

from benchmarks.peers.random_model import TARGET_TOKENS

TRAINED = "en-zh"
"""The default model."""
RANDOM = "transformer-base"
"""The model of random weights."""


class Peer(Enum):
    """Who is measured; the value is for people."""

    DRAGOMAN = "Dragoman int8"
    CTRANSLATE2 = "CTranslate2 int8"
    CTRANSLATE2_FP32 = "CTranslate2 fp32"
    PYTORCH = "PyTorch fp32"
    OPTIMUM = "ONNX Runtime by Optimum fp32"

    @property
    def is_fp32(self) -> bool:
        """Whether its translations must be those of the checkpoint, token by token."""
        return self.value.endswith("fp32")


FAST = (Peer.DRAGOMAN, Peer.CTRANSLATE2, Peer.CTRANSLATE2_FP32)
WITH_PYTORCH = (*FAST, Peer.PYTORCH)
ALL = (*WITH_PYTORCH, Peer.OPTIMUM)


@dataclass(frozen=True, kw_only=True)
class Setting:
    """How a peer uses the cores."""

    workers: int
    """Translations side by side."""
    threads: int
    """Threads of each."""

    def __str__(self) -> str:
        return f"{self.workers}x{self.threads}"


@dataclass(frozen=True, kw_only=True)
class Case:
    """One figure for each of some peers: all translate the same sentences in the same way."""

    model: str
    """`TRAINED` or `RANDOM`."""
    beam_size: int
    """1: greedy search."""
    batch_size: int
    """Sentences that are decoded at a time, over all cores."""
    num_sentences: int
    """The first so many of the model's sentences."""
    peers: tuple[Peer, ...]
    """Who takes part."""

    @property
    def search(self) -> str:
        """In words."""
        return "greedy" if self.beam_size == 1 else f"beam {self.beam_size}"

    @property
    def name(self) -> str:
        """What tells it from other cases."""
        return f"{self.model}, {self.search}, batch {self.batch_size}, {self.num_sentences} sentences"

    @property
    def forced_tokens(self) -> int | None:
        """The length of every target, where random weights decide nothing."""
        return TARGET_TOKENS if self.model == RANDOM else None


def full_cases(num_sentences: int) -> list[Case]:
    """The cases of a full run; `num_sentences` for those who decode many at a time fast.

    The slower peers are measured on fewer sentences, in cases of their own, and so is a batch of one.
    """
    few = min(num_sentences, 192)
    return _distinct(
        [
            _trained(1, 1, min(num_sentences, 64), ALL),
            *(_trained(beam_size, batch, num_sentences, FAST) for beam_size in (1, 4) for batch in (16, 64)),
            _trained(4, 1, min(num_sentences, 32), ALL),
            _trained(1, 16, few, ALL),
            _trained(1, 64, few, ALL),
            _trained(4, 16, min(num_sentences, 96), ALL),
            _trained(4, 64, min(num_sentences, 128), WITH_PYTORCH),
            _random(1, 1, 4, ALL),
            _random(1, 16, 32, ALL),
            _random(1, 64, 128, WITH_PYTORCH),
            _random(4, 16, 32, WITH_PYTORCH),
        ]
    )


def quick_cases(num_sentences: int) -> list[Case]:
    """A look at the same in a few minutes, with more noise."""
    many, few = min(num_sentences, 320), min(num_sentences, 48)
    return _distinct(
        [
            _trained(1, 1, min(num_sentences, 24), WITH_PYTORCH),
            *(_trained(beam_size, batch, many, FAST) for beam_size in (1, 4) for batch in (16, 64)),
            _trained(1, 16, few, ALL),
            _trained(4, 16, few, ALL),
            _random(1, 1, 3, FAST),
            _random(1, 16, 32, FAST),
            _random(1, 64, 64, FAST),
        ]
    )


def settings(peer: Peer, case: Case, cores: int) -> list[Setting]:
    """The settings that a peer may choose the faster of.

    A batch of one leaves nothing to compute side by side. PyTorch and Optimum have no workers of their own.
    """
    all_threads, one_thread = Setting(workers=1, threads=cores), Setting(workers=1, threads=1)
    side_by_side = Setting(workers=cores, threads=1)
    if case.batch_size == 1:
        return [one_thread] if cores == 1 else [all_threads, one_thread]
    if peer in FAST and cores > 1:
        return [all_threads, side_by_side]
    return [all_threads]


def _distinct(cases: list[Case]) -> list[Case]:
    """Of cases that differ in their peers alone, because there are so few sentences, the one with most of them."""
    best: dict[str, Case] = {}
    for case in cases:
        if case.name not in best or len(case.peers) > len(best[case.name].peers):
            best[case.name] = case
    return list(best.values())


def _trained(beam_size: int, batch_size: int, num_sentences: int, peers: tuple[Peer, ...]) -> Case:
    return Case(model=TRAINED, beam_size=beam_size, batch_size=batch_size, num_sentences=num_sentences, peers=peers)


def _random(beam_size: int, batch_size: int, num_sentences: int, peers: tuple[Peer, ...]) -> Case:
    return Case(model=RANDOM, beam_size=beam_size, batch_size=batch_size, num_sentences=num_sentences, peers=peers)
