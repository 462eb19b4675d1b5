"""Prepared sentence pairs as memory-mapped arrays, and the batches drawn from them.

A split (`prepared/train`, `prepared/validation/NAME`) is four arrays: the ids of all sources end to end, where each
source ends, and the same for the targets. They stay on disk, so a corpus may be larger than memory; what is held a
pair is its place in the order of an epoch (8 bytes).
"""

from __future__ import annotations

import json
import math
from array import array
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch

from service.tokenizer import BOS_ID, EOS_ID, PAD_ID, Tokenizer
from training.corpus import SentencePair
from training.prepare_report import PrepareReport

IntArray = npt.NDArray[np.int64]

PREPARED_NAME = "prepared"
REPORT_NAME = "prepare.json"
TOKENIZER_NAME = "tokenizer"
VOCAB_MULTIPLE = 8


@dataclass(frozen=True, kw_only=True)
class Batch:
    """Sentence pairs padded to one rectangle a side; padding is PAD_ID (0). Axes: see `training/model.py`."""

    source_ids: torch.Tensor
    """int64 [B,S]: source tokens, eos at the end."""
    source_lengths: torch.Tensor
    """int64 [B]: tokens of each source, eos included."""
    target_input_ids: torch.Tensor
    """int64 [B,T]: what the decoder reads, bos, y1 … yn."""
    target_output_ids: torch.Tensor
    """int64 [B,T]: what the decoder must predict at the same positions, y1 … yn, eos."""
    num_target_tokens: int
    """Positions that count in the loss: the tokens of all targets, eos included."""

    @property
    def num_rows(self) -> int:
        """B, the sentence pairs of the batch."""
        return int(self.source_ids.shape[0])


def shift_for_teacher_forcing(target: Sequence[int] | IntArray) -> tuple[IntArray, IntArray]:
    """The decoder's input and output for the target y1 … yn: (bos, y1 … yn) and (y1 … yn, eos).

    At each position the decoder sees the right answer up to there and must give the next token ("shifted right",
    section 3.1 of the paper). This is the only place where the two are put against each other.
    """
    tokens = np.asarray(target, dtype=np.int64)
    return np.concatenate(([BOS_ID], tokens)), np.concatenate((tokens, [EOS_ID]))


def make_batch(sources: Sequence[IntArray], targets: Sequence[IntArray], *, length_multiple: int = 1) -> Batch:
    """Pads sources (eos included) and targets (without bos and eos) to a Batch.

    Args:
        length_multiple: S and T are rounded up to a multiple of this.
    """
    num_rows = len(sources)
    width_source = _round_up(max(len(source) for source in sources), length_multiple)
    width_target = _round_up(max(len(target) for target in targets) + 1, length_multiple)
    source_ids = np.full((num_rows, width_source), PAD_ID, dtype=np.int64)
    inputs = np.full((num_rows, width_target), PAD_ID, dtype=np.int64)
    outputs = np.full((num_rows, width_target), PAD_ID, dtype=np.int64)
    for row, (source, target) in enumerate(zip(sources, targets, strict=True)):
        source_ids[row, : len(source)] = source
        row_input, row_output = shift_for_teacher_forcing(target)
        inputs[row, : len(row_input)] = row_input
        outputs[row, : len(row_output)] = row_output
    return Batch(
        source_ids=torch.from_numpy(source_ids),
        source_lengths=torch.tensor([len(source) for source in sources], dtype=torch.int64),
        target_input_ids=torch.from_numpy(inputs),
        target_output_ids=torch.from_numpy(outputs),
        num_target_tokens=sum(len(target) + 1 for target in targets),
    )


class SplitWriter:
    """Writes one split pair by pair, in constant memory but for the offsets."""

    def __init__(self, directory: Path, source_vocab_size: int, target_vocab_size: int) -> None:
        directory.mkdir(parents=True)
        self._directory = directory
        self._dtypes = (_id_type(source_vocab_size), _id_type(target_vocab_size))
        self._files = [(directory / f"{side}.ids").open("wb") for side in ("source", "target")]
        self._ends = (array("q", [0]), array("q", [0]))

    def add(self, source: Sequence[int], target: Sequence[int]) -> None:
        """Appends a pair: source ids with eos, target ids without bos and eos."""
        for ids, file, dtype, ends in zip((source, target), self._files, self._dtypes, self._ends, strict=True):
            file.write(np.asarray(ids, dtype=dtype).tobytes())
            ends.append(ends[-1] + len(ids))

    def close(self) -> None:
        """Writes the offsets; the split can be opened from here on."""
        for side, file, dtype, ends in zip(("source", "target"), self._files, self._dtypes, self._ends, strict=True):
            file.close()
            np.save(self._directory / f"{side}.offsets.npy", np.asarray(ends, dtype=np.int64))
            (self._directory / f"{side}.dtype").write_text(np.dtype(dtype).name, encoding="utf-8")


