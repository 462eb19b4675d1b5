"""A tokenizer directory loads as it was written, and every damage to it is refused in words."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from service.tokenizer import (
    BOS_ID,
    EOS_ID,
    MANIFEST_NAME,
    PAD_ID,
    SOURCE_MODEL_NAME,
    SPECIAL_PIECES,
    TARGET_MODEL_NAME,
    UNK_ID,
    Tokenizer,
    TokenizerError,
)
from tests.synthetic.toy_language import make_tokenizer, sentence_pairs
from training.config import TokenizerConfig


@pytest.fixture(scope="module")
def joint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("joint") / "tokenizer"
    make_tokenizer(directory)
    return directory


@pytest.fixture
def copy(joint: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(joint, tmp_path / "copy"))


def edit_manifest(directory: Path, **changes: object) -> None:
    path = directory / MANIFEST_NAME
    path.write_text(json.dumps({**json.loads(path.read_text(encoding="utf-8")), **changes}), encoding="utf-8")


def test_special_pieces_have_the_ids_that_training_and_serving_build_in(joint: Path) -> None:
    tokenizer = Tokenizer.load(joint)
    assert tokenizer.target_pieces([PAD_ID, UNK_ID, BOS_ID, EOS_ID]) == list(SPECIAL_PIECES)
    assert tokenizer.source_vocab_size == tokenizer.target_vocab_size == 380
    assert (tokenizer.source_language, tokenizer.target_language, tokenizer.is_joint) == ("en", "zh", True)


def test_loading_twice_gives_the_same_ids_and_digest(joint: Path, copy: Path) -> None:
    first, second = Tokenizer.load(joint), Tokenizer.load(copy)
    sources = [pair.source for pair in sentence_pairs(20)]
    assert first.encode_sources(sources) == second.encode_sources(sources)
    assert first.digest == second.digest


def test_separate_sides_have_a_vocabulary_each(tmp_path: Path) -> None:
    config = TokenizerConfig(vocab_size=310, joint=False, character_coverage=1.0)
    tokenizer = make_tokenizer(tmp_path / "tokenizer", config)
    assert (tmp_path / "tokenizer" / TARGET_MODEL_NAME).is_file()
    assert not tokenizer.is_joint
    for pair in sentence_pairs(20):
        assert tokenizer.decode_source(tokenizer.encode_source(pair.source)) == pair.source
        assert tokenizer.decode_target(tokenizer.encode_target(pair.target)) == pair.target
    chinese = tokenizer.encode_target("返回")
    assert any(piece.startswith("<0x") for piece in tokenizer.source_pieces(tokenizer.encode_source("返回")))
    assert not any(piece.startswith("<0x") for piece in tokenizer.target_pieces(chinese))


def test_whitespace_kind_makes_each_word_a_token(tmp_path: Path) -> None:
    config = TokenizerConfig(kind="whitespace", vocab_size=1000, byte_fallback=False, num_placeholders=0, num_tags=0)
    tokenizer = make_tokenizer(tmp_path / "tokenizer", config)
    source = sentence_pairs(1)[0].source
    ids = tokenizer.encode_source(source)
    assert len(ids) == len(source.split()) + 1
    assert UNK_ID not in ids
    assert tokenizer.decode_source(ids) == source
    assert tokenizer.encode_source("unheard-of") == [UNK_ID, EOS_ID]


@pytest.mark.parametrize("name", [MANIFEST_NAME, SOURCE_MODEL_NAME])
def test_a_missing_file_is_named(copy: Path, name: str) -> None:
    (copy / name).unlink()
    with pytest.raises(TokenizerError, match=name):
        Tokenizer.load(copy)


@pytest.mark.parametrize("position", [0, 1000, -1])
def test_any_changed_byte_of_the_model_is_refused(copy: Path, position: int) -> None:
    path = copy / SOURCE_MODEL_NAME
    data = bytearray(path.read_bytes())
    data[position] ^= 1
    path.write_bytes(data)
    with pytest.raises(TokenizerError, match=r"SHA-256 of .*source\.model must be"):
        Tokenizer.load(copy)


def test_a_newer_format_is_refused(copy: Path) -> None:
    edit_manifest(copy, format_version=2)
    with pytest.raises(TokenizerError, match=r"`format_version` in .* must be 1, but is 2"):
        Tokenizer.load(copy)


def test_all_wrong_fields_are_reported_together(copy: Path) -> None:
    edit_manifest(copy, kind=3, is_joint="yes")
    with pytest.raises(TokenizerError) as caught:
        Tokenizer.load(copy)
    assert "`kind`" in str(caught.value)
    assert "`is_joint`" in str(caught.value)


def test_all_missing_models_are_reported_together(copy: Path) -> None:
    edit_manifest(copy, is_joint=False)
    (copy / SOURCE_MODEL_NAME).unlink()
    with pytest.raises(TokenizerError) as caught:
        Tokenizer.load(copy)
    assert SOURCE_MODEL_NAME in str(caught.value)
    assert TARGET_MODEL_NAME in str(caught.value)


@pytest.mark.parametrize("text", ["", "{", "[]", "\x00"])
def test_a_manifest_that_is_no_json_object_is_refused(copy: Path, text: str) -> None:
    (copy / MANIFEST_NAME).write_text(text, encoding="utf-8")
    with pytest.raises(TokenizerError, match=MANIFEST_NAME):
        Tokenizer.load(copy)


def test_a_model_without_the_reserved_symbols_is_refused(copy: Path) -> None:
    edit_manifest(copy, reserved_symbols=["<ph0>", "<unheard>"])
    with pytest.raises(TokenizerError, match=r"lacks \['<unheard>'\]"):
        Tokenizer.load(copy)


def test_a_size_that_cannot_be_reached_is_said_so(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"`tokenizer\.vocab_size` of 50000 cannot be trained"):
        make_tokenizer(tmp_path / "tokenizer", TokenizerConfig(vocab_size=50_000))
