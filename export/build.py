"""One export: checkpoint in, verified bundle out, or nothing."""

from __future__ import annotations

import dataclasses
import importlib.metadata
import json
import platform
import shutil
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import onnx
import torch

from export.bundle_writer import new_directory, seal
from export.cache_bytes import decoder_with_byte_caches, encoder_with_byte_caches
from export.calibrate import Pair, cache_ranges, calibrate_decoder, calibrate_encoder, decoder_channel_ranges
from export.candidates_graph import candidates_to_onnx
from export.config import ExportConfig, ExportError
from export.greedy_graph import greedy_to_onnx
from export.quantize import BITS, MICROSOFT, OPERATOR, QuantizeError, quantize
from export.smooth import smooth
from export.to_onnx import OPSET, architecture_of, decoder_to_onnx, encoder_to_onnx
from export.validation import Sentence, read_validation
from export.verify import verify
from service.bundle import (
    CANDIDATES_NAME,
    DECODER_NAME,
    ENCODER_NAME,
    GREEDY_NAME,
    TOKENIZER_DIRECTORY,
    Bundle,
    load_bundle,
)
from service.graph_signature import Architecture, GraphSignature
from service.manifest import FORMAT_VERSION, CreatedBy, Manifest, Recipe
from service.tokenizer import BOS_ID, Tokenizer
from training.checkpoint import TOKENIZER_NAME, load_model
from training.model import Transformer
from training.record import TrainingRecord, hardware

MAX_GRAPH_BYTES = 10**9
"""Above this, weights go into a file of their own: a protobuf message ends at 2 GB."""
GREEDY_STEPS = 4
"""Steps of greedy search in one run of a small decoder (docs/decisions/0010)."""
MAX_SMALL_DECODER_BYTES = 16 * 2**20
"""The runtime keeps the weights once for each of those steps: of a larger decoder, whose steps take so long that
nothing is gained, that would be too much memory."""
MAX_PAIRS_OF_CHANNELS = 256
"""Pairs of sentences on which the channels of the decoder's activations are found."""

Precision = Literal["fp32", "int8"]
_CACHE_DTYPES: dict[Precision, str] = {"fp32": "float32", "int8": "int8"}


@dataclass(frozen=True, kw_only=True)
class Checkpoint:
    """A checkpoint as it was loaded."""

    directory: Path
    """Where it lies."""
    model: Transformer
    """The trained model."""
    tokenizer: Tokenizer
    """Its tokenizer."""
    record: TrainingRecord
    """What the training wrote about itself."""
    architecture: Architecture
    """The numbers of its graphs."""


def load_checkpoint(directory: Path) -> Checkpoint:
    """Raises CheckpointError if it cannot be read, ExportError if its graphs are impossible."""
    model, tokenizer, record = load_model(directory)
    architecture = architecture_of(model, tokenizer.target_vocab_size)
    problems = architecture.problems()
    if problems:
        raise ExportError(str(directory), problems)
    return Checkpoint(directory=directory, model=model, tokenizer=tokenizer, record=record, architecture=architecture)


def export_bundle(config: ExportConfig) -> Bundle:
    """Exports, verifies and only then puts the bundle in its place.

    Raises:
        ExportError: listing every problem of the configuration, or every check that failed.
        CheckpointError: if the checkpoint cannot be read.
        FileExistsError: if the output appeared meanwhile.
    """
    problems = config.problems()
    if problems:
        raise ExportError("configuration", problems)
    checkpoint = load_checkpoint(config.checkpoint)
    sets = read_validation(
        config.verify, checkpoint.record, checkpoint.tokenizer, checkpoint.architecture.max_positions
    )
    with new_directory(config.output) as building, tempfile.TemporaryDirectory() as scratch:
        graphs = fp32_graphs(checkpoint, alignment_layer=config.alignment_layer)
        fp32_directory = building if config.precision == "fp32" else Path(scratch)
        bundle = fp32_bundle = write_bundle(fp32_directory, config, checkpoint, graphs, precision="fp32")
        if config.precision == "int8":
            pairs = [_pair(sentence, checkpoint) for each in sets for sentence in each.sentences]
            bundle = write_bundle(building, config, checkpoint, int8_graphs(graphs, pairs), precision="int8")
        found = verify(
            checkpoint.model,
            bundle,
            fp32_bundle,
            sets,
            config.verify,
            is_tokenized=checkpoint.record.config.evaluate.tokenized,
        )
        if found.problems:
            raise ExportError("verification failed, nothing is written", list(found.problems))
        figures = dataclasses.replace(
            bundle.manifest, parity=found.parity, quality=found.quality, same_bytes=found.same_bytes
        )
        seal(building, figures)
        load_bundle(building)
    return load_bundle(config.output)


def fp32_graphs(checkpoint: Checkpoint, *, alignment_layer: int | None = None) -> dict[str, onnx.ModelProto]:
    """The graphs by the name of their file; `alignment_layer` as in `ExportConfig`.

    Raises:
        ExportError: if the model has no such layer.
    """
    architecture = checkpoint.architecture
    layer = _alignment_layer(alignment_layer, architecture)
    return {
        ENCODER_NAME: encoder_to_onnx(checkpoint.model, architecture),
        DECODER_NAME: decoder_to_onnx(checkpoint.model, architecture, layer),
        CANDIDATES_NAME: candidates_to_onnx(GraphSignature.of(architecture), OPSET),
    }


def _alignment_layer(wanted: int | None, architecture: Architecture) -> int:
    last = architecture.decoder_layers - 1
    if wanted is not None and not 0 <= wanted <= last:
        raise ExportError(
            "configuration", [f"`alignment_layer` must be between 0 and the model's {last}, but is {wanted}."]
        )
    return last if wanted is None else wanted


