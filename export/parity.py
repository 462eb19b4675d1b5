"""Whether the graphs compute what the trained model computes: numbers at odd shapes, tokens of real sentences.

The graphs run through `service.model_runner`, so what is compared is what will be served. Axes: `training.model`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import onnx
import torch
from torch import Tensor

from export.cache_bytes import cache_scales
from export.validation import ValidationSet
from service.bundle import Bundle
from service.graph_signature import cross_key, cross_value
from service.manifest import Tie, TokenParity, ValueParity
from service.model_runner import OnnxModelRunner
from service.runner import EncodedSource, StepInputs, StepOutputs
from service.tokenizer import BOS_ID, EOS_ID, PAD_ID
from training.model import DecoderLayer, Transformer

TOLERANCES = {"fp32": 1e-4, "int8": 0.15}
"""Largest difference from PyTorch by precision, as a share of the largest absolute value. Int8 is held to tokens and
BLEU; its tolerance only tells rounding from a mistake in the graph."""
TIE_MARGIN = 1e-5
"""Two log-probabilities of PyTorch closer than this are a tie, which rounding decides."""
NUM_STEPS = 11
"""Target positions of a comparison of values."""
SHAPES = ((1,), (2, 1, 8), (9, 16, 5, 23, 7, 1, 13), (17, 3, 31, 8, 24))
"""Source lengths of the batches whose values are compared; cut to what the model holds."""


@dataclass(frozen=True, kw_only=True)
class ValueComparison:
    """Numbers of both graphs beside PyTorch's."""

    encoder: ValueParity
    """Cross-attention keys and values."""
    decoder: ValueParity
    """Log-probabilities of every token at every step."""

    def problems(self) -> list[str]:
        """Where a difference passes its tolerance."""
        return [
            f"The {name} must agree with PyTorch to {part.tolerance:g} of its largest value, "
            f"but differs by {part.max_difference:g}."
            for name, part in (("encoder", self.encoder), ("decoder", self.decoder))
            if not part.max_difference <= part.tolerance
        ]


def open_value_runner(bundle: Bundle, num_threads: int) -> OnnxModelRunner:
    """A runner with room for the batches of `SHAPES`, as far as the model has positions."""
    most = bundle.architecture.max_positions
    return OnnxModelRunner(
        bundle,
        max_rows=2 * max(map(len, SHAPES)),
        max_source_tokens=min(max(map(max, SHAPES)), most),
        max_target_tokens=min(NUM_STEPS + 2, most),
        num_threads=num_threads,
    )


def compare_values(model: Transformer, bundle: Bundle, num_threads: int) -> ValueComparison:
    """Runs random sources and random forced targets through both, rows joining at different steps."""
    runner = open_value_runner(bundle, num_threads)
    target_tokens = bundle.architecture.target_tokens
    scales = cache_scales(onnx.load(bundle.decoder_path))
    generator = np.random.default_rng(0)
    num_steps = min(NUM_STEPS, runner.max_target_tokens - 2)
    encoder, decoder, shapes = _Difference(), _Difference(), []
    for lengths in SHAPES:
        chosen = [min(length, runner.max_source_tokens) for length in lengths[: runner.max_rows]]
        shapes.append(f"S {' '.join(map(str, chosen))}, T {num_steps}")
        sources = [generator.integers(EOS_ID + 1, runner.source_vocabulary_size, n).tolist() for n in chosen]
        targets = generator.integers(EOS_ID + 1, target_tokens, (len(chosen), num_steps + 2))  # [B,T+2]
        targets[:, 0] = BOS_ID
        encoded = runner.encode(sources).sources
        with torch.inference_mode():
            _compare_encoder(model, sources, encoded, scales, encoder)
            expected = torch_log_probabilities(model, sources, torch.from_numpy(targets), target_tokens)  # [B,T+2,V]
        _compare_decoder(runner, encoded, targets, expected, decoder)
    tolerance = TOLERANCES[bundle.manifest.precision]
    return ValueComparison(
        encoder=ValueParity(shapes=tuple(shapes), tolerance=tolerance, max_difference=encoder.share),
        decoder=ValueParity(shapes=tuple(shapes), tolerance=tolerance, max_difference=decoder.share),
    )


class _Difference:
    """The largest difference seen, beside the largest value."""

    def __init__(self) -> None:
        self._difference = 0.0
        self._value = 0.0

    def add(self, found: npt.NDArray[np.float32], expected: npt.NDArray[np.float32]) -> None:
        difference = float(np.abs(found - expected).max())
        self._difference = math.inf if math.isnan(difference) else max(self._difference, difference)
        self._value = max(self._value, float(np.abs(expected).max()))

    @property
    def share(self) -> float:
        """The difference as a share of the value; a huge number where it is not finite."""
        share = self._difference / self._value
        return share if math.isfinite(share) else 1e30


def _compare_encoder(
    model: Transformer,
    sources: Sequence[list[int]],
    encoded: Sequence[EncodedSource],
    scales: Mapping[str, npt.NDArray[np.float32]],
    difference: _Difference,
) -> None:
    for source, found in zip(sources, encoded, strict=True):
        states = model.encode(torch.tensor([source]), torch.tensor([len(source)]))  # [1,S,D]
        for index, layer in enumerate(model.decoder.layers):
            assert isinstance(layer, DecoderLayer)
            keys, values = layer.cross_attention.project_keys_values(states)  # [1,H,S,K]
            for kind, (name, expected) in enumerate(((cross_key(index), keys), (cross_value(index), values))):
                _, heads, _, width = expected.shape
                scale = scales[name].reshape(heads, 1, width) if name in scales else np.float32(1)
                difference.add(found.payload[index, kind, :, : len(source)] * scale, expected[0].numpy())


