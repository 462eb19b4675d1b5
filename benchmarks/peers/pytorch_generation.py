"""Cached generation with the trained PyTorch model, a batch at a time: greedy search and beam search on tensors.

`training.decode` is the readable one. This one is made to be fast, as a peer should be: it goes by sentences a batch,
searches all beams of a batch in one `topk`, drops the rows of finished sentences, reorders only what has moved of the
self-attention's cache, and lets the cache grow. Beams are searched as docs/decoding.md says, with length penalty 1 and
patience 1. Axes: see `training/model.py`; R rows, N sentences, K beams.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from service.tokenizer import BOS_ID, PAD_ID
from training.model import DecoderCache, Transformer

FIRST_POSITIONS = 32
"""Room of a new cache; it doubles when it is full."""

Node = tuple["Node | None", int]
"""A hypothesis: what it goes on from, and its last token."""


@dataclass(frozen=True, kw_only=True)
class Generation:
    """How a batch is generated."""

    beam_size: int
    """Hypotheses kept; 1 is greedy search."""
    max_tokens: int
    """The most target tokens, end of sentence included."""
    end_id: int
    """The token that ends a target; one that is never predicted forces the length."""
    num_tokens: int
    """Tokens of the vocabulary; the model's V may be that rounded up."""


@dataclass(kw_only=True)
class _Beam:
    """One sentence of a beam search."""

    sentence: int
    """Its place in the batch."""
    open: list[Node | None]
    """The open hypotheses, in their order."""
    ended: list[tuple[float, list[int]]] = field(default_factory=list)
    """Normalized score and ids of the ended ones, end of sentence included."""


@torch.inference_mode()
def generate(
    model: Transformer, sources: Sequence[Sequence[int]], generation: Generation, *, batch_size: int
) -> list[list[int]]:
    """The best target of each source, end of sentence not included; sentences of like length make a batch.

    Args:
        sources: token ids, end of sentence included.
        batch_size: sentences decoded together.
    """
    order = sorted(range(len(sources)), key=lambda index: -len(sources[index]))
    targets: list[list[int]] = [[] for _ in sources]
    for first in range(0, len(order), batch_size):
        batch = order[first : first + batch_size]
        lengths = torch.tensor([len(sources[index]) for index in batch])  # [N]
        source_ids = torch.full((len(batch), int(lengths.max())), PAD_ID)  # [N,S]
        for row, index in enumerate(batch):
            source_ids[row, : len(sources[index])] = torch.tensor(sources[index])
        encoded = model.encode(source_ids, lengths)  # [N,S,D]
        cache = model.start_cache(encoded, lengths, min(FIRST_POSITIONS, generation.max_tokens))
        search = _greedy if generation.beam_size == 1 else _beam
        for index, target in zip(batch, search(model, cache, generation), strict=True):
            targets[index] = target[:-1] if target[-1] == generation.end_id else target
    return targets


def _greedy(model: Transformer, cache: DecoderCache, generation: Generation) -> list[list[int]]:
    num_sentences = cache.source_mask.size(0)
    targets: list[list[int]] = [[] for _ in range(num_sentences)]
    running = list(range(num_sentences))
    last_ids = torch.full((num_sentences,), BOS_ID)  # [R]
    for position in range(generation.max_tokens):
        last_ids = _logits(model, cache, last_ids, generation).argmax(dim=-1)  # [R]
        taken = last_ids.tolist()
        for sentence, token_id in zip(running, taken, strict=True):
            targets[sentence].append(token_id)
        staying = [row for row, token_id in enumerate(taken) if token_id != generation.end_id]
        if not staying or position + 1 == generation.max_tokens:
            break
        if len(staying) < len(running):
            running = [running[row] for row in staying]
            rows = torch.tensor(staying)
            last_ids = last_ids[rows]
            _keep(cache, rows)
    return targets