def _pair(sentence: Sentence, checkpoint: Checkpoint) -> Pair:
    """A sentence's source, and its reference as the decoder would read it."""
    target_ids = [BOS_ID, *checkpoint.tokenizer.encode_target(sentence.reference)]
    return sentence.source_ids, target_ids[: checkpoint.architecture.max_positions]


def int8_graphs(graphs: Mapping[str, onnx.ModelProto], pairs: Sequence[Pair]) -> dict[str, onnx.ModelProto]:
    """The graphs in int8; the ids of `pairs`, source and target, show what ranges their activations have.

    Raises ExportError where a graph cannot be turned to int8.
    """
    encoder, decoder = graphs[ENCODER_NAME], graphs[DECODER_NAME]
    few = pairs[:: -(-len(pairs) // MAX_PAIRS_OF_CHANNELS)]
    smoothed = smooth(decoder, decoder_channel_ranges(encoder, decoder, few))
    for_encoder = calibrate_encoder(encoder, [source for source, _ in pairs])
    for_decoder = calibrate_decoder(encoder, smoothed, pairs)
    for_caches = cache_ranges(encoder, decoder, pairs)
    try:
        return {
            **graphs,
            ENCODER_NAME: quantize(
                encoder_with_byte_caches(encoder, for_caches), for_encoder.ranges, for_encoder.moments
            ),
            DECODER_NAME: quantize(
                decoder_with_byte_caches(smoothed, for_caches), for_decoder.ranges, for_decoder.moments
            ),
        }
    except QuantizeError as error:
        raise ExportError("int8", [str(error)]) from error


def write_bundle(
    directory: Path,
    config: ExportConfig,
    checkpoint: Checkpoint,
    graphs: dict[str, onnx.ModelProto],
    *,
    precision: Precision,
) -> Bundle:
    """Writes graphs, tokenizer and a manifest that has no figures yet into an empty directory, and loads it.

    Raises:
        ExportError: when no graph of several greedy steps can be made of the decoder's.
    """
    tokenizer, record, architecture = checkpoint.tokenizer, checkpoint.record, checkpoint.architecture
    decoder = graphs[DECODER_NAME]
    greedy_steps = config.greedy_steps
    if greedy_steps is None:
        greedy_steps = GREEDY_STEPS if decoder.ByteSize() <= MAX_SMALL_DECODER_BYTES else 1
    if greedy_steps > 1:
        try:
            greedy = greedy_to_onnx(decoder, greedy_steps, architecture.max_positions)
        except ValueError as error:
            raise ExportError("nothing is written", [str(error)]) from error
        graphs = {**graphs, GREEDY_NAME: greedy}
    for name, graph in graphs.items():
        _save_graph(graph, directory / name, config.is_external_data)
    shutil.copytree(checkpoint.directory / TOKENIZER_NAME, directory / TOKENIZER_DIRECTORY)
    seal(
        directory,
        Manifest(
            format_version=FORMAT_VERSION,
            name=config.name or f"{tokenizer.source_language}-{tokenizer.target_language}",
            source_language=tokenizer.source_language,
            target_language=tokenizer.target_language,
            precision=precision,
            recipe=_recipe(precision),
            architecture=architecture,
            signature=GraphSignature.of(architecture, _CACHE_DTYPES[precision], greedy_steps),
            greedy_steps=greedy_steps,
            alignment_layer=_alignment_layer(config.alignment_layer, architecture),
            decoding=config.decoding,
            files={},
            parity=None,
            quality=(),
            same_bytes=None,
            training_record=_public_record(record),
            licence=config.licence or _licence(record),
            attributions=_attributions(record),
            created_by=_created_by(),
        ),
    )
    return load_bundle(directory)


def _save_graph(graph: onnx.ModelProto, path: Path, is_external_data: bool) -> None:
    if is_external_data or graph.ByteSize() > MAX_GRAPH_BYTES:
        copy = onnx.ModelProto()
        copy.CopyFrom(graph)
        onnx.save_model(copy, path, save_as_external_data=True, location=f"{path.name}.data", size_threshold=1024)
    else:
        onnx.save_model(graph, path)


def _recipe(precision: Precision) -> Recipe:
    if precision == "fp32":
        return Recipe(operator="MatMul", bits=32, activations="float32", embedding="float32", opset=OPSET)
    return Recipe(
        operator=f"{MICROSOFT}.{OPERATOR}",
        bits=BITS,
        activations="int8: one scale a product",
        embedding="int8, one scale a token",
        opset=OPSET,
        caches="int8: one scale a channel",
    )


def _public_record(record: TrainingRecord) -> dict[str, Any]:
    """The training record without where the data lay on the machine."""
    data = dataclasses.replace(record.config.data, root=".")
    public = dataclasses.replace(record, config=dataclasses.replace(record.config, data=data))
    fields: dict[str, Any] = json.loads(json.dumps(public.to_dict(), allow_nan=False))
    return fields


def _licence(record: TrainingRecord) -> str:
    return " AND ".join(dict.fromkeys(corpus.licence for corpus in record.corpora if corpus.licence))


def _attributions(record: TrainingRecord) -> tuple[str, ...]:
    return tuple(dict.fromkeys(line for corpus in record.corpora for line in corpus.attributions))


def _created_by() -> CreatedBy:
    return CreatedBy(
        python=platform.python_version(),
        torch=torch.__version__,
        onnx=onnx.__version__,
        onnxruntime=importlib.metadata.version("onnxruntime"),
        processor=hardware(torch.device("cpu")),
    )
