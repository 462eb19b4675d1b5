"""Which sentence pairs are good enough to train on, and an account of those that are not."""

from __future__ import annotations

import hashlib
import re
from collections import Counter
from enum import Enum

from training.config import FilterConfig
from training.corpus import SentencePair

# Letters of each script, as ranges for a character class.
_SCRIPTS = {
    "Latin": "A-Za-zªºÀ-ÖØ-öø-ɏḀ-ỿ",
    "Han": "\u3005\u3007\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0003ffff",
    "Kana": "\u3041-\u30ff\u31f0-\u31ff",
    "Hangul": "\u1100-\u11ff\uac00-\ud7ff",
    "Cyrillic": "\u0400-\u052f",
    "Greek": "\u0370-\u03ff\u1f00-\u1fff",
    "Arabic": "\u0620-\u06ff\u0750-\u077f",
    "Hebrew": "\u05d0-\u05f2",
    "Devanagari": "\u0900-\u097f",
    "Thai": "\u0e00-\u0e7f",
}
_LANGUAGES = {  # scripts to the languages written in them
    (
        "Latin",
    ): "af ca cs cy da de en es et eu fi fr ga gl hr hu id is it lt lv ms mt nl no pl pt ro sk sl sq sv sw tr vi",
    ("Han",): "zh",
    ("Han", "Kana"): "ja",
    ("Hangul", "Han"): "ko",
    ("Cyrillic",): "be bg kk mk ru uk",
    ("Greek",): "el",
    ("Arabic",): "ar fa ur",
    ("Hebrew",): "he",
    ("Devanagari",): "hi mr ne",
    ("Thai",): "th",
}
_SCRIPTS_OF = {language: scripts for scripts, languages in _LANGUAGES.items() for language in languages.split()}
_LETTER = re.compile(r"[^\W\d_]")


class DropReason(Enum):
    """Why a pair was dropped. The rules are asked in this order; the first that objects is counted."""

    EMPTY = "one side is empty"
    TOO_SHORT = "fewer characters than `min_characters`"
    TOO_LONG = "more characters than `max_characters`"
    CHARACTER_RATIO = "lengths in characters differ by more than `max_character_ratio`"
    COPIED_SOURCE = "the target equals the source"
    SCRIPT = "too few letters are of the language's script (`min_script_share`)"
    DUPLICATE = "seen before"
    TOO_MANY_TOKENS = "more tokens than `max_tokens`"
    TOKEN_RATIO = "lengths in tokens differ by more than `max_token_ratio`"


def script_pattern(language: str) -> re.Pattern[str]:
    """A pattern that matches one letter of the language's script.

    Raises:
        ValueError: if the script of the language is not known here.
    """
    scripts = _SCRIPTS_OF.get(language.partition("-")[0].lower())
    if scripts is None:
        known = ", ".join(sorted(_SCRIPTS_OF))
        raise ValueError(f"`min_script_share` needs a language whose script is known ({known}), but got {language!r}.")
    return re.compile("[" + "".join(_SCRIPTS[script] for script in scripts) + "]")


def script_share(text: str, pattern: re.Pattern[str]) -> float:
    """Share of the letters of `text` that `pattern` matches; 1.0 when the text has no letters."""
    num_letters = len(_LETTER.findall(text))
    return len(pattern.findall(text)) / num_letters if num_letters else 1.0


class PairFilter:
    """The rules of one run. Remembers a digest of every kept pair (some 100 bytes of memory) to know duplicates."""

    def __init__(self, config: FilterConfig, source_language: str, target_language: str) -> None:
        self._config = config
        self._seen: set[bytes] = set()
        if config.min_script_share > 0:
            self._source_script = script_pattern(source_language)
            self._target_script = script_pattern(target_language)

    def check_text(self, pair: SentencePair) -> DropReason | None:
        """The reason to drop a pair by its text, or None; a pair that passes counts as seen from now on."""
        return self._check_lengths(pair) or self._check_languages(pair) or self._check_seen(pair)

    def _check_lengths(self, pair: SentencePair) -> DropReason | None:
        config = self._config
        shorter, longer = sorted((len(pair.source), len(pair.target)))
        if shorter == 0:
            return DropReason.EMPTY
        if shorter < config.min_characters:
            return DropReason.TOO_SHORT
        if longer > config.max_characters:
            return DropReason.TOO_LONG
        if config.max_character_ratio and longer > config.max_character_ratio * shorter:
            return DropReason.CHARACTER_RATIO
        return None

    def _check_languages(self, pair: SentencePair) -> DropReason | None:
        if self._config.drop_copied_source and pair.source == pair.target:
            return DropReason.COPIED_SOURCE
        least = self._config.min_script_share
        if least > 0 and (
            script_share(pair.source, self._source_script) < least
            or script_share(pair.target, self._target_script) < least
        ):
            return DropReason.SCRIPT
        return None

    def _check_seen(self, pair: SentencePair) -> DropReason | None:
        if not self._config.drop_duplicates:
            return None
        digest = hashlib.blake2b(f"{pair.source}\n{pair.target}".encode(), digest_size=8).digest()
        if digest in self._seen:
            return DropReason.DUPLICATE
        self._seen.add(digest)
        return None

    def check_tokens(self, num_source_tokens: int, num_target_tokens: int) -> DropReason | None:
        """The reason to drop a pair by its lengths in tokens (eos not counted), or None."""
        config = self._config
        shorter, longer = sorted((num_source_tokens, num_target_tokens))
        if longer > config.max_tokens:
            return DropReason.TOO_MANY_TOKENS
        if config.max_token_ratio and longer > config.max_token_ratio * max(shorter, 1):
            return DropReason.TOKEN_RATIO
        return None


def count_by_name(dropped: Counter[DropReason]) -> dict[str, int]:
    """Counts as they go into reports: reason in lower case to number, in the order the rules are asked."""
    return {reason.name.lower(): dropped[reason] for reason in DropReason if dropped[reason]}
