"""Text to token ids and back: the one tokenizer that training, export and serving share.

A tokenizer is a directory:

    tokenizer.json   format version, kind, languages, reserved symbols, SHA-256 of each model file
    source.model     SentencePiece model of the source side; of both sides when the tokenizer is joint
    target.model     only when the two sides have a vocabulary each

Text is white-space collapsed and otherwise untouched: SentencePiece runs with the identity normalization, because NFKC
turns full-width Chinese punctuation into ASCII. Special and reserved symbols are *control* pieces, which no text can
spell: a text that literally says "<s>" or "<ph0>" becomes ordinary pieces, and comes back as the same characters.
"""

from __future__ import annotations

import codecs
import hashlib
import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import sentencepiece

PAD_ID = 0
UNK_ID = 1
BOS_ID = 2
EOS_ID = 3
SPECIAL_PIECES = ("<pad>", "<unk>", "<s>", "</s>")

FORMAT_VERSION = 1
MANIFEST_NAME = "tokenizer.json"
SOURCE_MODEL_NAME = "source.model"
TARGET_MODEL_NAME = "target.model"

_SPACE = "\u2581"  # SentencePiece writes a space this way, so the character itself needs a detour: see `_Side`
_SPACE_STAND_IN = "\ufdd0"  # a Unicode noncharacter: no text may contain it, so it can stand for the above
_REPLACEMENT = "\ufffd"
_NOT_TEXT = re.compile("[\ud800-\udfff\ufdd0]")
_BYTE_PIECE = re.compile(r"<0x([0-9A-F]{2})>")


class TokenizerError(ValueError):
    """A tokenizer directory that is missing, damaged, or of a format this version does not know."""


@dataclass(frozen=True, kw_only=True)
class TokenizerManifest:
    """What `tokenizer.json` says."""

    kind: str
    """SentencePiece model type: "unigram" or "bpe", or "whitespace" for text already cut into tokens."""
    source_language: str
    """Language code of the source side, such as "en"."""
    target_language: str
    """Language code of the target side, such as "zh"."""
    is_joint: bool
    """Whether one model, and so one vocabulary, serves both sides."""
    reserved_symbols: tuple[str, ...]
    """Control pieces that no text can spell, kept for placeholders and tags; part of both vocabularies."""
    sha256: dict[str, str]
    """Model file name to the SHA-256 of its bytes."""
    format_version: int = FORMAT_VERSION
    """Version of this file's layout."""

    def to_json(self) -> str:
        """The text of `tokenizer.json`."""
        fields = {
            "format_version": self.format_version,
            "kind": self.kind,
            "source_language": self.source_language,
            "target_language": self.target_language,
            "is_joint": self.is_joint,
            "reserved_symbols": list(self.reserved_symbols),
            "sha256": self.sha256,
        }
        return json.dumps(fields, indent=2, ensure_ascii=False) + "\n"

    @classmethod
    def from_json(cls, text: str, *, where: str) -> TokenizerManifest:
        """Parses `tokenizer.json`.

        Raises:
            TokenizerError: naming every missing or wrongly typed field, or a format version that is not known.
        """
        try:
            fields: Any = json.loads(text)
        except (ValueError, RecursionError) as error:
            raise TokenizerError(f"{where} must be JSON, but is not: {error}") from error
        if not isinstance(fields, dict):
            raise TokenizerError(f"{where} must be a JSON object, but is a {type(fields).__name__}.")
        version = fields.get("format_version")
        if version != FORMAT_VERSION:
            raise TokenizerError(f"`format_version` in {where} must be {FORMAT_VERSION}, but is {version!r}.")
        kinds: dict[str, type] = {
            "kind": str,
            "source_language": str,
            "target_language": str,
            "is_joint": bool,
            "reserved_symbols": list,
            "sha256": dict,
        }
        problems = [
            f"`{name}` in {where} must be a {kind.__name__}, but is {fields.get(name)!r}."
            for name, kind in kinds.items()
            if not isinstance(fields.get(name), kind)
        ]
        if problems:
            raise TokenizerError("\n".join(problems))
        return cls(
            kind=fields["kind"],
            source_language=fields["source_language"],
            target_language=fields["target_language"],
            is_joint=fields["is_joint"],
            reserved_symbols=tuple(str(symbol) for symbol in fields["reserved_symbols"]),
            sha256={str(name): str(digest) for name, digest in fields["sha256"].items()},
        )


