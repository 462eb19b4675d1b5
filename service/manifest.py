"""What a bundle's `manifest.json` says, as frozen dataclasses: parsed once, every problem reported together."""

from __future__ import annotations

import dataclasses
import json
import math
import types
import typing
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from service.graph_signature import CACHE_DTYPES, Architecture, GraphSignature
from service.options import DecodingOptions

FORMAT_VERSION = 3
"""Newest format of a bundle that this build reads, and the one it writes."""
OLDEST_FORMAT_VERSION = 2
"""Oldest format that this build reads: version 1 was never released."""
MAX_GREEDY_STEPS = 16
"""More would make whoever joins wait too long."""
FIRST_VERSION_WITH_BYTE_CACHES = 3
"""Before it, cached keys and values were float32."""


class ManifestError(ValueError):
    """`manifest.json` cannot be used; `problems` lists why, one sentence each."""

    def __init__(self, problems: list[str]) -> None:
        super().__init__("\n".join(problems))
        self.problems = problems


@dataclass(frozen=True, kw_only=True)
class FileRecord:
    """One file of the bundle."""

    sha256: str
    """SHA-256 of the file's bytes, in hexadecimal."""
    num_bytes: int
    """Size of the file."""


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """How the weights are stored and multiplied."""

    operator: str
    """Operator of the linear layers: `MatMul` or `com.microsoft.MatMulIntegerToFloat`."""
    bits: int
    """Bits of a weight: 32 or 8."""
    activations: str
    """How activations enter the products."""
    embedding: str
    """How the embedding tables are stored."""
    opset: int
    """ONNX opset of both graphs."""
    caches: str = "float32"
    """How cached keys and values are stored."""


@dataclass(frozen=True, kw_only=True)
class DecodingDefaults:
    """What a call's decoding options are where it does not give them; None leaves an option to the service.

    Named as in the interface (`proto`, `DecodingOptions`), where each is described.
    """

    beam_size: int | None = None
    """Hypotheses that are kept open; 1: greedy search."""
    length_penalty: float | None = None
    """Exponent of the length by which a score is divided for ranking."""
    coverage_penalty: float | None = None
    """Factor of the coverage term of the ranking."""
    early_stopping: bool | None = None
    """Whether a beam search also ends once `patience` × `beam_size` hypotheses have ended."""
    patience: float | None = None
    """See `early_stopping`."""
    repetition_penalty: float | None = None
    """What the log-probability of a token that is there already is multiplied by."""
    no_repeat_ngram_size: int | None = None
    """No run of so many tokens occurs twice; 0: allowed."""
    min_target_tokens: int | None = None
    """The fewest target tokens, end of sentence not included."""
    min_target_ratio: float | None = None
    """The fewest target tokens for each source token."""
    max_target_ratio: float | None = None
    """The most target tokens for each source token."""
    no_unknown: bool | None = None
    """Whether the unknown token never occurs."""
    guards_repetition: bool | None = None
    """Whether a result that loops is decoded again."""

    @property
    def given(self) -> dict[str, int | float | bool]:
        """The options that are given, by name."""
        return {name: value for name, value in vars(self).items() if value is not None}

    def problems(self) -> list[str]:
        """What is wrong with these options, one sentence each; empty when nothing is."""
        known = {entry.name for entry in dataclasses.fields(DecodingOptions)}
        options: dict[str, Any] = {name: value for name, value in self.given.items() if name in known}
        found = DecodingOptions(**options).problems()
        if self.min_target_ratio is not None and not 0 <= self.min_target_ratio < math.inf:
            found.append(f"`min_target_ratio` must be at least 0, but is {self.min_target_ratio}.")
        if self.max_target_ratio is not None and not 0 < self.max_target_ratio < math.inf:
            found.append(f"`max_target_ratio` must be above 0, but is {self.max_target_ratio}.")
        if None not in (self.min_target_ratio, self.max_target_ratio) and not found:
            assert self.min_target_ratio is not None
            assert self.max_target_ratio is not None
            if self.min_target_ratio > self.max_target_ratio:
                found.append(
                    f"`min_target_ratio` must be at most `max_target_ratio` {self.max_target_ratio}, "
                    f"but is {self.min_target_ratio}."
                )
        return found


@dataclass(frozen=True, kw_only=True)
class ValueParity:
    """Numbers of one graph beside PyTorch's, over several shapes."""

    shapes: tuple[str, ...]
    """The shapes that were run, as in `B3 S16`."""
    tolerance: float
    """Largest difference allowed, as a share of the largest absolute value."""
    max_difference: float
    """Largest difference found, as a share of the largest absolute value."""


