"""`python -m export verify`: a bundle that exists already, held against what it says of itself."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from export.build import fp32_graphs, load_checkpoint, write_bundle
from export.config import ExportConfig, ExportError, VerifyConfig
from export.same_bytes import NUM_SENTENCES, check_same_bytes
from export.validation import Sentence, read_validation
from export.verify import verify
from service.bundle import Bundle, load_bundle
from service.graphs import ModelRunnerError
from service.manifest import Quality
from service.tokenizer import EOS_ID

MAX_RANDOM_TOKENS = 40
BLEU_TOLERANCE = 0.05
"""Difference from the recorded score that other rounding on another processor may make."""


def verify_bundle(directory: Path, checkpoint: Path | None, config: VerifyConfig) -> Iterator[str]:
    """Yields a line for each thing that holds.

    Raises:
        BundleError: if the bundle's bytes are not what they must be.
        ExportError: listing every check that failed.
    """
    problems = config.problems()
    if problems:
        raise ExportError("configuration", problems)
    bundle = load_bundle(directory)
    manifest = bundle.manifest
    yield f"{len(manifest.files)} files match their checksums; digest {bundle.digest}"
    if checkpoint is None:
        try:
            same = check_same_bytes(bundle, _random_sentences(bundle), config.num_threads)
        except ModelRunnerError as error:
            raise ExportError(str(directory), [str(error)]) from error
        if same.num_different:
            raise ExportError(
                str(directory), [f"{same.num_different} of {same.num_sentences} sentences depend on company."]
            )
        yield "names, axes and element types of the graphs are those of the manifest"
        yield f"same bytes: {same.num_sentences} random sentences, {'; '.join(same.ways)}"
        yield "tokens, numbers and scores were not compared: that needs `--checkpoint`"
        return
    loaded = load_checkpoint(checkpoint)
    if loaded.architecture != bundle.architecture or loaded.tokenizer.digest != bundle.tokenizer.digest:
        raise ExportError(str(directory), [f"It must be made from {checkpoint}, but model or tokenizer is another."])
    sets = read_validation(config, loaded.record, loaded.tokenizer, loaded.architecture.max_positions)
    with tempfile.TemporaryDirectory() as scratch:
        fp32_bundle = bundle
        if manifest.precision != "fp32":
            made = ExportConfig(
                checkpoint=checkpoint,
                output=Path(scratch),
                precision="fp32",
                alignment_layer=manifest.alignment_layer,
            )
            graphs = fp32_graphs(loaded, alignment_layer=manifest.alignment_layer)
            fp32_bundle = write_bundle(Path(scratch), made, loaded, graphs, precision="fp32")
        is_tokenized = loaded.record.config.evaluate.tokenized
        found = verify(loaded.model, bundle, fp32_bundle, sets, config, is_tokenized=is_tokenized)
    problems = [*found.problems, *_changed_scores(manifest.quality, found.quality)]
    if problems:
        raise ExportError(str(directory), problems)
    assert found.parity is not None
    assert found.same_bytes is not None
    yield "names, axes and element types of the graphs are those of the manifest"
    yield (
        f"numbers: encoder within {found.parity.encoder.max_difference:.2g}, "
        f"decoder within {found.parity.decoder.max_difference:.2g} of PyTorch's largest value"
    )
    tokens = found.parity.tokens
    yield f"tokens: {tokens.num_equal} of {tokens.num_sentences} sentences equal PyTorch's, {len(tokens.ties)} ties"
    yield f"same bytes: {found.same_bytes.num_sentences} sentences, {'; '.join(found.same_bytes.ways)}"
    for each in found.quality:
        yield (
            f"{each.dataset}: BLEU {each.score.bleu:.2f} (fp32 {each.fp32.bleu:.2f}), chrF {each.score.chrf:.2f}, "
            f"{each.num_sentences} sentences"
        )


def _random_sentences(bundle: Bundle) -> list[Sentence]:
    """Sources of random tokens and lengths, for a bundle without text at hand."""
    generator = np.random.default_rng(0)
    longest = min(MAX_RANDOM_TOKENS, bundle.architecture.max_positions)
    sentences = []
    for line in range(1, NUM_SENTENCES + 1):
        length = int(generator.integers(1, longest))
        ids = generator.integers(EOS_ID + 1, bundle.tokenizer.source_vocab_size, length).tolist()
        sentences.append(Sentence(line=line, source_ids=(*ids, EOS_ID), reference="", max_target_tokens=longest))
    return sentences


def _changed_scores(recorded: tuple[Quality, ...], found: tuple[Quality, ...]) -> list[str]:
    """Scores of the same sentences that are not what the manifest says."""
    by_name = {each.dataset: each for each in recorded}
    problems = []
    for each in found:
        known = by_name.get(each.dataset)
        if known is None or known.num_sentences != each.num_sentences:
            continue
        difference = abs(known.score.bleu - each.score.bleu)
        if difference > BLEU_TOLERANCE:
            problems.append(
                f"{each.dataset}: BLEU must be the recorded {known.score.bleu:.2f}, but is {each.score.bleu:.2f}."
            )
    return problems
