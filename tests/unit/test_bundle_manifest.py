"""`manifest.json` read and written, and the signature that it carries."""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from service.graph_signature import LANE_INPUTS, Architecture, GraphSignature, TensorSignature
from service.manifest import FORMAT_VERSION, OLDEST_FORMAT_VERSION, DecodingDefaults, Manifest, ManifestError
from service.options import DecodingOptions
from service.pb.translation.v1 import translation_pb2 as pb

DATA = Path(__file__).parents[1] / "data"
FIXTURE = DATA / "bundle-v2" / "manifest.json"
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


@pytest.mark.parametrize("version", range(OLDEST_FORMAT_VERSION, FORMAT_VERSION + 1))
def test_written_and_read_back_is_the_same(version: int) -> None:
    text = (DATA / f"bundle-v{version}" / "manifest.json").read_text(encoding="utf-8")
    manifest = Manifest.from_json(text)
    assert Manifest.from_json(manifest.to_json()) == manifest
    assert manifest.format_version == version
    assert (manifest.to_json() == text) == (version == FORMAT_VERSION)  # older ones lack what came later


def test_what_an_older_version_does_not_say_is_as_it_was_then() -> None:
    manifest = Manifest.from_json(FIXTURE.read_text(encoding="utf-8"))
    assert (manifest.recipe.caches, manifest.signature.cache_dtype) == ("float32", "float32")
    assert (manifest.greedy_steps, manifest.signature.greedy_inputs, manifest.signature.greedy_outputs) == (1, (), ())


def test_caches_are_floats_or_bytes_all_of_them(fields: dict[str, Any]) -> None:
    caches = [
        tensor
        for tensors in fields["signature"].values()
        for tensor in tensors
        if tensor["name"].startswith(("cross_", "past_key", "past_value", "present_"))
    ]
    assert len(caches) % 10 == 0  # two of a layer's come from the encoder, four go in and four out
    assert len(caches) > 0
    for tensor in caches:
        tensor["dtype"] = "int8"
    assert problems_of(fields) == ["`signature` must be that of `architecture`, but is not."]  # in version 2
    fields["format_version"] = 3
    assert Manifest.from_json(json.dumps(fields)).signature.cache_dtype == "int8"
    caches[-1]["dtype"] = "float32"
    assert problems_of(fields) == ["`signature` must be that of `architecture`, but is not."]
    for tensor in caches:
        tensor["dtype"] = "float16"
    assert problems_of(fields) == ["`signature` must be that of `architecture`, but is not."]


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


def test_decoding_defaults_are_read_and_those_that_are_not_given_are_none(fields: dict[str, Any]) -> None:
    assert Manifest.from_json(json.dumps(fields)).decoding == DecodingDefaults()
    assert DecodingDefaults().given == {}
    fields["decoding"] = {"beam_size": 4, "length_penalty": 1, "no_unknown": True}
    decoding = Manifest.from_json(json.dumps(fields)).decoding
    assert decoding == DecodingDefaults(beam_size=4, length_penalty=1.0, no_unknown=True)
    assert decoding.given == {"beam_size": 4, "length_penalty": 1.0, "no_unknown": True}
    del fields["decoding"]
    assert Manifest.from_json(json.dumps(fields)).decoding == DecodingDefaults()


def test_every_problem_of_the_decoding_defaults_is_reported(fields: dict[str, Any]) -> None:
    fields["decoding"] = {"beam_size": 17, "patience": 0, "min_target_ratio": -1, "max_target_ratio": 0}
    fields["alignment_layer"] = 9
    problems = "\n".join(problems_of(fields))
    for said in (
        "decoding: `beam_size` must be at least 1 and at most 16, but is 17",
        "decoding: `patience` must be above 0",
        "decoding: `min_target_ratio` must be at least 0",
        "decoding: `max_target_ratio` must be above 0",
        "`alignment_layer` must be between 0 and",
    ):
        assert said in problems
    fields["decoding"] = {"min_target_ratio": 2, "max_target_ratio": 1.5}
    assert "must be at most `max_target_ratio` 1.5" in "\n".join(problems_of(fields))
    fields["decoding"] = {"beam_size": 2.5, "beams": 3}
    assert sorted(problems_of(fields)) == [
        "`decoding.beam_size` must be of type int, but is 2.5.",
        "`decoding.beams` is not known.",
    ]


