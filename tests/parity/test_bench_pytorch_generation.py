"""The PyTorch peer's generation against the plain reference: as fast as it is made, it must find the same targets."""

from __future__ import annotations

import random

import pytest
import torch

from benchmarks.peers.pytorch_generation import FIRST_POSITIONS, Generation, generate
from service.options import DecodingOptions
from service.tokenizer import BOS_ID, EOS_ID, PAD_ID
from tests.parity.reference_search import search_together, start_search
from tests.parity.reference_transformer import ReferenceTransformer
from training.config import ModelConfig
from training.model import Transformer

NUM_TOKENS = 29
NO_TOKEN = -1


@pytest.fixture(scope="module")
def model() -> Transformer:
    """A tiny model of random weights whose targets end now and then; V is the vocabulary rounded up."""
    torch.manual_seed(5)
    config = ModelConfig(
        width=16,
        heads=2,
        feed_forward=32,
        encoder_layers=1,
        decoder_layers=2,
        source_vocab_size=32,
        target_vocab_size=32,
        tied_projection=False,
        max_positions=96,
    )
    made = Transformer(config).eval()
    with torch.no_grad():
        made.projection.weight.normal_(std=0.5)
    return made


@pytest.fixture(scope="module")
def sources() -> list[tuple[int, ...]]:
    generator = random.Random(3)
    return [(*(generator.randrange(4, NUM_TOKENS) for _ in range(generator.randint(1, 12))), EOS_ID) for _ in range(24)]


@pytest.mark.parametrize("beam_size", [1, 2, 4])
@pytest.mark.parametrize("batch_size", [1, 5, 64])
def test_finds_what_the_reference_finds(
    model: Transformer, sources: list[tuple[int, ...]], beam_size: int, batch_size: int
) -> None:
    most = 20
    options = DecodingOptions(beam_size=beam_size, max_target_tokens=most, guards_repetition=False)
    reference = ReferenceTransformer(model, target_tokens=NUM_TOKENS, alignment_layer=-1)
    found = search_together(reference.predict, [(source, start_search(options)) for source in sources])
    expected = [one.hypotheses[0] for one in found]
    assert {one.finish_reason for one in expected} == {"stop", "length"}  # both ends occur
    generation = Generation(beam_size=beam_size, max_tokens=most, end_id=EOS_ID, num_tokens=NUM_TOKENS)
    targets = generate(model, sources, generation, batch_size=batch_size)
    assert targets == [
        [token_id for token_id in one.target_ids if token_id != EOS_ID] for one in expected
    ]  # fmt: skip


@pytest.mark.parametrize("beam_size", [1, 4])
def test_forced_targets_all_have_the_length_whatever_the_cache_began_with(
    model: Transformer, sources: list[tuple[int, ...]], beam_size: int
) -> None:
    length = 2 * FIRST_POSITIONS + 3
    generation = Generation(beam_size=beam_size, max_tokens=length, end_id=NO_TOKEN, num_tokens=NUM_TOKENS)
    targets = generate(model, sources, generation, batch_size=6)
    assert {len(target) for target in targets} == {length}


def test_a_cache_that_has_grown_holds_what_it_held(model: Transformer, sources: list[tuple[int, ...]]) -> None:
    length = 2 * FIRST_POSITIONS + 3
    generation = Generation(beam_size=1, max_tokens=length, end_id=NO_TOKEN, num_tokens=NUM_TOKENS)
    (target,) = generate(model, sources[:1], generation, batch_size=1)
    with torch.no_grad():
        lengths = torch.tensor([len(sources[0])])
        hidden = model(torch.tensor([sources[0]]), lengths, torch.tensor([[BOS_ID, *target[:-1]]]))  # [1,T,D]
        logits = model.project(hidden)[0]  # [T,V]
    logits[:, [PAD_ID, BOS_ID]] = -torch.inf
    logits[:, NUM_TOKENS:] = -torch.inf
    assert logits.argmax(dim=-1).tolist() == target