def normalize(text: str) -> str:
    """The text as the model sees it: runs of white space become one space, ends are trimmed, nothing else changes
    but code points that are no text (lone surrogates, U+FDD0), which become U+FFFD."""
    return " ".join(_NOT_TEXT.sub(_REPLACEMENT, text).split())


class _Side:
    """One SentencePiece model with the checks and the exact decoding both sides need."""

    def __init__(self, model: bytes, reserved_symbols: Sequence[str], *, where: str) -> None:
        self._processor = sentencepiece.SentencePieceProcessor()
        try:
            self._processor.LoadFromSerializedProto(model)
        except RuntimeError as error:
            raise TokenizerError(f"{where} must be a SentencePiece model, but cannot be read: {error}") from error
        self.vocab_size: int = self._processor.GetPieceSize()
        self.pieces: list[str] = [self._processor.IdToPiece(i) for i in range(self.vocab_size)]
        if tuple(self.pieces[: len(SPECIAL_PIECES)]) != SPECIAL_PIECES:
            found = self.pieces[: len(SPECIAL_PIECES)]
            raise TokenizerError(f"The first pieces of {where} must be {list(SPECIAL_PIECES)}, but are {found}.")
        ids = {piece: i for i, piece in enumerate(self.pieces)}
        missing = [s for s in reserved_symbols if s not in ids or not self._processor.IsControl(ids[s])]
        if missing:
            raise TokenizerError(f"{where} must have the reserved symbols as control pieces, but lacks {missing}.")
        self.reserved_ids: dict[str, int] = {symbol: ids[symbol] for symbol in reserved_symbols}
        self._space_id = ids.get(_SPACE)
        self.byte_ids: dict[int, int] = {}  # byte value -> id
        self._parts: list[str | int] = [piece.replace(_SPACE, " ") for piece in self.pieces]  # see `part_of`
        self._parts[: len(SPECIAL_PIECES)] = ["", _REPLACEMENT, "", ""]
        for i, piece in enumerate(self.pieces):
            match = _BYTE_PIECE.fullmatch(piece)
            if match and self._processor.IsByte(i):
                self._parts[i] = int(match[1], 16)
                self.byte_ids[int(match[1], 16)] = i

    def encode(self, text: str) -> list[int]:
        """Ids of `text`, without bos and eos."""
        ids = self._encode_normalized(normalize(text))
        # A bare space piece in front ("▁" + "返回") says nothing, as decoding strips it: dropped, it saves a position
        # in each sentence of a language written without spaces.
        return ids[1:] if ids and ids[0] == self._space_id else ids

    def _encode_normalized(self, text: str) -> list[int]:
        if _SPACE not in text:
            return list(self._processor.EncodeAsIds(text))
        # The model would read a literal U+2581 as a space. A noncharacter takes its place; having no piece of its own,
        # it comes out as three byte pieces, which are then exchanged for the bytes of U+2581. UTF-8 is
        # self-synchronizing: the three cannot be the middle of something else. Without byte fallback it is unknown.
        ids = list(self._processor.EncodeAsIds(text.replace(_SPACE, _SPACE_STAND_IN)))
        if not self.byte_ids:
            return ids
        stand_in = [self.byte_ids[value] for value in _SPACE_STAND_IN.encode()]
        wanted = [self.byte_ids[value] for value in _SPACE.encode()]
        for i in range(len(ids) - 2):
            if ids[i : i + 3] == stand_in:
                ids[i : i + 3] = wanted
        return ids

    def decode(self, ids: Iterable[int]) -> str:
        """Text of `ids`. Special pieces but unk are dropped, reserved symbols are spelled out, runs of byte pieces are
        read as UTF-8 with U+FFFD for what is none, unk is U+FFFD.

        Raises:
            ValueError: if an id is outside the vocabulary.
        """
        parts: list[str] = []
        pending = bytearray()
        for token_id in ids:
            part = self.part_of(token_id)
            if isinstance(part, int):
                pending.append(part)
                continue
            if pending:
                parts.append(pending.decode("utf-8", errors="replace"))
                pending.clear()
            parts.append(part)
        if pending:
            parts.append(pending.decode("utf-8", errors="replace"))
        return "".join(parts).strip(" ")

    def part_of(self, token_id: int) -> str | int:
        """What one id adds to a text: characters, or a byte's value.

        Raises:
            ValueError: if it is outside the vocabulary.
        """
        if not 0 <= token_id < self.vocab_size:
            raise ValueError(f"A token id must be between 0 and {self.vocab_size - 1}, but is {token_id}.")
        return self._parts[token_id]