def torch_log_probabilities(
    model: Transformer, sources: Sequence[list[int]], targets: Tensor, target_tokens: int
) -> npt.NDArray[np.float32]:
    """PyTorch's log-probabilities of every position in one full pass, [B,T,V]; pad, bos and no tokens left out."""
    lengths = torch.tensor([len(source) for source in sources])
    source_ids = torch.full((len(sources), int(lengths.max())), PAD_ID)  # [B,S]
    for row, source in enumerate(sources):
        source_ids[row, : len(source)] = torch.tensor(source)
    logits = model.project(model(source_ids, lengths, targets))  # [B,T,V]
    logits[:, :, [PAD_ID, BOS_ID]] = -torch.inf
    logits[:, :, target_tokens:] = -torch.inf
    result: npt.NDArray[np.float32] = logits.log_softmax(dim=-1).numpy()
    return result


def _compare_decoder(
    runner: OnnxModelRunner,
    encoded: Sequence[EncodedSource],
    targets: npt.NDArray[np.int64],
    expected: npt.NDArray[np.float32],
    difference: _Difference,
) -> None:
    """Steps all rows together, row i beginning i % 3 positions ahead of the others in its own target.

    A source of an even number is read by two rows, and each of the two must give what one alone gives in PyTorch.
    """
    copies = [index for index in range(len(encoded)) for _ in range(1 + (index % 2 == 0))][: runner.max_rows]
    sources, rows = np.array(copies), np.arange(len(copies))
    for lane, source in enumerate(encoded):
        runner.place(lane, source)
    leads = rows % 3
    for ahead in range(2):  # rows with a lead decode their first positions while the others stand at their first
        positions = np.minimum(leads, ahead)
        _step(runner, targets[sources, positions], positions, sources, encoded)
    for step in range(targets.shape[1] - 2):
        positions = leads + step
        found = _step(runner, targets[sources, positions], positions, sources, encoded).log_probabilities  # [B,V]
        wanted = expected[sources, positions]  # [B,V]
        is_token = np.isfinite(wanted).all(axis=0)
        difference.add(found[:, is_token], wanted[:, is_token])


def _step(
    runner: OnnxModelRunner,
    ids: npt.NDArray[np.int64],
    positions: npt.NDArray[np.int64],
    lanes: npt.NDArray[np.int64],
    encoded: Sequence[EncodedSource],
) -> StepOutputs:
    """One step of rows that read `lanes` [B]; equal lanes stand together."""
    num_lanes = int(lanes.max()) + 1
    rows_per_lane = np.bincount(lanes, minlength=num_lanes).astype(np.int32)  # [N]
    first_rows = np.cumsum(rows_per_lane) - rows_per_lane  # [N]
    return runner.decode_step(
        StepInputs(
            target_ids=ids,
            past_lengths=positions.astype(np.int32),
            row_lanes=lanes,
            row_places=np.arange(len(lanes)) - first_rows[lanes],
            source_lengths=np.array([source.source_length for source in encoded[:num_lanes]], np.int32),
            rows_per_lane=rows_per_lane,
            num_candidates=1,
            with_attention=False,
        )
    )


@dataclass(frozen=True, kw_only=True)
class TokenComparison:
    """Tokens of the graphs beside PyTorch's."""

    parity: TokenParity
    """What goes into the manifest."""
    differing: tuple[str, ...]
    """Sentences that differ though PyTorch could tell the tokens apart, in words."""


def compare_tokens(
    model: Transformer,
    sets: Sequence[ValidationSet],
    expected: Sequence[Sequence[list[int]]],
    found: Sequence[Sequence[list[int]]],
) -> TokenComparison:
    """Compares tokens sentence by sentence; `expected` and `found` hold the ids of each sentence of each set."""
    ties, differing, num_equal = [], [], 0
    for each, expected_set, found_set in zip(sets, expected, found, strict=True):
        for sentence, wanted, got in zip(each.sentences, expected_set, found_set, strict=True):
            if wanted == got:
                num_equal += 1
                continue
            position = next(i for i, (a, b) in enumerate(zip([*wanted, -1], [*got, -1], strict=False)) if a != b)
            margin = _margin(model, sentence.source_ids, wanted, got, position)
            if margin <= TIE_MARGIN:
                ties.append(Tie(dataset=each.name, line=sentence.line, position=position, margin=margin))
            else:
                differing.append(
                    f"{each.name}, sentence {sentence.line}: the graphs must choose PyTorch's tokens, but differ from "
                    f"position {position} on, where its margin is {margin:.3g}."
                )
    total = sum(len(each.sentences) for each in sets)
    parity = TokenParity(num_sentences=total, num_equal=num_equal, ties=tuple(ties))
    return TokenComparison(parity=parity, differing=tuple(differing))


@torch.inference_mode()
def _margin(model: Transformer, source_ids: Sequence[int], wanted: list[int], got: list[int], position: int) -> float:
    """By how much PyTorch prefers its own token at `position` to the graphs' after the same beginning."""
    if position >= min(len(wanted), len(got)):
        return math.inf  # one is the other's beginning: not a matter of rounding
    source = torch.tensor([list(source_ids)])
    target = torch.tensor([[BOS_ID, *wanted[:position]]])
    logits = model.project(model(source, torch.tensor([source.size(1)]), target))[0, -1]  # [V]
    return float(logits[wanted[position]] - logits[got[position]])
