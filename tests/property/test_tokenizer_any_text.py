"""Whatever text comes: it encodes, it comes back as it was, and it never spells a special or reserved token."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from service.tokenizer import BOS_ID, EOS_ID, PAD_ID, UNK_ID, Tokenizer, normalize
from tests.synthetic.toy_language import make_tokenizer, sentence_pairs

ANY_TEXT = st.text(st.characters(codec=None, exclude_categories=()), max_size=40)
MIXED = st.lists(
    st.sampled_from(["<s>", "</s>", "<pad>", "<unk>", "<ph0>", "<tag9>", "<0x41>", "▁", "▁▁", " ", "\n", "\ufdd0"])
    | ANY_TEXT,
    max_size=6,
).map("".join)


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    return make_tokenizer(tmp_path_factory.mktemp("tokenizer") / "tokenizer")


@given(text=MIXED)
@example(text="▁")
@example(text=" ▁ ▁")
@example(text="\ufdd0▁")
@example(text="\x00")
@example(text="\ud800 lone")
@example(text="⁇ \u2585")
@example(text="שלום 👩‍👩‍👧 ۱۲۳")
def test_text_comes_back_and_spells_nothing_special(tokenizer: Tokenizer, text: str) -> None:
    ids = tokenizer.encode_source(text)
    assert ids[-1] == EOS_ID
    body = ids[:-1]
    reserved = {tokenizer.reserved_source_id(symbol) for symbol in tokenizer.manifest.reserved_symbols}
    assert not {PAD_ID, UNK_ID, BOS_ID, EOS_ID, *reserved} & set(body)
    assert tokenizer.decode_source(ids) == normalize(text)
    assert tokenizer.encode_target(text) == body  # a joint tokenizer: the same model on both sides
    assert len(tokenizer.source_pieces(ids)) == len(ids)


@given(text=MIXED)
def test_normalizing_keeps_all_but_white_space_and_what_is_no_text(text: str) -> None:
    normalized = normalize(text)
    assert normalize(normalized) == normalized
    replaced = "".join("\ufffd" if "\ud800" <= c <= "\udfff" or c == "\ufdd0" else c for c in text)
    assert "".join(normalized.split()) == "".join(replaced.split())
    normalized.encode("utf-8")


@given(ids=st.lists(st.integers(0, 379), max_size=30))
def test_any_ids_decode(tokenizer: Tokenizer, ids: list[int]) -> None:
    text = tokenizer.decode_target(ids)
    text.encode("utf-8")
    without_specials = [i for i in ids if i not in (PAD_ID, BOS_ID, EOS_ID)]
    assert "".join(tokenizer.decode_target([i]) for i in without_specials).count("\ufffd") >= text.count("\ufffd")


@pytest.mark.parametrize("token_id", [-1, 380])
def test_an_id_outside_the_vocabulary_is_refused(tokenizer: Tokenizer, token_id: int) -> None:
    with pytest.raises(ValueError, match=f"between 0 and 379, but is {token_id}"):
        tokenizer.decode_target([token_id])


def test_invalid_bytes_become_the_replacement_character(tokenizer: Tokenizer) -> None:
    ids = tokenizer.encode_target("é")
    assert tokenizer.target_pieces(ids) == ["<0xC3>", "<0xA9>"]
    assert tokenizer.decode_target(ids[:-1]) == "\ufffd"
    assert tokenizer.decode_target([*ids[:-1], tokenizer.encode_target("返")[-1]]) == "\ufffd返"


def test_reserved_symbols_are_spelled_out_and_specials_dropped(tokenizer: Tokenizer) -> None:
    placeholder = tokenizer.reserved_target_id("<ph3>")
    words = tokenizer.encode_target("返回")
    assert tokenizer.decode_target([BOS_ID, *words, placeholder, PAD_ID, EOS_ID]) == "返回<ph3>"
    assert placeholder not in tokenizer.encode_target("返回<ph3>")


def test_languages_without_spaces_pay_no_token_for_one(tokenizer: Tokenizer) -> None:
    for pair in sentence_pairs(50):
        assert tokenizer.target_pieces(tokenizer.encode_target(pair.target))[0] != "▁"


def test_threads_share_a_tokenizer(tokenizer: Tokenizer) -> None:
    sources = [pair.source + "▁é" for pair in sentence_pairs(200)]
    expected = [tokenizer.encode_source(source) for source in sources]
    with ThreadPoolExecutor(8) as pool:
        assert list(pool.map(tokenizer.encode_source, sources)) == expected
        assert list(pool.map(tokenizer.decode_source, expected)) == sources
