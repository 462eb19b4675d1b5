"""Batches lose and repeat no pair, keep to their budget, and are the same whenever they are drawn again."""

from __future__ import annotations

import dataclasses
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from service.tokenizer import BOS_ID, EOS_ID, PAD_ID
from tests.synthetic.toy_language import sentence_pairs
from training.config import Config, CorpusConfig, DataConfig, FilterConfig, TokenizerConfig, TrainConfig
from training.data import Batch, PreparedData, make_batch, shift_for_teacher_forcing
from training.prepare import prepare

NUM_FIRST, NUM_SECOND = 300, 40
WEIGHTS = {"first": 1.0, "second": 2.5}


def write_pairs(path: Path, start: int, count: int) -> None:
    """Every pair has its own number, so that each can be told from the rest."""
    pairs = sentence_pairs(count, seed=start)
    lines = [f"{start + i} {pair.source}\t{start + i} {pair.target}\n" for i, pair in enumerate(pairs)]
    path.write_text("".join(lines), encoding="utf-8")


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> PreparedData:
    root = tmp_path_factory.mktemp("batches")
    write_pairs(root / "first.tsv", 1000, NUM_FIRST)
    write_pairs(root / "second.tsv", 5000, NUM_SECOND)
    write_pairs(root / "dev.tsv", 8000, 30)
    config = Config(
        name="batches",
        data=DataConfig(
            source_language="en",
            target_language="zh",
            corpora=tuple(CorpusConfig(name=n, tsv=(f"{n}.tsv",), weight=w) for n, w in WEIGHTS.items()),
            validation=(CorpusConfig(name="dev", tsv=("dev.tsv",)),),
            filters=FilterConfig(drop_duplicates=False),
            sort_chunk_pairs=100,
        ),
        tokenizer=TokenizerConfig(vocab_size=380, character_coverage=1.0),
        train=TrainConfig(max_updates=1),
    )
    prepare(config, root / "run", root=root, say=lambda _: None)
    return PreparedData.open(root / "run")


def sources_of(data: PreparedData, batch: Batch) -> list[str]:
    rows = zip(batch.source_ids.tolist(), batch.source_lengths.tolist(), strict=True)
    return [data.tokenizer.decode_source(row[:length]) for row, length in rows]


def numbers_of(data: PreparedData, batches: list[Batch]) -> list[int]:
    return [int(source.split()[0]) for batch in batches for source in sources_of(data, batch)]


def equal(left: Batch, right: Batch) -> bool:
    """Whether two batches agree in every tensor."""
    tensors = [field.name for field in dataclasses.fields(Batch) if field.name != "num_target_tokens"]
    return all(torch.equal(getattr(left, name), getattr(right, name)) for name in tensors)


@given(target=st.lists(st.integers(4, 100), max_size=20))
def test_teacher_forcing_shifts_by_one(target: list[int]) -> None:
    inputs, outputs = shift_for_teacher_forcing(target)
    assert inputs.tolist() == [BOS_ID, *target]
    assert outputs.tolist() == [*target, EOS_ID]
    assert inputs[1:].tolist() == outputs[:-1].tolist()  # at each position the answer is what comes next


@given(
    lengths=st.lists(st.tuples(st.integers(1, 12), st.integers(0, 12)), min_size=1, max_size=6),
    multiple=st.sampled_from([1, 8]),
)
def test_a_batch_holds_its_rows_and_padding_only(lengths: list[tuple[int, int]], multiple: int) -> None:
    sources = [np.arange(4, 4 + source) for source, _ in lengths]
    targets = [np.arange(50, 50 + target) for _, target in lengths]
    batch = make_batch(sources, targets, length_multiple=multiple)
    assert batch.source_ids.shape[1] % multiple == batch.target_input_ids.shape[1] % multiple == 0
    assert batch.source_ids.shape[1] - max(source for source, _ in lengths) < multiple
    for row, (source, target) in enumerate(zip(sources, targets, strict=True)):
        assert batch.source_lengths[row] == len(source)
        assert [i for i in batch.source_ids[row].tolist() if i != PAD_ID] == source.tolist()
        assert batch.source_ids[row, : len(source)].tolist() == source.tolist()
        inputs, outputs = shift_for_teacher_forcing(target)
        assert batch.target_input_ids[row, : len(inputs)].tolist() == inputs.tolist()
        assert batch.target_output_ids[row, : len(outputs)].tolist() == outputs.tolist()
    assert batch.num_target_tokens == int((batch.target_output_ids != PAD_ID).sum())
    assert batch.num_rows == len(lengths)


