"""Everything a bundle must show before it may be called one; all failures are reported together."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from export.config import ExportError, VerifyConfig
from export.decoding import decode_by_engine, decode_by_torch, open_runner
from export.parity import ValueComparison, compare_tokens, compare_values
from export.quality import lost_bleu, score_sets
from export.same_bytes import check_same_bytes
from export.validation import ValidationSet
from service.bundle import Bundle
from service.engine import Engine
from service.graphs import ModelRunnerError
from service.manifest import Parity, Quality, SameBytes
from training.model import Transformer

MAX_ROWS = 64
MAX_DIFFERING_SHOWN = 10


@dataclass(frozen=True, kw_only=True)
class Verification:
    """What was found; the parts are None where the graphs could not be run."""

    parity: Parity | None
    """PyTorch beside the graphs."""
    quality: tuple[Quality, ...]
    """Scores of each held-out set."""
    same_bytes: SameBytes | None
    """Result of the same-bytes test."""
    problems: tuple[str, ...]
    """Everything that forbids the bundle, one sentence each."""


def verify(
    model: Transformer,
    bundle: Bundle,
    fp32_bundle: Bundle,
    sets: Sequence[ValidationSet],
    config: VerifyConfig,
    *,
    is_tokenized: bool = False,
) -> Verification:
    """Compares a bundle with its checkpoint's model, and with the fp32 graphs of the same checkpoint.

    For fp32 `bundle` and `fp32_bundle` are the same. `is_tokenized` scores white-space tokens (`training.evaluate`).
    """
    problems: list[str] = []
    sentences = [sentence for each in sets for sentence in each.sentences]
    target_tokens = bundle.architecture.target_tokens
    is_fp32 = bundle is fp32_bundle

    values = _values(model, bundle, config, problems)
    expected = [decode_by_torch(model, each.sentences, target_tokens) for each in sets]
    fp32_tokens = _tokens(fp32_bundle, sets, config, problems)
    tokens = fp32_tokens if is_fp32 else _tokens(bundle, sets, config, problems)
    parity: Parity | None = None
    quality: list[Quality] = []
    if fp32_tokens is not None:
        fp32_comparison = compare_tokens(model, sets, expected, fp32_tokens)
        differing = fp32_comparison.differing
        problems += differing[:MAX_DIFFERING_SHOWN]
        if len(differing) > MAX_DIFFERING_SHOWN:
            problems.append(f"The fp32 graphs differ in {len(differing) - MAX_DIFFERING_SHOWN} more sentences.")
        if tokens is not None:
            quality = score_sets(bundle.tokenizer, sets, tokens, fp32_tokens, is_tokenized=is_tokenized)
            problems += lost_bleu(quality, config.max_bleu_loss)
            comparison = fp32_comparison if is_fp32 else compare_tokens(model, sets, expected, tokens)
            if values is not None:
                parity = Parity(
                    encoder=values.encoder,
                    decoder=values.decoder,
                    tokens=comparison.parity,
                    fp32_tokens=fp32_comparison.parity,
                    min_sentences=config.min_parity_sentences,
                )
    same_bytes: SameBytes | None = None
    try:
        same_bytes = check_same_bytes(bundle, sentences, config.num_threads)
    except (ExportError, ModelRunnerError) as error:
        _add_once(problems, str(error))
    if same_bytes is not None and same_bytes.num_different:
        problems.append(
            f"Tokens and scores must not depend on company, but do in {same_bytes.num_different} of "
            f"{same_bytes.num_sentences} sentences."
        )
    return Verification(parity=parity, quality=tuple(quality), same_bytes=same_bytes, problems=tuple(problems))


def _values(model: Transformer, bundle: Bundle, config: VerifyConfig, problems: list[str]) -> ValueComparison | None:
    """Numbers at odd shapes; None with a problem where the graphs do not run."""
    try:
        values = compare_values(model, bundle, config.num_threads)
    except (ExportError, ModelRunnerError) as error:
        _add_once(problems, str(error))
        return None
    problems += values.problems()
    return values


def _tokens(
    bundle: Bundle, sets: Sequence[ValidationSet], config: VerifyConfig, problems: list[str]
) -> list[list[list[int]]] | None:
    """Greedy tokens of each sentence of each set; None with a problem where the graphs do not run."""
    sentences = [sentence for each in sets for sentence in each.sentences]
    try:
        engine = Engine.over(open_runner(bundle, sentences, max_rows=MAX_ROWS, num_threads=config.num_threads))
        return [[list(one.target_ids) for one in decode_by_engine(engine, each.sentences)] for each in sets]
    except (ExportError, ModelRunnerError) as error:
        _add_once(problems, str(error))
        return None


def _add_once(problems: list[str], problem: str) -> None:
    """The same broken graph stops several checks with the same words."""
    if problem not in problems:
        problems.append(problem)
