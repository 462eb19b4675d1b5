"""Decoding agrees with plainer ways to the same result: no cache, one sentence at a time, every target written out."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch

from service.tokenizer import BOS_ID, EOS_ID, PAD_ID
from tests.synthetic.toy_language import make_tokenizer, sentence_pairs
from training.config import ModelConfig
from training.decode import DecodeOptions, Hypothesis, decode, translate
from training.model import Transformer

VOCAB_SIZE = 7  # pad, unk, bos, eos and three words


def make_model(
    vocab_size: int = VOCAB_SIZE, seed: int = 0, max_positions: int = 64, eos_leaning: float = 1.0
) -> Transformer:
    """A random model; `eos_leaning` is added to the logit of eos: by 1 some targets end and some do not."""
    torch.manual_seed(seed)
    config = ModelConfig(
        width=16,
        heads=2,
        feed_forward=32,
        encoder_layers=1,
        decoder_layers=2,
        source_vocab_size=vocab_size,
        target_vocab_size=vocab_size,
        shared_embeddings=False,
        tied_projection=False,
        dropout=0.5,  # decoding must not drop anything
        max_positions=max_positions,
    )
    model = Transformer(config)
    torch.nn.init.normal_(model.projection.weight, std=1.5 / 4)  # wide enough that no two candidates tie
    with torch.no_grad():
        for parameter in [*model.encoder.parameters(), *model.decoder.parameters()]:
            if parameter.dim() == 2:
                parameter.mul_(2)  # so that the context counts and targets differ
        eos = model.projection.weight[EOS_ID]
        model.decoder.norm.bias.copy_(eos_leaning * eos / eos.dot(eos))
    return model


def make_sources(count: int, vocab_size: int = VOCAB_SIZE, seed: int = 0) -> list[list[int]]:
    generator = torch.Generator().manual_seed(seed)
    lengths = torch.randint(1, 8, (count,), generator=generator).tolist()
    return [[*torch.randint(4, vocab_size, (length,), generator=generator).tolist(), EOS_ID] for length in lengths]


@torch.no_grad()
def target_log_probability(model: Transformer, source: Sequence[int], target: Sequence[int]) -> float:
    """Log-probability of `target` by one full pass."""
    model.eval()
    ids, lengths = torch.tensor([source]), torch.tensor([len(source)])
    inputs = torch.tensor([[BOS_ID, *target[:-1]]])
    logits = model.project(model.decode(inputs, model.encode(ids, lengths), lengths))[0].double()
    log_probabilities = logits.log_softmax(-1)
    return float(log_probabilities[range(len(target)), list(target)].sum())


@torch.no_grad()
def greedy_by_full_passes(model: Transformer, source: Sequence[int], max_length: int) -> list[int]:
    """Greedy search that runs the whole decoder anew for each token."""
    model.eval()
    ids, lengths = torch.tensor([source]), torch.tensor([len(source)])
    encoded = model.encode(ids, lengths)
    target: list[int] = []
    while len(target) < max_length:
        logits = model.project(model.decode(torch.tensor([[BOS_ID, *target]]), encoded, lengths))[0, -1]
        logits[[PAD_ID, BOS_ID]] = -torch.inf
        token_id = int(logits.argmax())
        if token_id == EOS_ID:
            break
        target.append(token_id)
    return target


def targets(hypothesis: Hypothesis) -> list[int]:
    return [*hypothesis.ids, EOS_ID] if hypothesis.is_complete else hypothesis.ids


@pytest.mark.parametrize("beam_size", [1, 3])
def test_a_hypothesis_carries_the_probability_of_its_target(beam_size: int) -> None:
    model, sources = make_model(), make_sources(20)
    hypotheses = decode(model, sources, DecodeOptions(beam_size=beam_size, max_length_extra=4))
    assert {hypothesis.is_complete for hypothesis in hypotheses} == {True, False}
    for source, hypothesis in zip(sources, hypotheses, strict=True):
        expected = target_log_probability(model, source, targets(hypothesis))
        assert hypothesis.log_probability == pytest.approx(expected, abs=1e-4)


def test_cached_greedy_equals_greedy_by_full_passes() -> None:
    model, sources = make_model(), make_sources(30)
    hypotheses = decode(model, sources, DecodeOptions(max_length_factor=1.0, max_length_extra=5))
    assert [h.ids for h in hypotheses] == [greedy_by_full_passes(model, source, len(source) + 5) for source in sources]
    assert len({tuple(h.ids) for h in hypotheses}) > 10  # the model says different things


def test_a_beam_of_one_is_greedy(monkeypatch: pytest.MonkeyPatch) -> None:
    model, sources = make_model(), make_sources(30)
    greedy = decode(model, sources)
    monkeypatch.setattr("training.decode._greedy", None)
    monkeypatch.setattr("training.decode._decode_batch", _beam_batch)
    assert decode(model, sources) == greedy


def _beam_batch(
    model: Transformer, sources: list[Sequence[int]], options: DecodeOptions, vocab_size: int | None
) -> list[Hypothesis]:
    """`_decode_batch` with beam search whatever the beam's size."""
    from training import decode as module

    lengths = torch.tensor([len(source) for source in sources])
    ids = torch.nn.utils.rnn.pad_sequence([torch.tensor(source) for source in sources], batch_first=True)
    max_lengths = [2 * len(source) + 20 for source in sources]
    step = module._Step(model, model.encode(ids, lengths), lengths, max(max_lengths), vocab_size)
    return module._beam(step, max_lengths, options)