def _beam(model: Transformer, cache: DecoderCache, generation: Generation) -> list[list[int]]:
    size, end_id = generation.beam_size, generation.end_id
    num_sentences = cache.source_mask.size(0)
    done: list[list[int]] = [[] for _ in range(num_sentences)]
    beams = [_Beam(sentence=sentence, open=[None] * size) for sentence in range(num_sentences)]
    _keep(cache, torch.arange(num_sentences).repeat_interleave(size))  # [N*K] rows
    last_ids = torch.full((num_sentences * size,), BOS_ID)  # [R]
    scores = torch.full((num_sentences, size), -torch.inf)  # [N,K]
    scores[:, 0] = 0.0  # one empty hypothesis
    for length in range(1, generation.max_tokens + 1):
        log_probabilities = _logits(model, cache, last_ids, generation).log_softmax(dim=-1)  # [R,V]
        totals = log_probabilities.view(len(beams), size, -1).add_(scores[:, :, None])  # [N,K,V]
        vocabulary = totals.size(-1)
        best = totals.flatten(1).topk(2 * size, dim=-1)  # [N,2K]
        rows: list[int] = []
        next_ids: list[int] = []
        next_scores: list[list[float]] = []
        staying: list[_Beam] = []
        for place, (beam, totals_of, flat_of) in enumerate(
            zip(beams, best.values.tolist(), best.indices.tolist(), strict=True)
        ):
            children: list[tuple[int, int, float]] = []
            for rank, (total, flat) in enumerate(zip(totals_of, flat_of, strict=True)):
                parent, token_id = divmod(flat, vocabulary)
                if token_id == end_id or length == generation.max_tokens:
                    if rank < size and total > -torch.inf:
                        beam.ended.append((total / length, _ids((beam.open[parent], token_id))))
                elif len(children) < size:
                    children.append((parent, token_id, total))
            is_over = not children or len(beam.ended) >= size
            if beam.ended and children and max(beam.ended)[0] >= children[0][2] / generation.max_tokens:
                is_over = True  # no open hypothesis can pass it
            if is_over:
                done[beam.sentence] = max(beam.ended, key=lambda ended: ended[0])[1]
                continue
            beam.open = [(beam.open[parent], token_id) for parent, token_id, _ in children]
            staying.append(beam)
            rows += [place * size + parent for parent, _, _ in children]
            next_ids += [token_id for _, token_id, _ in children]
            next_scores.append([total for _, _, total in children])
        if not staying:
            break
        if len(staying) < len(beams):
            _keep(cache, torch.tensor(rows))
        elif rows != list(range(len(rows))):
            _reorder(cache, torch.tensor(rows))
        beams = staying
        last_ids = torch.tensor(next_ids)  # [R]
        scores = torch.tensor(next_scores)  # [N,K]
    return done


def _ids(node: Node | None) -> list[int]:
    """A hypothesis's tokens."""
    ids: list[int] = []
    while node is not None:
        node, token_id = node
        ids.append(token_id)
    return ids[::-1]


def _logits(model: Transformer, cache: DecoderCache, last_ids: Tensor, generation: Generation) -> Tensor:
    """The next token's logits [R,V] after `last_ids` [R]; what is no text is at -inf."""
    if cache.length == cache.max_length:
        _grow(cache, min(2 * cache.max_length, generation.max_tokens))
    logits = model.project(model.decode_step(last_ids.unsqueeze(1), cache).squeeze(1))  # [R,V]
    logits[:, PAD_ID] = -torch.inf
    logits[:, BOS_ID] = -torch.inf
    logits[:, generation.num_tokens :] = -torch.inf
    return logits


def _grow(cache: DecoderCache, max_length: int) -> None:
    """Room for more positions."""
    for layer in cache.layers:
        for name in ("self_keys", "self_values"):
            old: Tensor = getattr(layer, name)  # [R,H,M,K]
            new = old.new_empty(*old.shape[:2], max_length, old.shape[3])
            new[:, :, : cache.length] = old[:, :, : cache.length]
            setattr(layer, name, new)
    cache.max_length = max_length


def _keep(cache: DecoderCache, rows: Tensor) -> None:
    """Row i becomes what row `rows[i]` was, of whatever sentence."""
    kept = cache.select(rows)
    cache.layers, cache.source_mask = kept.layers, kept.source_mask


def _reorder(cache: DecoderCache, rows: Tensor) -> None:
    """The same for beams that move within their sentence: the source's keys and values are alike."""
    for layer in cache.layers:
        for states in (layer.self_keys, layer.self_values):
            states[:, :, : cache.length] = states[rows, :, : cache.length]
