"""Whether a peer gave the translations it must give for its speed to count."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from benchmarks.offline_cases import Case, Peer

NUM_COMPARED = 200
"""Sentences whose tokens are compared with PyTorch's."""
MIN_SAME = 0.99
"""Share of them that must be the same for an fp32 peer; one may differ in any case."""
MANY_SENTENCES, MAX_BLEU_GAP = 1000, 0.3
"""From so many sentences on, BLEU may be so far from fp32's."""
SOME_SENTENCES, MAX_BLEU_GAP_OF_SOME = 150, 1.5
"""From so many on, so far; of fewer BLEU says nothing."""


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """What a peer's translations of one case are worth."""

    same: float | None
    """Share of the compared sentences with PyTorch's tokens; None where none was compared."""
    bleu: float | None
    """None where there are no references."""
    problems: tuple[str, ...]
    """Why its speed must not count; empty when it does."""


def check(
    case: Case,
    peer: Peer,
    targets: Sequence[Sequence[int]],
    *,
    plain: Sequence[Sequence[int]],
    bleu: float | None,
    fp32_bleu: float | None,
) -> Outcome:
    """Judges the translations of a case.

    Args:
        targets: as the peer gave them, [sentences].
        plain: PyTorch's of the first sentences.
        bleu: of `targets`.
        fp32_bleu: of an fp32 peer's translations of the same sentences.
    """
    problems = []
    if len(targets) != case.num_sentences:
        problems.append(f"There must be {case.num_sentences} translations, but there are {len(targets)}.")
    if case.forced_tokens is not None:
        wrong = sum(len(target) != case.forced_tokens for target in targets)
        if wrong:
            problems.append(f"Every target must have {case.forced_tokens} tokens, but {wrong} have not.")
    pairs = list(zip(targets, plain, strict=False))[:NUM_COMPARED]
    num_same = sum(list(one) == list(other) for one, other in pairs)
    if peer.is_fp32 and case.forced_tokens is None:
        least = min(len(pairs) - 1, MIN_SAME * len(pairs))
        if num_same < least:
            problems.append(
                f"Of {len(pairs)} sentences at least {MIN_SAME:.0%} must have PyTorch's tokens, but {num_same} have."
            )
    if bleu is not None and fp32_bleu is not None and len(targets) >= SOME_SENTENCES:
        most = MAX_BLEU_GAP if len(targets) >= MANY_SENTENCES else MAX_BLEU_GAP_OF_SOME
        if abs(bleu - fp32_bleu) > most:
            problems.append(f"BLEU must be within {most} of fp32's {fp32_bleu:.2f}, but is {bleu:.2f}.")
    return Outcome(same=num_same / len(pairs) if pairs else None, bleu=bleu, problems=tuple(problems))
