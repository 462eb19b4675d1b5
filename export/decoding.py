"""Greedy decoding of validation sentences, by the engine that serves and by PyTorch."""

from __future__ import annotations

from collections.abc import Iterable
from collections.abc import Sequence as Items
from dataclasses import replace

from export.config import ExportError
from export.validation import MAX_TARGET_EXTRA, MAX_TARGET_FACTOR, Sentence
from service.bundle import Bundle
from service.engine import Engine
from service.model_runner import OnnxModelRunner
from service.options import DecodingOptions
from service.request import FinishReason, Sequence
from service.tokenizer import EOS_ID
from training.decode import DecodeOptions, decode
from training.model import Transformer


def open_runner(bundle: Bundle, sentences: Iterable[Sentence], *, max_rows: int, num_threads: int) -> OnnxModelRunner:
    """A runner with room for all of `sentences`."""
    chosen = list(sentences)
    return OnnxModelRunner(
        bundle,
        max_rows=max_rows,
        max_source_tokens=max(len(sentence.source_ids) for sentence in chosen),
        max_target_tokens=max(sentence.max_target_tokens for sentence in chosen),
        num_threads=num_threads,
    )


def decode_by_engine(
    engine: Engine, sentences: Items[Sentence], options: Items[DecodingOptions] = ()
) -> list[Sequence]:
    """Decodes sentences together, as many at a time as the engine has rows; results in the order given.

    `options` are those of each sentence, but for its limit of target tokens; none: greedy search. Loops are left as
    they are, for PyTorch leaves them too.

    Raises:
        ExportError: if the graphs fail on a sentence.
    """
    sequences = [
        Sequence(
            source_ids=sentence.source_ids,
            options=replace(its, max_target_tokens=sentence.max_target_tokens, guards_repetition=False),
        )
        for sentence, its in zip(sentences, options or [DecodingOptions()] * len(sentences), strict=True)
    ]
    engine.run_to_completion(sequences)
    failed = [sequence for sequence in sequences if sequence.finish_reason is FinishReason.FAILED]
    if failed:
        raise ExportError(
            "decoding", [f"Every sentence must be decoded, but {len(failed)} failed, the first with {failed[0].error}."]
        )
    return sequences


def decode_by_torch(model: Transformer, sentences: Iterable[Sentence], target_tokens: int) -> list[list[int]]:
    """Tokens of the trained model, end of sentence included where it was reached."""
    options = DecodeOptions(beam_size=1, max_length_factor=MAX_TARGET_FACTOR, max_length_extra=MAX_TARGET_EXTRA)
    sources = [sentence.source_ids for sentence in sentences]
    hypotheses = decode(model, sources, options, target_vocab_size=target_tokens)
    return [[*each.ids, EOS_ID] if each.is_complete else each.ids for each in hypotheses]
