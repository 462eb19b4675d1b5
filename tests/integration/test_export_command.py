"""The whole command on a toy that was really trained: what it writes, what it refuses, and what it then verifies."""

from __future__ import annotations

import dataclasses
import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from onnx import numpy_helper

from export import build, reverify
from export.__main__ import main
from export.build import fp32_graphs
from export.config import ExportConfig, VerifyConfig, parse_validation
from export.parity import compare_tokens
from export.validation import Sentence, ValidationSet
from service.bundle import DECODER_NAME, ENCODER_NAME, load_bundle
from service.manifest import FORMAT_VERSION, OLDEST_FORMAT_VERSION, DecodingDefaults
from service.model_runner import OnnxModelRunner
from service.runner import StepInputs, StepOutputs
from tests.data.record_tokens import translate_tokens
from tests.toy_checkpoint import ATTRIBUTION, LICENCE, NUM_DEV, make_toy_checkpoint, toy_pairs

_GRAPHS: dict[tuple[Path, int | None], dict[str, onnx.ModelProto]] = {}


def graphs_of(checkpoint: build.Checkpoint, *, alignment_layer: int | None = None) -> dict[str, onnx.ModelProto]:
    """The work of torch's exporter, done once for each checkpoint and layer of this module."""
    key = (checkpoint.directory, alignment_layer)
    if key not in _GRAPHS:
        _GRAPHS[key] = fp32_graphs(checkpoint, alignment_layer=alignment_layer)
    return _GRAPHS[key]


@pytest.fixture(scope="module", autouse=True)
def _one_thread() -> Iterator[None]:
    """Such small products only lose by being shared out."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module", autouse=True)
def _graphs_are_made_once() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        for module in (build, reverify):
            patch.setattr(module, "fp32_graphs", graphs_of)
        yield


@pytest.fixture(scope="module")
def toy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory with a trained checkpoint and its held-out set."""
    directory = tmp_path_factory.mktemp("toy")
    make_toy_checkpoint(directory, norm="pre", updates=160)
    return directory


@pytest.fixture(scope="module")
def bundle(toy: Path) -> Path:
    """The toy's int8 bundle, made by the command; ten BLEU may be lost, for a toy has few tokens to lose it on."""
    words = ["--output", str(toy / "int8"), "--precision", "int8", "--data", str(toy), "--max-bleu-loss", "10"]
    words += ["--alignment-layer", "0", "--beam-size", "4", "--length-penalty", "0.6", "--no-early-stopping"]
    assert main([str(toy / "checkpoint"), *words]) == 0
    return toy / "int8"


def test_a_model_with_norms_after_the_sub_layers_passes_too(tmp_path: Path) -> None:
    checkpoint = make_toy_checkpoint(tmp_path, norm="post", updates=160)
    words = ["--output", str(tmp_path / "bundle"), "--precision", "fp32", "--data", str(tmp_path)]
    assert main([str(checkpoint), *words]) == 0
    parity = load_bundle(tmp_path / "bundle").manifest.parity
    assert parity is not None
    assert parity.tokens == parity.fp32_tokens
    assert parity.tokens.num_equal + len(parity.tokens.ties) == NUM_DEV


def test_the_manifest_holds_the_figures(bundle: Path) -> None:
    manifest = load_bundle(bundle).manifest
    assert (manifest.name, manifest.precision) == ("en-zh", "int8")
    assert (manifest.licence, manifest.attributions) == (LICENCE, (ATTRIBUTION,))
    parity, same_bytes = manifest.parity, manifest.same_bytes
    assert parity is not None
    assert same_bytes is not None
    assert parity.fp32_tokens.num_sentences == NUM_DEV
    assert parity.fp32_tokens.num_equal + len(parity.fp32_tokens.ties) == NUM_DEV
    assert parity.tokens.num_equal > 0.9 * NUM_DEV
    assert (same_bytes.num_sentences, same_bytes.num_different) == (200, 0)
    (quality,) = manifest.quality
    assert (quality.dataset, quality.num_sentences) == ("dev", NUM_DEV)
    assert quality.score.bleu > 50
    assert "tok:zh" in quality.score.bleu_signature
    assert manifest.training_record["config"]["data"]["root"] == "."


