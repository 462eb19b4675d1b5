"""Training the tokenizer: one SentencePiece model for both sides, or one each, from sampled sentences."""

from __future__ import annotations

import hashlib
import io
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import sentencepiece

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
    TokenizerManifest,
)
from training.config import TokenizerConfig

_WHITESPACE_KIND = "whitespace"


def reserved_symbols(config: TokenizerConfig) -> tuple[str, ...]:
    """The control pieces that no text can spell: `<ph0>` … for placeholders, `<tag0>` … for markup."""
    placeholders = tuple(f"<ph{i}>" for i in range(config.num_placeholders))
    return placeholders + tuple(f"<tag{i}>" for i in range(config.num_tags))


def train_tokenizer(
    config: TokenizerConfig,
    directory: Path,
    *,
    source_language: str,
    target_language: str,
    source_sentences: Callable[[], Iterable[str]],
    target_sentences: Callable[[], Iterable[str]],
    num_threads: int,
) -> Tokenizer:
    """Trains the model(s), writes a tokenizer directory and loads it back.

    Args:
        directory: created; must not exist.
        source_sentences, target_sentences: give the normalized training sentences of a side, anew at each call.
    Raises:
        ValueError: if SentencePiece cannot make a vocabulary of the size asked for from these sentences.
    """
    if config.joint:
        models = {SOURCE_MODEL_NAME: _train(config, _joined(source_sentences(), target_sentences()), num_threads)}
    else:
        models = {
            SOURCE_MODEL_NAME: _train(config, iter(source_sentences()), num_threads),
            TARGET_MODEL_NAME: _train(config, iter(target_sentences()), num_threads),
        }
    manifest = TokenizerManifest(
        kind=config.kind,
        source_language=source_language,
        target_language=target_language,
        is_joint=config.joint,
        reserved_symbols=reserved_symbols(config),
        sha256={name: hashlib.sha256(model).hexdigest() for name, model in models.items()},
    )
    directory.mkdir(parents=True)
    for name, model in models.items():
        (directory / name).write_bytes(model)
    (directory / MANIFEST_NAME).write_text(manifest.to_json(), encoding="utf-8")
    return Tokenizer.load(directory)


def _joined(source: Iterable[str], target: Iterable[str]) -> Iterator[str]:
    yield from source
    yield from target


def _train(config: TokenizerConfig, sentences: Iterator[str], num_threads: int) -> bytes:
    """A serialized SentencePiece model."""
    is_whitespace = config.kind == _WHITESPACE_KIND
    pad, unk, bos, eos = SPECIAL_PIECES
    model = io.BytesIO()
    try:
        sentencepiece.SentencePieceTrainer.Train(
            sentence_iterator=sentences,
            model_writer=model,
            model_type="word" if is_whitespace else config.kind,
            vocab_size=config.vocab_size,
            # A "word" model takes what words there are; the other kinds must reach the size asked for.
            hard_vocab_limit=not is_whitespace,
            character_coverage=config.character_coverage,
            byte_fallback=config.byte_fallback and not is_whitespace,
            normalization_rule_name=config.normalization,
            split_digits=not is_whitespace,  # numbers and versions are copied digit by digit
            control_symbols=list(reserved_symbols(config)),
            pad_id=PAD_ID,
            unk_id=UNK_ID,
            bos_id=BOS_ID,
            eos_id=EOS_ID,
            pad_piece=pad,
            unk_piece=unk,
            bos_piece=bos,
            eos_piece=eos,
            num_threads=num_threads,
            minloglevel=1,
        )
    except RuntimeError as error:
        size = config.vocab_size
        raise ValueError(f"`tokenizer.vocab_size` of {size} cannot be trained from this text: {error}") from error
    return model.getvalue()