@given(epoch=st.integers(0, 3), seed=st.integers(0, 3), batch_tokens=st.integers(20, 600))
def test_an_epoch_has_every_pair_as_often_as_its_weight_says(
    data: PreparedData, epoch: int, seed: int, batch_tokens: int
) -> None:
    batches = list(data.train_batches(epoch, seed, batch_tokens))
    counts = Counter(numbers_of(data, batches))
    first, second = ({n: c for n, c in counts.items() if (n < 5000) == is_first} for is_first in (True, False))
    assert set(first) == set(range(1000, 1000 + NUM_FIRST))
    assert set(first.values()) == {1}
    assert set(second) == set(range(5000, 5000 + NUM_SECOND))
    assert set(second.values()) == {2, 3}
    assert sum(second.values()) == 2.5 * NUM_SECOND
    for batch in batches:
        longer = max(batch.source_ids.shape[1], batch.target_input_ids.shape[1])
        assert batch.num_rows * longer <= batch_tokens or batch.num_rows == 1


@given(
    epoch=st.integers(0, 2), batch_tokens=st.integers(60, 400), world_size=st.integers(1, 4), start=st.integers(0, 9)
)
def test_processes_share_an_epoch_and_resume_anywhere(
    data: PreparedData, epoch: int, batch_tokens: int, world_size: int, start: int
) -> None:
    alone = list(data.train_batches(epoch, 1, batch_tokens))
    shares = [list(data.train_batches(epoch, 1, batch_tokens, rank, world_size)) for rank in range(world_size)]
    assert {len(share) for share in shares} == {len(alone) // world_size}
    assert data.num_train_batches(epoch, 1, batch_tokens, world_size) == len(alone) // world_size
    joined = [batch for group in zip(*shares, strict=True) for batch in group]
    assert all(equal(left, right) for left, right in zip(joined, alone, strict=False))
    rest = list(data.train_batches(epoch, 1, batch_tokens, world_size - 1, world_size, start_batch=start))
    assert len(rest) == max(0, len(shares[-1]) - start)
    assert all(equal(left, right) for left, right in zip(rest, shares[-1][start:], strict=True))


def test_another_epoch_or_seed_is_another_order(data: PreparedData) -> None:
    orders = [numbers_of(data, list(data.train_batches(*key, 300))) for key in ((0, 1), (1, 1), (0, 2), (0, 1))]
    assert orders[0] == orders[3]
    assert orders[0] != orders[1]
    assert orders[0] != orders[2]


def test_pairs_are_mixed_before_they_are_cut_into_chunks(data: PreparedData) -> None:
    order = data.epoch_indices(0, 1)
    chunk = order[: data.report.sort_chunk_pairs]
    assert (chunk >= NUM_FIRST).any()  # the second corpus is not kept for the end
    assert (chunk < NUM_FIRST).any()
    assert (data.epoch_indices(1, 1)[: len(chunk)] != chunk).any()


def test_batches_are_not_in_the_order_of_length(data: PreparedData) -> None:
    widths = [batch.source_ids.shape[1] for batch in data.train_batches(0, 1, 300)]
    assert widths != sorted(widths)


def test_pairs_of_like_length_stand_together(data: PreparedData) -> None:
    batches = list(data.train_batches(0, 1, 300))
    positions = sum(batch.source_ids.numel() for batch in batches)
    assert sum(int(batch.source_lengths.sum()) for batch in batches) > 0.8 * positions


def test_validation_batches_hold_every_pair_once(data: PreparedData) -> None:
    numbers = numbers_of(data, list(data.validation_batches("dev", 200)))
    assert sorted(numbers) == list(range(8000, 8030))
    texts = data.validation_texts("dev")
    assert [int(pair.source.split()[0]) for pair in texts] == list(range(8000, 8030))


def test_source_and_target_of_a_row_belong_together(data: PreparedData) -> None:
    for batch in data.train_batches(0, 1, 200):
        for source, row in zip(sources_of(data, batch), batch.target_output_ids.tolist(), strict=True):
            assert data.tokenizer.decode_target(row).split()[0] == source.split()[0]


def test_vocabularies_are_rounded_up_to_a_multiple_of_8(data: PreparedData) -> None:
    assert data.tokenizer.source_vocab_size == 380
    assert (data.source_vocab_size, data.target_vocab_size) == (384, 384)
