"""The toy's data: numbers read out digit by digit, English words to Chinese digits."""

from __future__ import annotations

import random
from pathlib import Path

_DIGITS = {
    "zero": "零",
    "one": "一",
    "two": "二",
    "three": "三",
    "four": "四",
    "five": "五",
    "six": "六",
    "seven": "七",
    "eight": "八",
    "nine": "九",
}
_SIZES = {"train": 4_000, "dev": 250, "test": 100}  # export compares at least 200 sentences of dev
_MAX_DIGITS = 6


def toy_pair(generator: random.Random) -> tuple[str, str]:
    """A source such as "four two seven" and its target "四二七"."""
    words = generator.choices(list(_DIGITS), k=generator.randint(1, _MAX_DIGITS))
    return " ".join(words), "".join(_DIGITS[word] for word in words)


def write_toy_data(directory: Path, seed: int = 1) -> list[Path]:
    """Writes `train.tsv`, `dev.tsv` and `test.tsv`; no source of two of them is the same. Returns their paths."""
    generator = random.Random(seed)
    directory.mkdir(parents=True, exist_ok=True)
    seen: set[str] = set()
    paths: list[Path] = []
    for name, size in _SIZES.items():
        lines: list[str] = []
        while len(lines) < size:
            source, target = toy_pair(generator)
            if source not in seen:
                seen.add(source)
                lines.append(f"{source}\t{target}\n")
        path = directory / f"{name}.tsv"
        path.write_text("".join(lines), encoding="utf-8")
        paths.append(path)
    return paths