class GrowingText:
    """The text of ids that come one after the other: what it gives out, joined, is the `decode` of them all.

    Only text that no further id can change is given out: characters whose bytes are complete, and spaces that stand
    between others.
    """

    def __init__(self, side: _Side) -> None:
        self._side = side
        self._utf8 = codecs.getincrementaldecoder("utf-8")(errors="replace")
        self._is_in_bytes = False
        self._has_begun = False
        self._num_spaces = 0  # held back until something follows them

    def add(self, ids: Iterable[int]) -> str:
        """The text that has become certain with these ids.

        Raises:
            ValueError: if an id is outside the vocabulary.
        """
        parts: list[str] = []
        for token_id in ids:
            part = self._side.part_of(token_id)
            if isinstance(part, int):
                self._is_in_bytes = True
                parts.append(self._utf8.decode(bytes((part,))))
            else:
                if self._is_in_bytes:
                    parts.append(self._end_bytes())
                parts.append(part)
        return self._without_outer_spaces("".join(parts))

    def end(self) -> str:
        """The rest, when no id will follow."""
        return self._without_outer_spaces(self._end_bytes())

    def _end_bytes(self) -> str:
        self._is_in_bytes = False
        return self._utf8.decode(b"", final=True)

    def _without_outer_spaces(self, text: str) -> str:
        inner = text.rstrip(" ")
        if not inner:
            self._num_spaces += len(text)
            return ""
        before = " " * self._num_spaces + inner if self._has_begun else inner.lstrip(" ")
        self._has_begun = True
        self._num_spaces = len(text) - len(inner)
        return before


