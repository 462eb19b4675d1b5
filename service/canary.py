"""Does a new model translate about as the old one does?

A model may be what its maker wrote, decode the same bytes in any company, and still be the wrong one. Before it is
served, both translate a few texts by the engines that serve, and what comes out is compared.
"""

from __future__ import annotations

import asyncio
import logging
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from service.config import LimitsConfig
from service.engine_loop import DrainingError
from service.pb.translation.v1 import translation_pb2 as pb
from service.scheduler_limits import QueueFullError
from service.served_model import ServedModel
from service.translator import Translator

logger = logging.getLogger(__name__)

MAX_SECONDS = 60.0
"""How long one model may take for all texts."""
_CUT = (pb.FINISH_REASON_LENGTH, pb.FINISH_REASON_REPETITION)


@dataclass(frozen=True, kw_only=True)
class CanaryReport:
    """How the translations of two models compare."""

    failure: str = ""
    """Which model did not translate and why, without any text; "": both did."""
    num_texts: int = 0
    """Texts that the new model translated."""
    num_compared: int = 0
    """Those that the old model translated, too."""
    num_equal: int = 0
    """Compared translations that are equal."""
    num_emptied: int = 0
    """Compared translations that are blank, and were not."""
    mean_similarity: float = 1.0
    """Of the compared ones; see `similarity`."""
    num_cut_before: int = 0
    """Segments of the old model that were cut at their limit or looped."""
    num_cut_after: int = 0
    """The same of the new model."""

    def problem(self, min_similarity: float) -> str | None:
        """Why the new model must not be served, or None."""
        if self.failure:
            return f"Both models must translate the canary texts, but {self.failure}."
        if self.num_emptied:
            return (
                f"No translation may become empty, but {self.num_emptied} of {self.num_compared} canary texts have one."
            )
        if not self.mean_similarity >= min_similarity:
            return (
                f"Translations of {self.num_compared} canary texts must have a mean similarity of at least "
                f"{min_similarity:g} with the old model's, but have {self.mean_similarity:.3f}."
            )
        return None


def similarity(one: str, other: str) -> float:
    """How much of their characters two texts share, 0 to 1: F1 of pairs of neighbours, ends of the text included, white
    space left out."""
    pairs = [Counter(zip(f"\n{text}", f"{text}\n", strict=True)) for text in map(_squeezed, (one, other))]
    return 2 * (pairs[0] & pairs[1]).total() / (pairs[0].total() + pairs[1].total())


def _squeezed(text: str) -> str:
    return "".join(text.split())


async def run_canary(
    old: ServedModel | None,
    new: ServedModel,
    texts: Sequence[str],
    *,
    limits: LimitsConfig,
    clock: Callable[[], float],
    max_seconds: float = MAX_SECONDS,
) -> CanaryReport:
    """Lets both models translate `texts` and compares. Their loops run, and deliver to this event loop.

    An old model that is broken does not keep a new one from taking its place: nothing is compared then.

    Raises:
        InvalidRequestError: when the texts are no request that could be answered.
    """
    if not texts:
        return CanaryReport()
    outcome = await _translate(new, texts, limits, clock, max_seconds)
    if outcome.failure:
        return CanaryReport(failure=f"the new model {outcome.failure}")
    after = outcome.translations
    report = CanaryReport(num_texts=len(texts), num_cut_after=_num_cut(after))
    if old is None:
        return report
    outcome = await _translate(old, texts, limits, clock, max_seconds)
    if outcome.is_broken:
        facts = {"model": old.name, "digest": old.digest}
        logger.warning("Canary texts are not compared: the old model %s.", outcome.failure, extra=facts)
        return report
    if outcome.failure:
        return CanaryReport(failure=f"the old model {outcome.failure}")
    before = outcome.translations
    pairs = [(a.translated_text, b.translated_text) for a, b in zip(before, after, strict=True)]
    return replace(
        report,
        num_compared=len(pairs),
        num_equal=sum(one == other for one, other in pairs),
        num_emptied=sum(bool(one.strip()) and not other.strip() for one, other in pairs),
        mean_similarity=sum(similarity(one, other) for one, other in pairs) / len(pairs),
        num_cut_before=_num_cut(before),
    )


@dataclass(frozen=True, kw_only=True)
class _Outcome:
    """What a model made of texts."""

    translations: Sequence[pb.Translation] = ()
    failure: str = ""
    """Why there are none; ends a sentence."""
    is_broken: bool = False
    """Whether it failed, and was not only busy."""


async def _translate(
    model: ServedModel,
    texts: Sequence[str],
    limits: LimitsConfig,
    clock: Callable[[], float],
    max_seconds: float,
) -> _Outcome:
    """What a model makes of texts, by the way of a bulk call. A failure is returned and not raised: a traceback would
    keep the model alive.

    Raises:
        InvalidRequestError: when they are no request that could be answered.
    """
    translator = Translator([model], limits, clock=clock)
    checked = translator.check(pb.TranslateTextRequest(contents=texts, priority=pb.PRIORITY_BULK), texts)
    ended = asyncio.Event()
    job = translator.prepare(texts, checked, deadline=None, on_done=lambda _: ended.set())
    try:
        if job.sequences:
            model.loop.submit(job.sequences)
            async with asyncio.timeout(max_seconds):
                await ended.wait()
    except TimeoutError:
        return _Outcome(failure=f"did not within {max_seconds:g} s")
    except (QueueFullError, DrainingError):
        return _Outcome(failure="could not begin: its queue is full")
    finally:
        if job.num_unfinished:
            model.loop.cancel(job.sequences)
    if job.error is not None:
        return _Outcome(failure=f"failed with {type(job.error).__name__}", is_broken=True)
    return _Outcome(translations=job.result())


def _num_cut(translations: Sequence[pb.Translation]) -> int:
    return sum(segment.finish_reason in _CUT for each in translations for segment in each.segments)
