"""The real sentences a bundle is compared on, read from held-out sets."""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from pathlib import Path

from export.config import ExportError, VerifyConfig
from service.tokenizer import Tokenizer
from training.corpus import CorpusError, ReadReport, missing_files, read_pairs
from training.record import TrainingRecord

MAX_TARGET_FACTOR = 2
"""A translation ends after this many tokens for each source token, …"""
MAX_TARGET_EXTRA = 20
"""… plus this many."""


@dataclass(frozen=True, kw_only=True)
class Sentence:
    """One sentence to translate."""

    line: int
    """Its place in the set, counted from 1."""
    source_ids: tuple[int, ...]
    """Source tokens, end of sentence included."""
    reference: str
    """What a person made of it."""
    max_target_tokens: int
    """Most target tokens, end of sentence included."""


@dataclass(frozen=True, kw_only=True)
class ValidationSet:
    """One held-out set."""

    name: str
    """Its name."""
    sentences: tuple[Sentence, ...]
    """Its sentences, blank ones and those longer than the model's positions left out."""


def read_validation(
    config: VerifyConfig, record: TrainingRecord, tokenizer: Tokenizer, max_positions: int
) -> list[ValidationSet]:
    """The held-out sets of the configuration, or those of the training record.

    Raises:
        ExportError: if a file is missing or damaged, or there are fewer sentences than must be compared.
    """
    corpora = config.validation or record.config.data.validation
    root = config.data_root or Path("." if config.validation else record.config.data.root)
    problems = missing_files(corpora, root)
    if problems and not config.validation:
        problems.append("These sets are the ones of the training record: give `--data` or `--validation`.")
    if problems:
        raise ExportError("validation", problems)
    sets = []
    for corpus in corpora:
        report = ReadReport()
        try:
            pairs = list(itertools.islice(read_pairs(corpus, root, report), config.max_sentences))
        except CorpusError as error:
            raise ExportError("validation", [str(error)]) from error
        sentences = []
        for line, pair in enumerate(pairs, start=1):
            source_ids = tokenizer.encode_source(pair.source)
            if 1 < len(source_ids) <= max_positions:
                most = min(MAX_TARGET_FACTOR * len(source_ids) + MAX_TARGET_EXTRA, max_positions)
                sentences.append(
                    Sentence(line=line, source_ids=tuple(source_ids), reference=pair.target, max_target_tokens=most)
                )
        sets.append(ValidationSet(name=corpus.name, sentences=tuple(sentences)))
    total = sum(len(each.sentences) for each in sets)
    if total < config.min_parity_sentences:
        raise ExportError(
            "validation",
            [
                f"At least {config.min_parity_sentences} sentences must be compared, but the sets have {total}: "
                "give more with `--validation`, or ask for fewer with `--min-parity-sentences`."
            ],
        )
    return sets