@pytest.mark.parametrize("beam_size", [1, 4])
def test_sentences_decode_together_as_they_do_alone(beam_size: int) -> None:
    model, sources = make_model(seed=3), make_sources(25, seed=4)
    together = decode(model, sources, DecodeOptions(beam_size=beam_size))
    few = decode(model, sources, DecodeOptions(beam_size=beam_size, batch_tokens=40))
    alone = [decode(model, [source], DecodeOptions(beam_size=beam_size))[0] for source in sources]
    for others in (few, alone):
        assert [h.ids for h in together] == [h.ids for h in others]
        expected = [h.log_probability for h in others]
        assert [h.log_probability for h in together] == pytest.approx(expected, abs=1e-4)


@pytest.mark.parametrize("length_penalty", [0.0, 0.6, 2.0])
def test_a_beam_as_wide_as_the_space_finds_the_best_target(length_penalty: float) -> None:
    model, sources = make_model(), make_sources(6)
    words = [token_id for token_id in range(1, VOCAB_SIZE) if token_id not in (BOS_ID, EOS_ID)]
    max_length = 3  # eos counts among the tokens
    options = DecodeOptions(
        beam_size=100, length_penalty=length_penalty, max_length_factor=0.0, max_length_extra=max_length
    )
    for source, hypothesis in zip(sources, decode(model, sources, options), strict=True):
        complete = [[*ids, EOS_ID] for length in range(max_length) for ids in itertools.product(words, repeat=length)]

        def penalized(target: list[int], source: Sequence[int] = source) -> float:
            return target_log_probability(model, source, target) / ((5 + len(target)) / 6) ** length_penalty

        assert targets(hypothesis) == max(complete, key=penalized)
        assert hypothesis.score(length_penalty) == pytest.approx(penalized(targets(hypothesis)), abs=1e-4)


def test_a_wider_beam_finds_likelier_targets() -> None:
    model, sources = make_model(40, eos_leaning=-50.0), make_sources(30, 40)
    greedy, beam = (decode(model, sources, DecodeOptions(beam_size=size, max_length_extra=0)) for size in (1, 3))
    assert [len(h.ids) for h in beam] == [len(h.ids) for h in greedy]  # none ends: the lengths are the same
    gains = [b.log_probability - g.log_probability for g, b in zip(greedy, beam, strict=True)]
    assert sum(gain > 1e-3 for gain in gains) > 10 * sum(gain < -1e-3 for gain in gains)


def test_a_target_that_does_not_end_is_cut_at_its_own_maximum() -> None:
    model, sources = make_model(eos_leaning=-50.0), make_sources(12)
    for beam_size in (1, 3):
        options = DecodeOptions(beam_size=beam_size, max_length_factor=1.0, max_length_extra=3)
        for source, hypothesis in zip(sources, decode(model, sources, options), strict=True):
            assert not hypothesis.is_complete
            assert len(hypothesis.ids) == len(source) + 3


def test_the_models_positions_bound_a_target_and_a_source() -> None:
    model = make_model(max_positions=9)
    hypotheses = decode(model, make_sources(12), DecodeOptions(max_length_extra=1000))
    assert max(len(h.ids) for h in hypotheses) == 9
    with pytest.raises(ValueError, match="at most 9 tokens, but has 10"):
        decode(model, [[4] * 9 + [EOS_ID]])


def test_rows_of_the_model_beyond_the_tokenizer_are_never_chosen() -> None:
    model, sources = make_model(), make_sources(12)
    with torch.no_grad():
        model.projection.weight[VOCAB_SIZE - 1] *= 50  # by far the likeliest, wherever it is positive
    assert any(VOCAB_SIZE - 1 in h.ids for h in decode(model, sources))
    for beam_size in (1, 3):
        options = DecodeOptions(beam_size=beam_size)
        hypotheses = decode(model, sources, options, target_vocab_size=VOCAB_SIZE - 1)
        assert not any(VOCAB_SIZE - 1 in h.ids for h in hypotheses)


def test_translate_keeps_order_and_leaves_blank_text_blank(tmp_path: Path) -> None:
    tokenizer = make_tokenizer(tmp_path / "tokenizer")
    model = make_model(384)
    texts = ["", *(pair.source for pair in sentence_pairs(5)), " \n", "file", ""]
    translations = translate(model, tokenizer, texts)
    assert len(translations) == len(texts)
    assert [translations[i] for i in (0, 6, 8)] == ["", "", ""]
    alone = [translate(model, tokenizer, [text])[0] for text in texts]
    assert translations == alone
    assert translate(model, tokenizer, []) == []


def test_decoding_leaves_the_model_in_its_mode() -> None:
    model = make_model()
    for mode in (True, False):
        model.train(mode)
        decode(model, make_sources(2))
        assert model.training is mode
