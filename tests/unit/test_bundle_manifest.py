"""`manifest.json` read and written, and the signature that it carries."""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from service.graph_signature import Architecture, GraphSignature, TensorSignature
from service.manifest import Manifest, ManifestError

FIXTURE = Path(__file__).parents[1] / "data" / "bundle-v1" / "manifest.json"
ARCHITECTURE = Architecture(
    width=8,
    heads=2,
    feed_forward=16,
    encoder_layers=1,
    decoder_layers=3,
    source_vocabulary=12,
    target_vocabulary=16,
    target_tokens=13,
    max_positions=20,
)


@pytest.fixture
def fields() -> dict[str, Any]:
    values: dict[str, Any] = json.loads(FIXTURE.read_text(encoding="utf-8"))
    return values


def problems_of(fields: dict[str, Any]) -> list[str]:
    with pytest.raises(ManifestError) as caught:
        Manifest.from_json(json.dumps(fields))
    return caught.value.problems


def test_written_and_read_back_is_the_same() -> None:
    manifest = Manifest.from_json(FIXTURE.read_text(encoding="utf-8"))
    assert Manifest.from_json(manifest.to_json()) == manifest
    assert manifest.to_json() == FIXTURE.read_text(encoding="utf-8")


def test_every_problem_of_every_depth_is_reported(fields: dict[str, Any]) -> None:
    del fields["name"]
    fields["unheard_of"] = 1
    fields["precision"] = "int4"
    fields["recipe"]["bits"] = "8"
    fields["files"]["encoder.onnx"]["sha256"] = None
    fields["quality"][0]["score"]["bleu"] = "high"
    fields["attributions"] = "me"
    fields["parity"]["tokens"]["ties"] = [{}]
    fields["training_record"] = []
    problems = "\n".join(problems_of(fields))
    for said in (
        "`name` must be given",
        "`unheard_of` is not known",
        "`precision` must be one of 'fp32', 'int8', but is 'int4'",
        "`recipe.bits` must be of type int",
        "`files['encoder.onnx'].sha256` must be of type str",
        "`quality[0].score.bleu` must be of type float",
        "`attributions` must be a list",
        "`parity.tokens.ties[0].margin` must be given",
        "`training_record` must be an object",
    ):
        assert said in problems


def test_a_boolean_is_no_number(fields: dict[str, Any]) -> None:
    fields["recipe"]["bits"] = True
    assert problems_of(fields) == ["`recipe.bits` must be of type int, but is True."]


def test_a_whole_number_may_stand_for_a_fraction(fields: dict[str, Any]) -> None:
    fields["quality"][0]["score"]["bleu"] = 90
    score = Manifest.from_json(json.dumps(fields)).quality[0].score.bleu
    assert score == 90.0
    assert isinstance(score, float)


def test_numbers_that_json_does_not_have_are_never_written(fields: dict[str, Any]) -> None:
    manifest = Manifest.from_json(json.dumps(fields))
    quality = dataclasses.replace(
        manifest.quality[0], score=dataclasses.replace(manifest.quality[0].score, bleu=float("nan"))
    )
    with pytest.raises(ValueError, match="JSON"):
        dataclasses.replace(manifest, quality=(quality,)).to_json()


@dataclass
class Argument:
    """An input or output as a session describes it."""

    name: str
    type: str
    shape: list[int | str | None]


def arguments(tensors: tuple[TensorSignature, ...]) -> list[Argument]:
    types = {"int64": "tensor(int64)", "int32": "tensor(int32)", "float32": "tensor(float)"}
    return [Argument(tensor.name, types[tensor.dtype], list(tensor.axes)) for tensor in tensors]


def test_graphs_of_the_signature_have_no_problem() -> None:
    signature = GraphSignature.of(ARCHITECTURE)
    assert signature.check_encoder(*map(arguments, (signature.encoder_inputs, signature.encoder_outputs))) == []
    assert signature.check_decoder(*map(arguments, (signature.decoder_inputs, signature.decoder_outputs))) == []


def test_the_signature_has_six_caches_in_and_four_out_for_each_layer() -> None:
    signature = GraphSignature.of(ARCHITECTURE)
    assert len(signature.encoder_outputs) == 2 * ARCHITECTURE.decoder_layers
    assert len(signature.decoder_inputs) == 3 + 6 * ARCHITECTURE.decoder_layers
    assert len(signature.decoder_outputs) == 1 + 4 * ARCHITECTURE.decoder_layers
    names = [tensor.name for tensor in (*signature.decoder_inputs, *signature.decoder_outputs)]
    assert len(set(names)) == len(names)
    first = signature.decoder_outputs[0]
    assert (first.name, first.axes) == ("log_probabilities", ("B", 16))


def test_every_difference_from_the_signature_is_named() -> None:
    signature = GraphSignature.of(ARCHITECTURE)
    inputs, outputs = arguments(signature.decoder_inputs), arguments(signature.decoder_outputs)
    inputs[0].type = "tensor(int32)"
    inputs[1].shape = ["B", 1]
    inputs[3].shape[2] = 20  # M must stay dynamic
    inputs[4].shape[3] = 8
    del inputs[5]
    outputs[0].name = "scores"
    problems = signature.check_decoder(inputs, outputs)
    assert problems == [
        "`target_ids` among the decoder's inputs must be tensor(int64), but is tensor(int32).",
        "`past_lengths` among the decoder's inputs must have axes ['B'], but has ['B', 1].",
        "`past_key_self_0` among the decoder's inputs must have axes ['B', 2, 'M', 4], but has ['B', 2, 20, 4].",
        "`past_value_self_0` among the decoder's inputs must have axes ['B', 2, 'M', 4], but has ['B', 2, 'M', 8].",
        "`cross_key_0` must be among the decoder's inputs, but is missing.",
        "`scores` among the decoder's outputs is not known.",
        "`log_probabilities` must be among the decoder's outputs, but is missing.",
    ]