def test_the_manifest_holds_what_decoding_begins_with(bundle: Path) -> None:
    manifest = load_bundle(bundle).manifest
    assert manifest.alignment_layer == 0
    assert manifest.decoding == DecodingDefaults(beam_size=4, length_penalty=0.6, early_stopping=False)


def test_decoding_options_that_cannot_be_are_refused(
    toy: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["--precision", "fp32", "--data", str(toy), "--output", str(tmp_path / "out")]
    assert main([str(toy / "checkpoint"), *words, "--beam-size", "17", "--patience", "0"]) == 1
    said = capsys.readouterr().err
    assert "`beam_size` must be at least 1 and at most 16" in said
    assert "`patience` must be above 0" in said
    assert main([str(toy / "checkpoint"), *words, "--alignment-layer", "7"]) == 1
    assert "`alignment_layer` must be between 0 and the model's" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_the_bundle_translates(bundle: Path) -> None:
    pairs = toy_pairs(40, seed=5)
    tokenizer = load_bundle(bundle).tokenizer
    found = translate_tokens(bundle, [source for source, _ in pairs])
    right = sum(tokenizer.decode_target(found[source]) == target for source, target in pairs)
    assert right > 30


def test_it_is_much_smaller_than_fp32(bundle: Path, toy: Path) -> None:
    weights = (toy / "checkpoint" / "model.safetensors").stat().st_size
    assert (bundle / "decoder.onnx").stat().st_size < 0.75 * weights


def test_nothing_is_left_beside_the_bundle(bundle: Path) -> None:
    assert [path.name for path in bundle.parent.iterdir() if path.name.startswith(".")] == []


def test_an_existing_directory_is_not_overwritten(bundle: Path, toy: Path, capsys: pytest.CaptureFixture[str]) -> None:
    digest = load_bundle(bundle).digest
    assert main([str(toy / "checkpoint"), "--output", str(bundle), "--precision", "int8", "--data", str(toy)]) == 1
    assert "never overwritten" in capsys.readouterr().err
    assert load_bundle(bundle).digest == digest


def test_too_few_sentences_are_refused_unless_asked_for(
    toy: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = [str(toy / "checkpoint"), "--precision", "fp32", "--data", str(toy), "--max-sentences", "12"]
    assert main([*words, "--output", str(tmp_path / "few")]) == 1
    assert "At least 200 sentences must be compared, but the sets have 12" in capsys.readouterr().err
    assert not (tmp_path / "few").exists()
    assert main([*words, "--output", str(tmp_path / "few"), "--min-parity-sentences", "5"]) == 0
    parity = load_bundle(tmp_path / "few").manifest.parity
    assert parity is not None
    assert (parity.min_sentences, parity.fp32_tokens.num_sentences) == (5, 12)


def test_missing_held_out_sets_are_refused(toy: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = [str(toy / "checkpoint"), "--precision", "fp32", "--output", str(tmp_path / "out")]
    assert main([*words, "--data", str(tmp_path)]) == 1
    said = capsys.readouterr().err
    assert "dev.tsv" in said
    assert "--validation" in said
    assert not (tmp_path / "out").exists()


def test_everything_wrong_with_the_configuration_is_said_at_once(tmp_path: Path) -> None:
    config = ExportConfig(
        checkpoint=tmp_path / "none",
        output=tmp_path,
        precision="fp32",
        verify=VerifyConfig(
            validation=(parse_validation("a/dev.tsv"), parse_validation("a/dev=x.tsv")),
            max_sentences=0,
            min_parity_sentences=0,
            max_bleu_loss=float("nan"),
            num_threads=0,
        ),
    )
    assert len(config.problems()) == 7


def test_validation_sets_are_named_after_their_path() -> None:
    assert parse_validation("corpora/docs/dev.tsv.gz").name == "docs/dev"
    assert parse_validation("mine=corpora/docs/dev.tsv").tsv == ("corpora/docs/dev.tsv",)
    paired = parse_validation("x=a.en,a.zh")
    assert (paired.name, paired.source, paired.target) == ("x", ("a.en",), ("a.zh",))
    with pytest.raises(ValueError, match=r"must be FILE\.tsv or SOURCE,TARGET"):
        parse_validation("a,b,c")


def test_external_data_is_part_of_the_bundle(toy: Path, tmp_path: Path) -> None:
    words = ["--precision", "fp32", "--data", str(toy), "--external-data", "--output", str(tmp_path / "apart")]
    assert main([str(toy / "checkpoint"), *words]) == 0
    files = load_bundle(tmp_path / "apart").manifest.files
    assert {"encoder.onnx.data", "decoder.onnx.data"} <= files.keys()
    assert files["decoder.onnx"].num_bytes < files["decoder.onnx.data"].num_bytes


def test_verify_and_inspect(bundle: Path, toy: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["verify", str(bundle)]) == 0
    assert "same bytes: 200 random sentences" in capsys.readouterr().out
    words = ["--checkpoint", str(toy / "checkpoint"), "--data", str(toy), "--max-bleu-loss", "10"]
    assert main(["verify", str(bundle), *words]) == 0
    assert f"of {NUM_DEV} sentences equal PyTorch's" in capsys.readouterr().out
    assert main(["inspect", str(bundle)]) == 0
    said = capsys.readouterr().out
    for expected in (
        "MatMulIntegerToFloat",
        "past_key_self_0",
        load_bundle(bundle).digest,
        LICENCE,
        "chrF",
        "beam_size 4",
    ):
        assert expected in said


def test_verify_refuses_another_checkpoint_and_another_score(
    bundle: Path, toy: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    other = make_toy_checkpoint(tmp_path / "other", updates=31, width=64)
    assert main(["verify", str(bundle), "--checkpoint", str(other), "--data", str(toy)]) == 1
    assert "model or tokenizer is another" in capsys.readouterr().err
    altered = Path(shutil.copytree(bundle, tmp_path / "altered"))
    loaded = load_bundle(altered)
    better = dataclasses.replace(loaded.manifest.quality[0].score, bleu=99.0)
    quality = (dataclasses.replace(loaded.manifest.quality[0], score=better),)
    build.seal(altered, dataclasses.replace(loaded.manifest, quality=quality))
    words = ["--checkpoint", str(toy / "checkpoint"), "--data", str(toy), "--max-bleu-loss", "10"]
    assert main(["verify", str(altered), *words]) == 1
    assert "BLEU must be the recorded 99.00" in capsys.readouterr().err


def _without_mask(graphs: dict[str, onnx.ModelProto]) -> None:
    for node in graphs[ENCODER_NAME].graph.node:
        if node.op_type == "Attention":
            del node.input[3]  # the lengths


def _without_source_bias(graphs: dict[str, onnx.ModelProto]) -> None:
    for node in graphs[DECODER_NAME].graph.node:
        if "source_bias" in node.input:
            node.input[10] = ""


def _without_positions(graphs: dict[str, onnx.ModelProto]) -> None:
    """Sets the table of positions to zero."""
    (tensor,) = (each for each in graphs[DECODER_NAME].graph.initializer if each.name == "positions")
    tensor.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(tensor) * 0, tensor.name))


def _without_an_output(graphs: dict[str, onnx.ModelProto]) -> None:
    graphs[DECODER_NAME].graph.output[0].name = "scores"
    graphs[DECODER_NAME].graph.node[-1].output[0] = "scores"


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (_without_mask, ["The encoder must agree with PyTorch"]),
        (_without_source_bias, ["The decoder must agree with PyTorch"]),
        (
            _without_positions,
            ["The decoder must agree with PyTorch", "the graphs must choose PyTorch's tokens", "more sentences"],
        ),
        (_without_an_output, ["`log_probabilities` must be among the decoder's outputs, but is missing"]),
    ],
    ids=["padding seen", "queries seen", "positions lost", "output renamed"],
)
def test_a_broken_graph_is_found_and_nothing_is_written(
    toy: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    *,
    damage: Callable[[dict[str, onnx.ModelProto]], None],
    said: list[str],
) -> None:
    whole = graphs_of(build.load_checkpoint(toy / "checkpoint"))
    broken = {name: onnx.ModelProto.FromString(graph.SerializeToString()) for name, graph in whole.items()}
    damage(broken)
    words = ["--precision", "fp32", "--data", str(toy), "--output", str(tmp_path / "out" / "bundle")]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(build, "fp32_graphs", lambda _checkpoint, **_: broken)
        assert main([str(toy / "checkpoint"), *words]) == 1
    errors = capsys.readouterr().err
    for expected in said:
        assert expected in errors
    assert "nothing is written" in errors
    assert list((tmp_path / "out").iterdir()) == []


