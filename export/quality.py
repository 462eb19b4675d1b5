"""How good a bundle's translations are, beside those of the fp32 graphs."""

from __future__ import annotations

from collections.abc import Sequence

from export.validation import ValidationSet
from service.manifest import Quality, Score
from service.tokenizer import EOS_ID, Tokenizer
from training.evaluate import score


def score_sets(
    tokenizer: Tokenizer,
    sets: Sequence[ValidationSet],
    tokens: Sequence[Sequence[list[int]]],
    fp32_tokens: Sequence[Sequence[list[int]]],
    *,
    is_tokenized: bool,
) -> list[Quality]:
    """Scores the tokens of each sentence of each set, of this precision and of fp32; empty sets are left out."""
    return [
        Quality(
            dataset=each.name,
            num_sentences=len(each.sentences),
            score=_score(tokenizer, each, own, is_tokenized),
            fp32=_score(tokenizer, each, fp32, is_tokenized),
        )
        for each, own, fp32 in zip(sets, tokens, fp32_tokens, strict=True)
        if each.sentences
    ]


def _score(tokenizer: Tokenizer, each: ValidationSet, tokens: Sequence[list[int]], is_tokenized: bool) -> Score:
    hypotheses = tokenizer.decode_targets([token for token in ids if token != EOS_ID] for ids in tokens)
    references = [sentence.reference for sentence in each.sentences]
    scores = score(hypotheses, references, tokenizer.target_language, is_tokenized=is_tokenized)
    return Score(
        bleu=scores.bleu,
        chrf=scores.chrf,
        bleu_signature=scores.bleu_signature,
        chrf_signature=scores.chrf_signature,
    )


def lost_bleu(quality: Sequence[Quality], max_bleu_loss: float) -> list[str]:
    """Sets on which this precision loses more BLEU against fp32 than it may, one sentence each."""
    return [
        f"{each.dataset}: BLEU must be at most {max_bleu_loss:g} below fp32's {each.fp32.bleu:.2f}, "
        f"but is {each.score.bleu:.2f}."
        for each in quality
        if each.fp32.bleu - each.score.bleu > max_bleu_loss
    ]
