"""BLEU and chrF are sacreBLEU's, with the tokenizer the target language needs, and say so in their signatures."""

from __future__ import annotations

import math
from collections import Counter

import pytest

from training.evaluate import join_bpe, score


def bleu_by_hand(hypotheses: list[list[str]], references: list[list[str]]) -> float:
    """BLEU of Papineni et al. 2002 over given tokens; every n-gram order must match somewhere."""
    log_precisions = []
    for n in range(1, 5):
        matched = total = 0
        for hypothesis, reference in zip(hypotheses, references, strict=True):
            grams, wanted = (
                Counter(zip(*(text[i:] for i in range(n)), strict=False)) for text in (hypothesis, reference)
            )
            matched += sum((grams & wanted).values())
            total += sum(grams.values())
        log_precisions.append(math.log(matched / total))
    ratio = sum(map(len, references)) / sum(map(len, hypotheses))
    return 100 * min(1.0, math.exp(1 - ratio)) * math.exp(sum(log_precisions) / 4)


def test_chinese_is_scored_by_character() -> None:
    hypotheses, references = ["该函数返回空指针。", "打开文件"], ["该函数会返回空指针。", "打开这个文件夹"]
    scores = score(hypotheses, references, "zh")
    assert scores.bleu == pytest.approx(
        bleu_by_hand([list(h) for h in hypotheses], [list(r) for r in references]), abs=1e-3
    )
    assert "tok:zh" in scores.bleu_signature
    assert scores.brevity_penalty == pytest.approx(math.exp(1 - 17 / 13), abs=1e-3)
    assert scores.num_sentences == 2


def test_tokenized_text_is_scored_as_it_is_after_bpe_is_joined() -> None:
    hypotheses = ["zwei jun@@ ge män@@ ner sind im freien ."]
    references = ["zwei junge männer sind im freien in der nähe ."]
    scores = score(hypotheses, references, "de", is_tokenized=True)
    words = [[join_bpe(text).split() for text in side] for side in (hypotheses, references)]
    assert words[0] == [["zwei", "junge", "männer", "sind", "im", "freien", "."]]
    assert scores.bleu == pytest.approx(bleu_by_hand(*words), abs=1e-3)
    assert "tok:none" in scores.bleu_signature


@pytest.mark.parametrize(("language", "tokenizer"), [("de", "13a"), ("zh-Hans", "zh"), ("ja", "char")])
def test_the_tokenizer_follows_the_target_language(language: str, tokenizer: str) -> None:
    assert f"tok:{tokenizer}" in score(["a b c d e"], ["a b c d e"], language).bleu_signature


def test_a_perfect_translation_scores_100() -> None:
    scores = score(["起立。打开文件。"], ["起立。打开文件。"], "zh")
    assert (scores.bleu, scores.chrf) == (pytest.approx(100.0), pytest.approx(100.0))


@pytest.mark.parametrize(
    ("text", "joined"), [("vie@@ le män@@ ner", "viele männer"), ("a@@", "a"), ("a @ b", "a @ b"), ("", "")]
)
def test_join_bpe(text: str, joined: str) -> None:
    assert join_bpe(text) == joined


@pytest.mark.parametrize(("hypotheses", "references"), [([], []), (["a"], []), (["a"], ["a", "b"])])
def test_a_reference_for_each_hypothesis(hypotheses: list[str], references: list[str]) -> None:
    with pytest.raises(ValueError, match=f"{len(hypotheses)} hypotheses and {len(references)} references"):
        score(hypotheses, references, "zh")
