"""Generated sentence pairs and tokenizers trained on them: what data, tokenizer and evaluation tests share."""

from __future__ import annotations

import random
from pathlib import Path

from service.tokenizer import Tokenizer
from training.config import TokenizerConfig
from training.corpus import SentencePair
from training.train_tokenizer import train_tokenizer

_SUBJECTS = {"The function": "该函数", "A pointer": "指针", "This class": "此类", "The file": "文件"}
_VERBS = {"returns": "返回", "opens": "打开", "checks": "检查", "copies": "复制"}
_OBJECTS = {"an integer": "一个整数", "the string": "字符串", "two values": "两个值", "the list": "列表"}


def sentence_pairs(count: int, seed: int = 0) -> list[SentencePair]:
    """`count` English-Chinese pairs of one to three clauses; repetitions occur."""
    generator = random.Random(seed)
    pairs: list[SentencePair] = []
    for _ in range(count):
        clauses = [
            [generator.choice(list(part)) for part in (_SUBJECTS, _VERBS, _OBJECTS)]
            for _ in range(generator.randint(1, 3))
        ]
        source = ", ".join(" ".join(clause) for clause in clauses) + "."
        target = "，".join(_SUBJECTS[s] + _VERBS[v] + _OBJECTS[o] for s, v, o in clauses) + "。"
        pairs.append(SentencePair(source, target))
    return pairs


def make_tokenizer(directory: Path, config: TokenizerConfig | None = None) -> Tokenizer:
    """A tokenizer trained on `sentence_pairs`, written to `directory`."""
    pairs = sentence_pairs(200)
    return train_tokenizer(
        config or TokenizerConfig(vocab_size=380, character_coverage=1.0),
        directory,
        source_language="en",
        target_language="zh",
        source_sentences=lambda: [pair.source for pair in pairs],
        target_sentences=lambda: [pair.target for pair in pairs],
        num_threads=1,
    )