@dataclass(frozen=True, kw_only=True)
class Tie:
    """A sentence whose tokens differ because PyTorch itself could not tell two tokens apart."""

    dataset: str
    """Data set of the sentence."""
    line: int
    """Line of the sentence in the data set, counted from 1."""
    position: int
    """First target position that differs, counted from 0."""
    margin: float
    """Difference of PyTorch's two logits there."""


@dataclass(frozen=True, kw_only=True)
class TokenParity:
    """Greedy tokens of real sentences beside those of the trained model in PyTorch (fp32)."""

    num_sentences: int
    """Sentences compared."""
    num_equal: int
    """Sentences whose tokens are all equal."""
    ties: tuple[Tie, ...] = ()
    """Sentences that differ by a tie; for fp32 all that differ are listed here, or the bundle is not written."""


@dataclass(frozen=True, kw_only=True)
class Parity:
    """PyTorch beside the graphs, run through the code that serves."""

    encoder: ValueParity
    """Cross-attention keys and values."""
    decoder: ValueParity
    """Logits of a step."""
    tokens: TokenParity
    """Tokens of this precision."""
    fp32_tokens: TokenParity
    """Tokens of the fp32 graphs exported beside it."""
    min_sentences: int
    """Fewest sentences that had to be compared; less than 200 only when asked for."""


@dataclass(frozen=True, kw_only=True)
class Score:
    """Corpus scores by sacreBLEU."""

    bleu: float
    """BLEU, 0 to 100."""
    chrf: float
    """chrF, 0 to 100."""
    bleu_signature: str
    """sacreBLEU's signature of `bleu`."""
    chrf_signature: str
    """sacreBLEU's signature of `chrf`."""


@dataclass(frozen=True, kw_only=True)
class Quality:
    """Greedy translations of one data set, scored."""

    dataset: str
    """Name of the data set."""
    num_sentences: int
    """Sentences translated."""
    score: Score
    """This bundle."""
    fp32: Score
    """The fp32 graphs exported beside it."""


@dataclass(frozen=True, kw_only=True)
class SameBytes:
    """Real sentences decoded alone, together and in random company: tokens and scores must be equal to the bit."""

    num_sentences: int
    """Sentences decoded each way."""
    ways: tuple[str, ...]
    """The ways they were decoded."""
    num_different: int
    """Sentences with any bit different; a bundle is only written with 0."""


@dataclass(frozen=True, kw_only=True)
class CreatedBy:
    """Programs that made the bundle."""

    python: str
    """Version of Python."""
    torch: str
    """Version of PyTorch."""
    onnx: str
    """Version of ONNX."""
    onnxruntime: str
    """Version of ONNX Runtime."""
    processor: str
    """Processor on which it was verified."""


@dataclass(frozen=True, kw_only=True)
class Manifest:
    """All of `manifest.json`."""

    format_version: int
    """Version of the bundle's layout."""
    name: str
    """Name of the model, as in `en-zh`."""
    source_language: str
    """Language code of what it reads."""
    target_language: str
    """Language code of what it writes."""
    precision: Literal["fp32", "int8"]
    """Precision of the weights."""
    recipe: Recipe
    """How the weights are stored and multiplied."""
    architecture: Architecture
    """Shapes of the model."""
    signature: GraphSignature
    """Names, axes and element types of the graphs."""
    alignment_layer: int
    """The decoder layer, 0 the first, whose cross-attention the decoder puts out."""
    greedy_steps: int = 1
    """Steps of greedy search that one run of `greedy.onnx` makes; 1: there is no such graph."""
    decoding: DecodingDefaults = DecodingDefaults()
    """What decoding options are where a call does not give them."""
    files: Mapping[str, FileRecord]
    """Every file of the bundle but `manifest.json` and `manifest.sha256`, by its path with forward slashes."""
    parity: Parity | None
    """PyTorch beside the graphs; absent only from bundles made for tests and benchmarks."""
    quality: tuple[Quality, ...]
    """Scores by data set."""
    same_bytes: SameBytes | None
    """Result of the same-bytes test; absent only from bundles made for tests and benchmarks."""
    training_record: Mapping[str, Any]
    """What the training wrote about itself, as it wrote it."""
    licence: str
    """Licence of the model, an SPDX expression or a sentence."""
    attributions: tuple[str, ...]
    """Lines that whoever passes the model on must pass on too."""
    created_by: CreatedBy
    """Programs that made the bundle."""

    def to_json(self) -> str:
        """The text of `manifest.json`."""
        return json.dumps(dataclasses.asdict(self), indent=2, ensure_ascii=False, allow_nan=False) + "\n"

    @classmethod
    def from_json(cls, text: str) -> Manifest:
        """Parses `manifest.json`.

        Raises:
            ManifestError: for bad JSON, a format version that is not known, or any field missing, unknown or wrong.
        """
        try:
            fields = json.loads(text, parse_constant=_refuse_constant)
        except (ValueError, RecursionError) as error:
            raise ManifestError([f"manifest.json must be JSON, but is not: {error}"]) from error
        if not isinstance(fields, dict):
            raise ManifestError([f"manifest.json must be a JSON object, but is a {type(fields).__name__}."])
        version = fields.get("format_version")
        if type(version) is not int or version < 1:
            raise ManifestError([f"`format_version` must be a whole number of at least 1, but is {version!r}."])
        if version > FORMAT_VERSION:
            raise ManifestError([f"format version {version} is newer than this build reads ({FORMAT_VERSION})"])
        if version < OLDEST_FORMAT_VERSION:
            raise ManifestError(
                [
                    f"format version {version} is older than this build reads ({OLDEST_FORMAT_VERSION}): "
                    "export the checkpoint again"
                ]
            )
        problems: list[str] = []
        manifest = _build(cls, fields, "", problems)
        if problems:
            raise ManifestError(problems)
        assert isinstance(manifest, cls)
        problems += manifest.architecture.problems()
        problems += [f"decoding: {problem}" for problem in manifest.decoding.problems()]
        if not 0 <= manifest.alignment_layer < manifest.architecture.decoder_layers:
            problems.append(
                f"`alignment_layer` must be between 0 and {manifest.architecture.decoder_layers - 1}, "
                f"but is {manifest.alignment_layer}."
            )
        if not 1 <= manifest.greedy_steps <= MAX_GREEDY_STEPS:
            problems.append(f"`greedy_steps` must be between 1 and {MAX_GREEDY_STEPS}, but is {manifest.greedy_steps}.")
        dtypes = CACHE_DTYPES if version >= FIRST_VERSION_WITH_BYTE_CACHES else ("float32",)
        known = [
            GraphSignature.of(manifest.architecture, each, manifest.greedy_steps) for each in dtypes if not problems
        ]
        if not problems and manifest.signature not in known:
            problems.append("`signature` must be that of `architecture`, but is not.")
        if problems:
            raise ManifestError(problems)
        return manifest


