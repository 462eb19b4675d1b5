"""The ways to spell a text with tokens."""

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from service.spellings import MAX_SPELLINGS, TargetVocabulary
from service.tokenizer import Tokenizer, normalize
from tests.synthetic.toy_language import make_tokenizer


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    return make_tokenizer(Path(tmp_path_factory.mktemp("tokenizer")) / "tokenizer")


@pytest.fixture(scope="module")
def vocabulary(tokenizer: Tokenizer) -> TargetVocabulary:
    return TargetVocabulary(tokenizer)


class Toy:
    """Just enough of a tokenizer, with these pieces."""

    def __init__(self, *pieces: str, own: tuple[int, ...] = ()) -> None:
        self._pieces = ["<pad>", "<unk>", "<s>", "</s>", *pieces]
        self._own = own
        self.target_vocab_size = len(self._pieces)
        self.manifest = type("Manifest", (), {"reserved_symbols": ()})

    def target_pieces(self, ids: list[int]) -> list[str]:
        return [self._pieces[i] for i in ids]

    def encode_target(self, text: str) -> list[int]:  # noqa: ARG002
        return list(self._own)


def ways(text: str, *pieces: str, own: tuple[int, ...] = ()) -> list[str]:
    toy = Toy(*pieces, own=own)
    found = TargetVocabulary(toy).spellings(text)  # type: ignore[arg-type]
    return [" ".join(toy.target_pieces(list(way))) for way in found]


@pytest.mark.parametrize(
    ("text", "pieces", "expected"),
    [
        ("cat", ["▁cat", "cat"], ["cat", "▁cat"]),
        ("cat", ["▁cat", "▁c", "at", "c"], ["▁cat", "c at", "▁c at"]),
        ("cat", ["▁", "cat"], ["cat"]),  # "▁ cat" holds it
        ("指针", ["指针", "指", "针", "▁"], ["指针", "指 针"]),
        ("a b", ["▁a", "▁b", "a"], ["a ▁b", "▁a ▁b"]),
        ("x", ["y"], []),
        ("é", ["<0xC3>", "<0xA9>", "▁"], ["<0xC3> <0xA9>"]),
        ("</s>", ["y"], []),  # the text is no end of sentence
        ("", ["y"], []),
        ("  ", ["y", "▁"], []),
        ("函数", ["函数", "该函数", "函数。", "函", "数", "函x"], ["函数", "该函数", "函数。", "函 数"]),
        ("cat", ["▁cat", "▁category", "cat.", "bobcat", "▁the▁cat", "cat2"], ["▁cat", "cat.", "▁the▁cat"]),
        ("▁", ["▁", "▁a", "<0xE2>", "<0x96>", "<0x81>"], ["<0xE2> <0x96> <0x81>"]),  # the character, not a space
        ("a.b", ["a.b", "(a.b)", "xa.b", "▁a.b!"], ["a.b", "(a.b)", "▁a.b!"]),
    ],
)
def test_ways(text: str, pieces: list[str], expected: list[str]) -> None:
    assert ways(text, *pieces) == expected


def test_the_tokenizers_own_way_is_among_them_however_many_there_are() -> None:
    letters = [*"abcdefghij", "ab", "cd", "ef", "gh", "ij", "abc", "def", "abcd", "efgh"]
    own = tuple(range(4, 14))  # letter by letter: the longest of all
    found = ways("abcdefghij", *letters, own=own)
    assert " ".join("abcdefghij") in found
    assert len(found) == MAX_SPELLINGS
    assert "abcd efgh ij" in found


@given(text=st.text(max_size=12))
def test_each_way_spells_the_text(vocabulary: TargetVocabulary, tokenizer: Tokenizer, text: str) -> None:
    found = vocabulary.spellings(text)
    assert bool(found) is bool(normalize(text))
    assert sum(len(way) > 1 for way in found) <= 2 * MAX_SPELLINGS
    for way in found:
        assert normalize(text) in tokenizer.decode_target(way)
        assert len(way) == 1 or tokenizer.decode_target(way) == normalize(text)


@given(text=st.sampled_from(["returns", "an integer", "整数", "一个整数，指针", "▁", "🙂", "\ue000", "{x}"]))
def test_what_the_tokenizer_writes_holds_a_way(vocabulary: TargetVocabulary, tokenizer: Tokenizer, text: str) -> None:
    written = tuple(tokenizer.encode_target(text))
    assert any(
        way == written[i : i + len(way)]
        for way in vocabulary.spellings(text)
        for i in range(len(written) - len(way) + 1)
    )