def test_decoding_defaults_are_named_as_the_interface_names_them() -> None:
    names = set(pb.DecodingOptions.DESCRIPTOR.fields_by_name)
    assert {entry.name for entry in dataclasses.fields(DecodingDefaults)} <= names
    options = {entry.name for entry in dataclasses.fields(DecodingOptions)}
    not_the_engines = {entry.name for entry in dataclasses.fields(DecodingDefaults)} - options
    assert not_the_engines == {"min_target_ratio", "max_target_ratio", "no_unknown"}


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
    of_candidates = map(arguments, (signature.candidates_inputs, signature.candidates_outputs))
    assert signature.check_candidates(*of_candidates) == []


def test_the_signature_has_four_caches_in_and_out_for_each_layer() -> None:
    signature = GraphSignature.of(ARCHITECTURE)
    assert len(signature.encoder_outputs) == 2 * ARCHITECTURE.decoder_layers
    assert len(signature.decoder_inputs) == 3 + len(LANE_INPUTS) + 4 * ARCHITECTURE.decoder_layers
    assert len(signature.decoder_outputs) == 2 + 4 * ARCHITECTURE.decoder_layers
    names = [tensor.name for tensor in (*signature.decoder_inputs, *signature.decoder_outputs)]
    assert len(set(names)) == len(names)
    first, attention = signature.decoder_outputs[:2]
    assert (first.name, first.axes) == ("log_probabilities", ("B", 16))
    assert (attention.name, attention.axes) == ("attention", ("N", 2, "Q", "P"))


def test_every_difference_from_the_signature_is_named() -> None:
    signature = GraphSignature.of(ARCHITECTURE)
    inputs, outputs = arguments(signature.decoder_inputs), arguments(signature.decoder_outputs)
    inputs[0].type = "tensor(int32)"
    inputs[1].shape = ["B"]
    inputs[9].shape[2] = 20  # M must stay dynamic
    inputs[10].shape[3] = 8
    del inputs[11]
    outputs[0].name = "scores"
    problems = signature.check_decoder(inputs, outputs)
    assert problems == [
        "`target_ids` among the decoder's inputs must be tensor(int64), but is tensor(int32).",
        "`past_lengths` among the decoder's inputs must have axes ['B', 1], but has ['B'].",
        "`past_key_self_0` among the decoder's inputs must have axes ['B', 2, 'M', 4], but has ['B', 2, 20, 4].",
        "`past_value_self_0` among the decoder's inputs must have axes ['B', 2, 'M', 4], but has ['B', 2, 'M', 8].",
        "`cross_key_0` must be among the decoder's inputs, but is missing.",
        "`scores` among the decoder's outputs is not known.",
        "`log_probabilities` must be among the decoder's outputs, but is missing.",
    ]


def test_the_graph_of_several_greedy_steps_has_caches_for_each() -> None:
    one, three = (GraphSignature.of(ARCHITECTURE, greedy_steps=steps) for steps in (1, 3))
    assert (one.greedy_inputs, one.greedy_outputs) == ((), ())
    assert three.greedy_inputs == three.decoder_inputs
    ids, log_probabilities, *caches = three.greedy_outputs
    assert (ids.name, ids.dtype, ids.axes) == ("greedy_ids", "int64", ("B", 3))
    assert (log_probabilities.name, log_probabilities.axes) == ("greedy_log_probabilities", ("B", 3))
    assert len(caches) == 3 * 4 * ARCHITECTURE.decoder_layers
    assert len({tensor.name for tensor in caches}) == len(caches)
    inputs, outputs = arguments(three.greedy_inputs), arguments(three.greedy_outputs)
    assert three.check_greedy(inputs, outputs) == []
    del outputs[-1]
    assert len(three.check_greedy(inputs, outputs)) == 1


@pytest.mark.parametrize("steps", [0, 17])
def test_greedy_steps_are_within_bounds(fields: dict[str, Any], steps: int) -> None:
    fields["greedy_steps"] = steps
    assert problems_of(fields) == [f"`greedy_steps` must be between 1 and 16, but is {steps}."]


def test_greedy_steps_are_those_of_the_signature() -> None:
    fields = json.loads((DATA / "bundle-v3" / "manifest.json").read_text(encoding="utf-8"))
    fields["greedy_steps"] += 1
    assert problems_of(fields) == ["`signature` must be that of `architecture`, but is not."]