class Split:
    """One prepared split, memory-mapped."""

    def __init__(self, directory: Path) -> None:
        self._source_ids, self._source_offsets = _open_side(directory, "source")
        self._target_ids, self._target_offsets = _open_side(directory, "target")
        if len(self._source_offsets) != len(self._target_offsets):
            raise ValueError(f"{directory} must have as many sources as targets: run `prepare` again.")

    def __len__(self) -> int:
        return len(self._source_offsets) - 1

    def source(self, index: int) -> IntArray:
        """Source ids of a pair, eos included."""
        return self._source_ids[self._source_offsets[index] : self._source_offsets[index + 1]].astype(np.int64)

    def target(self, index: int) -> IntArray:
        """Target ids of a pair, without bos and eos."""
        return self._target_ids[self._target_offsets[index] : self._target_offsets[index + 1]].astype(np.int64)

    def source_lengths(self, indices: IntArray) -> IntArray:
        """Tokens of the sources, eos included."""
        return np.asarray(self._source_offsets[indices + 1] - self._source_offsets[indices])

    def target_lengths(self, indices: IntArray) -> IntArray:
        """Positions the targets take in a batch: their tokens and one for bos or eos."""
        return np.asarray(self._target_offsets[indices + 1] - self._target_offsets[indices] + 1)

    def batch(self, indices: IntArray, length_multiple: int = 1) -> Batch:
        """The pairs of `indices` as a Batch, in that order."""
        sources, targets = [self.source(int(i)) for i in indices], [self.target(int(i)) for i in indices]
        return make_batch(sources, targets, length_multiple=length_multiple)


class PreparedData:
    """What `python -m training prepare` left in a run directory."""

    def __init__(self, directory: Path, report: PrepareReport) -> None:
        self._directory = directory
        self.report = report
        self.tokenizer_directory = directory / TOKENIZER_NAME
        self.tokenizer = Tokenizer.load(self.tokenizer_directory)
        self._train = Split(directory / "train")
        self._validation = {corpus.name: Split(directory / "validation" / corpus.name) for corpus in report.validation}

    @classmethod
    def open(cls, run_directory: str | Path) -> PreparedData:
        """Opens `run_directory/prepared`.

        Raises:
            FileNotFoundError: if the run was not prepared.
            service.tokenizer.TokenizerError: if its tokenizer is damaged.
        """
        directory = Path(run_directory) / PREPARED_NAME
        path = directory / REPORT_NAME
        if not path.is_file():
            raise FileNotFoundError(f"{path} must exist, but does not: run `python -m training prepare` first.")
        return cls(directory, PrepareReport.from_dict(json.loads(path.read_text(encoding="utf-8"))))

    @property
    def source_vocab_size(self) -> int:
        """Rows of the model's source embedding: the source vocabulary rounded up to a multiple of 8."""
        return _round_up(self.tokenizer.source_vocab_size, VOCAB_MULTIPLE)

    @property
    def target_vocab_size(self) -> int:
        """V of the model: the target vocabulary rounded up to a multiple of 8."""
        return _round_up(self.tokenizer.target_vocab_size, VOCAB_MULTIPLE)

    @property
    def num_train_pairs(self) -> int:
        """Distinct training pairs, weights not counted."""
        return len(self._train)

    @property
    def validation_names(self) -> list[str]:
        """Names of the held-out sets, the deciding one first."""
        return list(self._validation)

    def validation_texts(self, name: str) -> list[SentencePair]:
        """The pairs of a held-out set as text, in the order of its file."""
        directory = self._directory / "validation" / name
        sources, targets = (_read_lines(directory / f"{side}.txt") for side in ("source", "target"))
        return [SentencePair(source, target) for source, target in zip(sources, targets, strict=True)]

    def epoch_indices(self, epoch: int, seed: int) -> IntArray:
        """The pairs of an epoch in its order: each as often as its corpus's weight says, shuffled.

        The whole part of a weight repeats the corpus; the fraction adds a sample of it, another one each epoch.
        """
        generator = np.random.default_rng((seed, epoch))
        parts: list[IntArray] = []
        start = 0
        for corpus in self.report.corpora:
            indices = np.arange(start, start + corpus.num_kept, dtype=np.int64)
            start += corpus.num_kept
            whole = math.floor(corpus.weight)
            parts.extend([indices] * whole)
            num_extra = round((corpus.weight - whole) * len(indices))
            parts.append(generator.choice(indices, size=num_extra, replace=False))
        order = np.concatenate(parts)
        generator.shuffle(order)
        return order

    def train_batches(
        self,
        epoch: int,
        seed: int,
        batch_tokens: int,
        rank: int = 0,
        world_size: int = 1,
        *,
        start_batch: int = 0,
    ) -> Iterator[Batch]:
        """The batches of one epoch for one process, the same whenever (seed, epoch) are the same.

        Args:
            batch_tokens: most padded positions of a batch, the longer side counted.
            rank, world_size: this process and how many share the epoch; all get the same number of batches.
            start_batch: batches of this process to pass over, without reading them.
        """
        waiting: list[IntArray] = []
        position = 0
        for indices in self._plan_epoch(epoch, seed, batch_tokens):
            waiting.append(indices)
            if len(waiting) == world_size:  # a last group that is not full is left out
                if position >= start_batch:
                    yield self._train.batch(waiting[rank], self.report.length_multiple)
                position += 1
                waiting.clear()

    def num_train_batches(self, epoch: int, seed: int, batch_tokens: int, world_size: int = 1) -> int:
        """How many batches each process gets from `train_batches`."""
        return sum(1 for _ in self._plan_epoch(epoch, seed, batch_tokens)) // world_size

    def validation_batches(self, name: str, batch_tokens: int) -> Iterator[Batch]:
        """The batches of a held-out set, longest pairs last; every pair occurs once."""
        split = self._validation[name]
        order = _sorted_by_length(split, np.arange(len(split)))
        for indices in cut_batches(split, order, batch_tokens, self.report.length_multiple):
            yield split.batch(indices, self.report.length_multiple)

    def _plan_epoch(self, epoch: int, seed: int, batch_tokens: int) -> Iterator[IntArray]:
        """The pairs of each batch of an epoch: chunks of the shuffled order are sorted by length, cut, and shuffled."""
        order = self.epoch_indices(epoch, seed)
        chunk_size = self.report.sort_chunk_pairs
        for number, start in enumerate(range(0, len(order), chunk_size)):
            chunk = _sorted_by_length(self._train, order[start : start + chunk_size])
            batches = cut_batches(self._train, chunk, batch_tokens, self.report.length_multiple)
            for position in np.random.default_rng((seed, epoch, number)).permutation(len(batches)):
                yield batches[position]