class Tokenizer:
    """Source and target side of one language pair. Immutable once loaded: any thread may call any method."""

    def __init__(self, manifest: TokenizerManifest, source: _Side, target: _Side) -> None:
        self.manifest = manifest
        self._source = source
        self._target = target

    @classmethod
    def load(cls, directory: str | Path) -> Tokenizer:
        """Reads a tokenizer directory.

        Raises:
            TokenizerError: if a file is missing, does not match its checksum, or is not what it must be.
        """
        directory = Path(directory)
        paths = (directory / name for name in (MANIFEST_NAME, SOURCE_MODEL_NAME, TARGET_MODEL_NAME))
        return cls.from_files({path.name: path.read_bytes() for path in paths if path.is_file()}, where=directory)

    @classmethod
    def from_files(cls, files: Mapping[str, bytes], *, where: Path) -> Tokenizer:
        """A tokenizer from the bytes of a directory's files, by name. `where` is the directory, for messages.

        Raises:
            TokenizerError: as `load`.
        """
        if MANIFEST_NAME not in files:
            raise TokenizerError(f"A tokenizer directory must have {MANIFEST_NAME}, but {where} has none.")
        manifest_path = where / MANIFEST_NAME
        try:
            text = files[MANIFEST_NAME].decode("utf-8")
        except UnicodeDecodeError as error:
            raise TokenizerError(f"{manifest_path} must be UTF-8, but is not: {error}") from error
        manifest = TokenizerManifest.from_json(text, where=str(manifest_path))
        names = [SOURCE_MODEL_NAME] if manifest.is_joint else [SOURCE_MODEL_NAME, TARGET_MODEL_NAME]
        sides: dict[str, _Side] = {}
        problems: list[str] = []
        for name in names:
            path = where / name
            if name not in files:
                problems.append(f"{path} must exist, but does not.")
                continue
            digest = hashlib.sha256(files[name]).hexdigest()
            if digest != manifest.sha256.get(name):
                wanted = manifest.sha256.get(name)
                problems.append(f"The SHA-256 of {path} must be {wanted}, but is {digest}: the file was altered.")
                continue
            try:
                sides[name] = _Side(files[name], manifest.reserved_symbols, where=str(path))
            except TokenizerError as error:
                problems.append(str(error))
        if problems:
            raise TokenizerError("\n".join(problems))
        return cls(manifest, sides[SOURCE_MODEL_NAME], sides[names[-1]])

    @property
    def source_language(self) -> str:
        """Language code of the source side."""
        return self.manifest.source_language

    @property
    def target_language(self) -> str:
        """Language code of the target side."""
        return self.manifest.target_language

    @property
    def is_joint(self) -> bool:
        """Whether both sides share one vocabulary."""
        return self.manifest.is_joint

    @property
    def source_vocab_size(self) -> int:
        """Number of source pieces, specials included; the model may round it up."""
        return self._source.vocab_size

    @property
    def target_vocab_size(self) -> int:
        """Number of target pieces, specials included; the model may round it up."""
        return self._target.vocab_size

    @property
    def digest(self) -> str:
        """SHA-256 of the manifest, which holds the checksums of the models: equal digests mean equal tokenizers."""
        return hashlib.sha256(self.manifest.to_json().encode()).hexdigest()

    def encode_source(self, text: str) -> list[int]:
        """Ids of a source sentence, eos at the end. Any text is accepted; pad, bos and reserved ids never occur."""
        return [*self._source.encode(text), EOS_ID]

    def encode_sources(self, texts: Iterable[str]) -> list[list[int]]:
        """`encode_source` of each text, in order."""
        return [self.encode_source(text) for text in texts]

    def encode_target(self, text: str) -> list[int]:
        """Ids of a target sentence, without bos and eos."""
        return self._target.encode(text)

    def encode_targets(self, texts: Iterable[str]) -> list[list[int]]:
        """`encode_target` of each text, in order."""
        return [self.encode_target(text) for text in texts]

    def decode_source(self, ids: Iterable[int]) -> str:
        """Text of source ids; see `decode_target`."""
        return self._source.decode(ids)

    def decode_target(self, ids: Iterable[int]) -> str:
        """Text of target ids: pad, bos and eos are dropped, byte pieces are joined to UTF-8 (U+FFFD where invalid).

        Raises:
            ValueError: if an id is outside the vocabulary.
        """
        return self._target.decode(ids)

    def growing_target(self) -> GrowingText:
        """The text of target ids that become known bit by bit: as `decode_target` of them all."""
        return GrowingText(self._target)

    def decode_targets(self, batch: Iterable[Iterable[int]]) -> list[str]:
        """`decode_target` of each row, in order."""
        return [self.decode_target(ids) for ids in batch]

    def source_pieces(self, ids: Iterable[int]) -> list[str]:
        """The pieces of source ids as the vocabulary spells them, one for each id."""
        return [self._source.pieces[i] for i in ids]

    def target_pieces(self, ids: Iterable[int]) -> list[str]:
        """The pieces of target ids as the vocabulary spells them, one for each id."""
        return [self._target.pieces[i] for i in ids]

    def reserved_source_id(self, symbol: str) -> int:
        """Id of a reserved symbol on the source side; KeyError if the tokenizer has none of that name."""
        return self._source.reserved_ids[symbol]

    def reserved_target_id(self, symbol: str) -> int:
        """Id of a reserved symbol on the target side; KeyError if the tokenizer has none of that name."""
        return self._target.reserved_ids[symbol]
