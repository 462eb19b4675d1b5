"""Translating with a PyTorch model: greedy and beam search over the cached decoding step.

This is the decoding of training (validation, evaluation) and the oracle of the exported graphs; serving has its own
loop over ONNX Runtime. Axes: see `training/model.py`; here R are the rows that are still being decoded.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from service.tokenizer import BOS_ID, EOS_ID, PAD_ID, Tokenizer
from training.model import Transformer


@dataclass(frozen=True, kw_only=True)
class DecodeOptions:
    """How sentences are decoded."""

    beam_size: int = 1
    """Hypotheses kept at each step; 1 is greedy search."""
    length_penalty: float = 0.6
    """α of Wu et al. 2016, equation 14: hypotheses compare by log-probability / ((5 + length) / 6)^α."""
    max_length_factor: float = 2.0
    """A hypothesis ends after this many tokens for each source token, …"""
    max_length_extra: int = 20
    """… plus this many, and in any case where the model has no more positions."""
    batch_tokens: int = 4096
    """Padded source positions decoded together, all beams counted."""


@dataclass(frozen=True, kw_only=True)
class Hypothesis:
    """One decoded target."""

    ids: list[int]
    """Target ids without bos and eos."""
    log_probability: float
    """Sum of the log-probabilities of the ids, and of eos where it was reached."""
    is_complete: bool
    """Whether eos was reached; false when the length ran out."""

    def score(self, length_penalty: float) -> float:
        """The log-probability with the length penalty applied."""
        length = len(self.ids) + int(self.is_complete)
        return self.log_probability / _penalty(length, length_penalty)


def translate(
    model: Transformer, tokenizer: Tokenizer, texts: Sequence[str], options: DecodeOptions | None = None
) -> list[str]:
    """Translations of `texts`, in order. A blank text gives an empty translation.

    Raises:
        ValueError: if a text has more tokens than the model has positions.
    """
    sources = tokenizer.encode_sources(texts)
    filled = [i for i, source in enumerate(sources) if len(source) > 1]
    hypotheses = decode(model, [sources[i] for i in filled], options, target_vocab_size=tokenizer.target_vocab_size)
    translations = [""] * len(sources)
    for i, hypothesis in zip(filled, hypotheses, strict=True):
        translations[i] = tokenizer.decode_target(hypothesis.ids)
    return translations


@torch.inference_mode()
def decode(
    model: Transformer,
    sources: Sequence[Sequence[int]],
    options: DecodeOptions | None = None,
    *,
    target_vocab_size: int | None = None,
) -> list[Hypothesis]:
    """The best hypothesis of each source, in order; sentences of like length are decoded together.

    Args:
        sources: source ids, eos at the end.
        target_vocab_size: pieces of the tokenizer, when the model's V is that rounded up; the rest is never chosen.
    Raises:
        ValueError: if a source has more tokens than the model has positions.
    """
    options = options or DecodeOptions()
    longest = max((len(source) for source in sources), default=0)
    if longest > model.config.max_positions:
        raise ValueError(f"A source must have at most {model.config.max_positions} tokens, but has {longest}.")
    was_training = model.training
    model.eval()
    try:
        results: dict[int, Hypothesis] = {}
        for indices in _length_batches(sources, options):
            rows = [sources[i] for i in indices]
            hypotheses = _decode_batch(model, rows, options, target_vocab_size)
            results.update(zip(indices, hypotheses, strict=True))
    finally:
        model.train(was_training)
    return [results[i] for i in range(len(sources))]


def _length_batches(sources: Sequence[Sequence[int]], options: DecodeOptions) -> list[list[int]]:
    batches: list[list[int]] = []
    for i in sorted(range(len(sources)), key=lambda i: len(sources[i])):  # ascending: the newcomer is the longest
        if not batches or (len(batches[-1]) + 1) * len(sources[i]) * options.beam_size > options.batch_tokens:
            batches.append([])
        batches[-1].append(i)
    return batches


def _decode_batch(
    model: Transformer, sources: list[Sequence[int]], options: DecodeOptions, target_vocab_size: int | None
) -> list[Hypothesis]:
    device = model.positions.device
    lengths = torch.tensor([len(source) for source in sources], device=device)  # [B]
    source_ids = torch.full((len(sources), int(lengths.max())), PAD_ID, device=device)  # [B,S]
    for row, source in enumerate(sources):
        source_ids[row, : len(source)] = torch.tensor(source, device=device)
    max_lengths = [
        min(math.floor(options.max_length_factor * len(source)) + options.max_length_extra, model.config.max_positions)
        for source in sources
    ]
    encoded = model.encode(source_ids, lengths)  # [B,S,D]
    step = _Step(model, encoded, lengths, max(max_lengths), target_vocab_size)
    if options.beam_size == 1:
        return _greedy(step, max_lengths)
    return _beam(step, max_lengths, options)


class _Step:
    """The model's cached step, with what must never be chosen masked out."""

    def __init__(
        self, model: Transformer, encoded: Tensor, lengths: Tensor, max_length: int, target_vocab_size: int | None
    ) -> None:
        self._model = model
        self._cache = model.start_cache(encoded, lengths, max_length)
        self._vocab_size = target_vocab_size or model.config.target_vocab_size

    def log_probabilities(self, last_ids: Tensor) -> Tensor:
        """The model's log-probabilities of the next token after `last_ids` [R]; [R,V], -inf for what is no text.

        They are shares of the whole vocabulary, masked afterwards. The served graph masks before its log-softmax: its
        figures are higher, all of a row by the same amount, so the order of a row's tokens is the same.
        """
        hidden = self._model.decode_step(last_ids.unsqueeze(1), self._cache)  # [R,1,D]
        log_probabilities = self._model.project(hidden.squeeze(1)).float().log_softmax(dim=-1)  # [R,V]
        log_probabilities[:, [PAD_ID, BOS_ID]] = -math.inf
        log_probabilities[:, self._vocab_size :] = -math.inf
        return log_probabilities

    def select(self, rows: Tensor) -> None:
        """Row i of the next step goes on from row `rows[i]` of this one."""
        self._cache = self._cache.select(rows)

    def first_ids(self, num_rows: int) -> Tensor:
        """bos for each row."""
        return torch.full((num_rows,), BOS_ID, device=self._cache.source_mask.device)