def cut_batches(split: Split, indices: IntArray, batch_tokens: int, length_multiple: int) -> list[IntArray]:
    """Cuts `indices` in their order into batches of at most `batch_tokens` padded positions, the longer side counted.

    A pair longer than `batch_tokens` gets a batch of its own.
    """
    lengths = np.maximum(split.source_lengths(indices), split.target_lengths(indices))
    lengths = -(-lengths // length_multiple) * length_multiple
    batches: list[IntArray] = []
    start = longest = 0
    for position, length in enumerate(lengths.tolist()):
        longest = max(longest, length)
        if position > start and longest * (position - start + 1) > batch_tokens:
            batches.append(indices[start:position])
            start, longest = position, length
    if start < len(indices):
        batches.append(indices[start:])
    return batches


def _sorted_by_length(split: Split, indices: IntArray) -> IntArray:
    """`indices` by their longer side, then by the target; equal ones keep their order."""
    source, target = split.source_lengths(indices), split.target_lengths(indices)
    return indices[np.lexsort((target, np.maximum(source, target)))]


def _open_side(directory: Path, side: str) -> tuple[npt.NDArray[np.unsignedinteger], IntArray]:
    offsets: IntArray = np.load(directory / f"{side}.offsets.npy", mmap_mode="r")
    dtype = np.dtype((directory / f"{side}.dtype").read_text(encoding="utf-8"))
    path = directory / f"{side}.ids"
    expected = int(offsets[-1]) * dtype.itemsize
    if path.stat().st_size != expected:
        raise ValueError(f"{path} must have {expected} bytes, but has {path.stat().st_size}: run `prepare` again.")
    if expected == 0:  # an empty file cannot be mapped
        return np.zeros(0, dtype=dtype), offsets
    return np.memmap(path, dtype=dtype, mode="r"), offsets


def _id_type(vocab_size: int) -> type[np.unsignedinteger]:
    return np.uint16 if vocab_size <= 1 << 16 else np.uint32


def _round_up(value: int, multiple: int) -> int:
    return -(-value // multiple) * multiple


def _read_lines(path: Path) -> list[str]:
    return path.read_text(encoding="utf-8").split("\n")[:-1]