def _refuse_constant(name: str) -> None:
    raise ValueError(f"{name} is no JSON number")


def _build(cls: type, values: Any, where: str, problems: list[str]) -> Any:
    """A dataclass from a JSON object, or None with the reasons appended to `problems`."""
    if not isinstance(values, dict):
        problems.append(f"`{where.rstrip('.')}` must be an object, but is {values!r}.")
        return None
    hints = typing.get_type_hints(cls)
    fields = {entry.name: entry for entry in dataclasses.fields(cls)}
    num_before = len(problems)
    problems += [f"`{where}{name}` is not known." for name in values.keys() - fields.keys()]
    built: dict[str, Any] = {}
    for name, entry in fields.items():
        if name in values:
            built[name] = _convert(hints[name], values[name], f"{where}{name}", problems)
        elif entry.default is dataclasses.MISSING:
            problems.append(f"`{where}{name}` must be given, but is missing.")
    return cls(**built) if len(problems) == num_before else None


def _convert(hint: Any, value: Any, where: str, problems: list[str]) -> Any:
    """`value` as the type `hint` asks for; a problem is appended where it is not."""
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if dataclasses.is_dataclass(hint):
        assert isinstance(hint, type)
        return _build(hint, value, f"{where}.", problems)
    if origin is types.UnionType and type(None) in arguments:  # X | None
        return None if value is None else _convert(arguments[0], value, where, problems)
    if origin is tuple:
        if isinstance(value, list):
            return tuple(_convert(arguments[0], item, f"{where}[{i}]", problems) for i, item in enumerate(value))
        problems.append(f"`{where}` must be a list, but is {value!r}.")
    elif origin is Mapping:
        if isinstance(value, dict):
            return {key: _convert(arguments[1], item, f"{where}[{key!r}]", problems) for key, item in value.items()}
        problems.append(f"`{where}` must be an object, but is {value!r}.")
    else:
        return _plain(hint, value, where, problems)
    return None


def _plain(hint: Any, value: Any, where: str, problems: list[str]) -> Any:
    """`value` as a number, a text or one of some words."""
    if hint is Any:
        return value
    arguments = typing.get_args(hint)
    allowed = arguments if typing.get_origin(hint) in (Literal, types.UnionType) else (hint,)
    if typing.get_origin(hint) is Literal:
        if value not in allowed:
            problems.append(f"`{where}` must be one of {', '.join(map(repr, allowed))}, but is {value!r}.")
        return value
    if hint is float and type(value) is int:
        return float(value)
    if type(value) not in allowed:
        names = " or ".join(kind.__name__ for kind in allowed)
        problems.append(f"`{where}` must be of type {names}, but is {value!r}.")
    return value