@dataclass(kw_only=True)
class _Partial:
    """A hypothesis on its way."""

    sentence: int
    """Position of its sentence in the batch."""
    ids: list[int]
    """Target ids so far."""
    log_probability: float
    """Sum of their log-probabilities."""

    def finish(self, is_complete: bool) -> Hypothesis:
        return Hypothesis(ids=self.ids, log_probability=self.log_probability, is_complete=is_complete)


def _greedy(step: _Step, max_lengths: list[int]) -> list[Hypothesis]:
    """The likeliest token at each step, until eos or the sentence's own maximum."""
    running = [_Partial(sentence=i, ids=[], log_probability=0.0) for i in range(len(max_lengths))]
    done: dict[int, Hypothesis] = {}
    last_ids = step.first_ids(len(running))  # [R]
    while running:
        best = step.log_probabilities(last_ids).max(dim=-1)  # [R]
        last_ids = best.indices
        staying: list[int] = []
        for row, (partial, token_id, log_probability) in enumerate(
            zip(running, best.indices.tolist(), best.values.tolist(), strict=True)
        ):
            partial.log_probability += log_probability
            if token_id == EOS_ID:
                done[partial.sentence] = partial.finish(True)
                continue
            partial.ids.append(token_id)
            if len(partial.ids) >= max_lengths[partial.sentence]:
                done[partial.sentence] = partial.finish(False)
            else:
                staying.append(row)
        if len(staying) < len(running):
            running = [running[row] for row in staying]
            rows = torch.tensor(staying, device=last_ids.device, dtype=torch.int64)
            last_ids = last_ids[rows]
            step.select(rows)
    return [done[i] for i in range(len(max_lengths))]


def _beam(step: _Step, max_lengths: list[int], options: DecodeOptions) -> list[Hypothesis]:
    """Beam search: a sentence is done when `beam_size` of its hypotheses ended among the best, or at its maximum.

    Of the 2 × beam_size best continuations those that end count only among the first beam_size (as in fairseq); the
    first beam_size that go on are the next beam. With a beam of 1 this is greedy search.
    """
    width = options.beam_size
    beams = [[_Partial(sentence=i, ids=[], log_probability=0.0)] for i in range(len(max_lengths))]
    finished: list[list[Hypothesis]] = [[] for _ in max_lengths]
    last_ids = step.first_ids(len(beams))  # [R]
    while beams:
        log_probabilities = step.log_probabilities(last_ids)  # [R,V]
        best = log_probabilities.topk(min(2 * width, log_probabilities.size(-1)), dim=-1)  # [R,2·width]
        values, token_ids = best.values.tolist(), best.indices.tolist()
        going_on: list[list[_Candidate]] = []
        first_row = 0
        for beam in beams:
            sentence = beam[0].sentence
            rows = range(first_row, first_row + len(beam))
            first_row += len(beam)
            candidates = [
                _Candidate(origin=partial, row=row, token_id=token_id, log_probability=partial.log_probability + value)
                for partial, row in zip(beam, rows, strict=True)
                for token_id, value in zip(token_ids[row], values[row], strict=True)
            ]
            candidates.sort(key=lambda candidate: -candidate.log_probability)
            finished[sentence] += [c.extended().finish(True) for c in candidates[:width] if c.token_id == EOS_ID]
            next_beam = [c for c in candidates[: 2 * width] if c.token_id != EOS_ID][:width]
            if len(finished[sentence]) >= width:
                continue
            if len(beam[0].ids) + 1 >= max_lengths[sentence]:
                finished[sentence] += [candidate.extended().finish(False) for candidate in next_beam]
                continue
            going_on.append(next_beam)
        beams = [[candidate.extended() for candidate in next_beam] for next_beam in going_on]
        if beams:
            chosen = [candidate for next_beam in going_on for candidate in next_beam]
            step.select(torch.tensor([candidate.row for candidate in chosen], device=last_ids.device))
            last_ids = torch.tensor([candidate.token_id for candidate in chosen], device=last_ids.device)  # [R]
    return [_best(hypotheses, options.length_penalty) for hypotheses in finished]


@dataclass(frozen=True, slots=True, kw_only=True)
class _Candidate:
    """One continuation of one hypothesis."""

    origin: _Partial
    """The hypothesis it goes on from."""
    row: int
    """That hypothesis's row in the step just made."""
    token_id: int
    """The token it adds."""
    log_probability: float
    """Sum of the log-probabilities, this token's included."""

    def extended(self) -> _Partial:
        """The hypothesis with the token; eos is not part of the ids."""
        ids = self.origin.ids if self.token_id == EOS_ID else [*self.origin.ids, self.token_id]
        return _Partial(sentence=self.origin.sentence, ids=ids, log_probability=self.log_probability)


def _best(hypotheses: list[Hypothesis], length_penalty: float) -> Hypothesis:
    """The best by penalized score; one that reached eos goes before one that was cut."""
    return max(hypotheses, key=lambda hypothesis: (hypothesis.is_complete, hypothesis.score(length_penalty)))


def _penalty(length: int, alpha: float) -> float:
    return float(((5 + length) / 6) ** alpha)