def test_a_hair_of_difference_in_company_is_found(
    toy: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    step = OnnxModelRunner.decode_step

    def step_in_company(self: OnnxModelRunner, inputs: StepInputs) -> StepOutputs:
        found = step(self, inputs)
        if len(inputs.source_lengths) == 1:
            return found
        scores = np.nextafter(found.candidate_log_probabilities, np.float32(-np.inf))
        return found._replace(candidate_log_probabilities=scores)

    words = ["--precision", "fp32", "--data", str(toy), "--output", str(tmp_path / "bundle")]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(OnnxModelRunner, "decode_step", step_in_company)
        assert main([str(toy / "checkpoint"), *words]) == 1
    assert "must not depend on company, but do in 200 of 200 sentences" in capsys.readouterr().err


def test_a_tie_is_listed_and_a_difference_is_not_called_a_tie(toy: Path) -> None:
    checkpoint = build.load_checkpoint(toy / "checkpoint")
    model = checkpoint.model
    source = tuple(checkpoint.tokenizer.encode_source("four two"))
    wanted = [*checkpoint.tokenizer.encode_target("四二"), 3]
    twin, other = wanted[1] + 1, wanted[1] + 2
    with torch.no_grad():  # two tokens that the projection cannot tell apart
        model.projection.weight[twin] = model.projection.weight[wanted[1]]
    sentence = Sentence(line=7, source_ids=source, reference="", max_target_tokens=9)
    sets = [ValidationSet(name="dev", sentences=(sentence,) * 4)]
    found = [wanted, [wanted[0], twin, 3], [wanted[0], other, 3], wanted[:-1]]
    comparison = compare_tokens(model, sets, [[wanted] * 4], [found])
    assert (comparison.parity.num_sentences, comparison.parity.num_equal) == (4, 1)
    (tie,) = comparison.parity.ties
    assert (tie.dataset, tie.line, tie.position) == ("dev", 7, 1)
    assert tie.margin <= 1e-5
    assert len(comparison.differing) == 2
    assert "position 1 on" in comparison.differing[0]


@pytest.mark.parametrize("version", range(OLDEST_FORMAT_VERSION, FORMAT_VERSION + 1))
def test_a_bundle_of_every_format_version_translates_as_when_it_was_made(version: int) -> None:
    data = Path(__file__).parents[1] / "data"
    recorded = json.loads((data / f"bundle-v{version}.tokens.json").read_text(encoding="utf-8"))
    assert len(recorded) > 20
    assert load_bundle(data / f"bundle-v{version}").manifest.format_version == version
    assert translate_tokens(data / f"bundle-v{version}", list(recorded)) == recorded
