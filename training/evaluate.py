"""How good translations are: BLEU and chrF by sacreBLEU, and the evaluation of a checkpoint on its test sets."""

from __future__ import annotations

import dataclasses
import json
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sacrebleu.metrics import BLEU, CHRF

from service.tokenizer import Tokenizer
from training.config import CorpusConfig, EvaluateConfig
from training.corpus import CorpusError, ReadReport, missing_files, read_pairs
from training.decode import DecodeOptions, translate
from training.model import Transformer

# sacreBLEU's tokenizer by target language; 13a elsewhere. Where its own would need a download, characters.
_BLEU_TOKENIZERS = {"zh": "zh", "ja": "char", "ko": "char", "th": "char"}
_BPE_MARK = "@@ "


@dataclass(frozen=True, kw_only=True)
class Scores:
    """Quality of the translations of one set."""

    bleu: float
    """Corpus BLEU, 0 to 100."""
    chrf: float
    """Corpus chrF2, 0 to 100."""
    bleu_signature: str
    """sacreBLEU's signature of the BLEU figure: with it the figure can be compared with others."""
    chrf_signature: str
    """The same for chrF."""
    brevity_penalty: float
    """BLEU's brevity penalty; below 1 when the translations are shorter than the references."""
    num_sentences: int
    """Sentences scored."""

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return dataclasses.asdict(self)


def score(
    hypotheses: Sequence[str], references: Sequence[str], target_language: str, *, is_tokenized: bool = False
) -> Scores:
    """BLEU and chrF of `hypotheses` against one reference each.

    Args:
        is_tokenized: the text is tokens already: BPE marks "@@ " are joined and the tokens compared as they are.
    Raises:
        ValueError: if there are not as many hypotheses as references, or none.
    """
    if not hypotheses or len(hypotheses) != len(references):
        raise ValueError(
            f"There must be a reference for each of at least one hypothesis, "
            f"but there are {len(hypotheses)} hypotheses and {len(references)} references."
        )
    if is_tokenized:
        hypotheses, references = [join_bpe(text) for text in hypotheses], [join_bpe(text) for text in references]
    tokenizer = "none" if is_tokenized else _BLEU_TOKENIZERS.get(target_language.partition("-")[0].lower(), "13a")
    bleu, chrf = BLEU(tokenize=tokenizer), CHRF()
    bleu_score = bleu.corpus_score(list(hypotheses), [list(references)])
    chrf_score = chrf.corpus_score(list(hypotheses), [list(references)])
    return Scores(
        bleu=round(bleu_score.score, 4),
        chrf=round(chrf_score.score, 4),
        bleu_signature=str(bleu.get_signature()),
        chrf_signature=str(chrf.get_signature()),
        brevity_penalty=round(bleu_score.bp, 4),
        num_sentences=len(hypotheses),
    )


def join_bpe(text: str) -> str:
    """Subword units of `subword-nmt` joined to words: "vie@@ le män@@ ner" → "viele männer"."""
    return (text + " ").replace(_BPE_MARK, "").rstrip()


def decode_options(config: EvaluateConfig, beam_size: int | None = None) -> DecodeOptions:
    """The decoding that the configuration asks for; `beam_size` replaces its own."""
    return DecodeOptions(
        beam_size=config.beam_size if beam_size is None else beam_size,
        length_penalty=config.length_penalty,
        max_length_factor=config.max_length_factor,
        max_length_extra=config.max_length_extra,
        batch_tokens=config.batch_tokens,
    )


@dataclass(frozen=True, kw_only=True)
class SetResult:
    """One test set, translated and scored."""

    name: str
    """Name of the set in the configuration."""
    scores: Scores
    """Its quality."""
    seconds: float
    """Seconds the translation took."""


def evaluate_sets(
    model: Transformer,
    tokenizer: Tokenizer,
    sets: Sequence[CorpusConfig],
    root: Path,
    config: EvaluateConfig,
    *,
    beam_size: int | None = None,
) -> list[SetResult]:
    """Translates and scores every set, unfiltered.

    Raises:
        CorpusError: if a file of a set is missing or has a line that is no pair.
        ValueError: if a source is longer than the model's positions.
    """
    missing = missing_files(tuple(sets), root)
    if missing:
        raise CorpusError("\n".join(missing))
    options = decode_options(config, beam_size)
    results: list[SetResult] = []
    for corpus in sets:
        report = ReadReport()
        pairs = list(read_pairs(corpus, root, report))
        if report.num_malformed:
            raise CorpusError("\n".join([f"`{corpus.name}` must be scored whole, but has", *report.malformed_examples]))
        started = time.monotonic()
        hypotheses = translate(model, tokenizer, [pair.source for pair in pairs], options)
        seconds = time.monotonic() - started
        references = [pair.target for pair in pairs]
        scores = score(hypotheses, references, tokenizer.target_language, is_tokenized=config.tokenized)
        results.append(SetResult(name=corpus.name, scores=scores, seconds=round(seconds, 2)))
    return results


def results_json(checkpoint: Path, options: DecodeOptions, results: Sequence[SetResult]) -> str:
    """The evaluation as the JSON that `python -m training evaluate` prints."""
    value = {
        "checkpoint": checkpoint.name,
        "decoding": dataclasses.asdict(options),
        "sets": {result.name: {**result.scores.to_dict(), "seconds": result.seconds} for result in results},
    }
    return json.dumps(value, indent=2, ensure_ascii=False) + "\n"
