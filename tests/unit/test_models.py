"""Which bundles a folder of them has, and which of those cannot be served."""

import shutil
from dataclasses import replace
from pathlib import Path

import pytest

from service import models
from service.bundle import BundleError, load_bundle
from service.config import MIN_SOURCE_TOKENS, Config, EngineConfig, ServerConfig, SwapConfig
from service.models import ModelsError, bytes_of, find_bundles, load_models, open_model
from service.same_bytes import ProbeResult
from service.segments import split_item
from tests.synthetic.bundle import SyntheticOptions, build_synthetic_bundle
from tests.synthetic.fixtures import COPY, synthetic_bundle

FIXTURE = Path(__file__).parents[1] / "data" / "bundle-v2"
BUNDLE_FILES = ("manifest.json", "manifest.sha256", "encoder.onnx", "decoder.onnx")


def load(directory: Path) -> None:
    load_models(Config(server=ServerConfig(models=str(directory))), deliver=lambda _: None, observe=lambda _: None)


def test_bundles_are_found_by_name_and_nothing_else_is(tmp_path: Path) -> None:
    for name in ("b", "a", ".a.k3x9.building"):
        shutil.copytree(FIXTURE, tmp_path / name)
    (tmp_path / "notes").mkdir()
    (tmp_path / "notes" / "readme.md").write_text("Not a bundle.", encoding="utf-8")
    (tmp_path / "a.md").write_text("The card of a.", encoding="utf-8")
    assert find_bundles(tmp_path) == [tmp_path / "a", tmp_path / "b"]
    assert find_bundles(str(tmp_path)) == [tmp_path / "a", tmp_path / "b"]


@pytest.mark.parametrize("left", BUNDLE_FILES)
def test_a_bundle_that_lacks_files_is_refused_and_not_passed_over(tmp_path: Path, left: str) -> None:
    shutil.copytree(FIXTURE, tmp_path / "whole")
    broken = Path(shutil.copytree(FIXTURE, tmp_path / "broken"))
    for name in BUNDLE_FILES:
        if name != left:
            (broken / name).unlink()
    assert find_bundles(tmp_path) == [broken, tmp_path / "whole"]
    missing = "manifest.sha256" if left == "manifest.json" else "manifest.json"
    with pytest.raises(ModelsError, match=f"(?s)broken is not a bundle.*{missing} must be readable, but is not"):
        load(tmp_path)
    with pytest.raises(BundleError):
        load_bundle(broken)


def test_a_folder_without_bundles(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    shutil.copytree(FIXTURE, tmp_path / ".a.k3x9.building")
    for directory, why in ((tmp_path, "has no sub-directory that is one"), (tmp_path / "file", "is not: "),
                           (tmp_path / "missing", "is not: No such file")):  # fmt: skip
        with pytest.raises(ModelsError, match="`models` must be a directory of bundles") as caught:
            find_bundles(directory)
        assert why in str(caught.value)


def test_a_model_with_too_few_positions_is_refused(tmp_path: Path) -> None:
    for most in (MIN_SOURCE_TOKENS - 1, MIN_SOURCE_TOKENS):
        build_synthetic_bundle(tmp_path / str(most), SyntheticOptions(name=f"m{most}", max_positions=most))
    with pytest.raises(ModelsError, match="7: `max_positions` must be at least 8, but is 7"):
        open_model(tmp_path / "7", EngineConfig(num_workers=1, num_threads=1))
    (runner,) = open_model(tmp_path / "8", EngineConfig(num_workers=1, num_threads=1)).runners
    assert runner.max_source_tokens == MIN_SOURCE_TOKENS


def test_any_character_fits_into_the_fewest_source_tokens() -> None:
    encode = load_bundle(FIXTURE).tokenizer.encode_source
    text = "".join(map(chr, (*range(0x21, 0x3000, 7), *range(0x3000, 0xD800, 97), *range(0xE000, 0x110000, 997))))
    segments = split_item(text + "e" + "\u0301" * 50 + "👩‍👩‍👧‍👦", encode, MIN_SOURCE_TOKENS)
    assert len(segments) > 1000
    assert max(len(segment.source_ids) for segment in segments) <= MIN_SOURCE_TOKENS


@pytest.mark.parametrize(("num_threads", "is_shared"), [(1, True), (2, False)])
def test_engines_of_one_thread_share_their_graphs(num_threads: int, is_shared: bool) -> None:
    model = open_model(synthetic_bundle(COPY).directory, EngineConfig(num_workers=2, num_threads=num_threads))
    first, second = model.runners
    assert (first._decoder is second._decoder) is is_shared


def test_defaults_must_be_served_for_their_pair(tmp_path: Path) -> None:
    shutil.copytree(synthetic_bundle(COPY).directory, tmp_path / "a")

    def load_with(defaults: str) -> None:
        server = ServerConfig(models=str(tmp_path), default_models=defaults)
        engine = EngineConfig(num_workers=1, num_threads=1)
        load_models(Config(server=server, engine=engine), deliver=lambda _: None, observe=lambda _: None)

    load_with(" en-zh = synthetic ,")
    for defaults, why in (
        ("en-zh=other", "must name a model of en-zh, but other is none that is served"),
        ("zh-en=synthetic", "must name a model of zh-en, but synthetic is en-zh"),
        ("en-zh", "must be PAIR=NAME,... with each pair once, but has 'en-zh'"),
        ("en-zh=synthetic,en-zh=b", "but has 'en-zh=b'"),
    ):
        with pytest.raises(ModelsError) as caught:
            load_with(defaults)
        assert why in str(caught.value)


def test_the_footprint_is_what_is_opened(tmp_path: Path) -> None:
    bundle = synthetic_bundle(COPY)
    engine = EngineConfig(num_workers=2, num_threads=1, max_rows=7, max_source_tokens=50, max_target_tokens=70)
    graphs = sum(len(content) for name, content in bundle.files.items() if name.endswith(".onnx"))
    model = open_model(bundle.directory, engine)
    slabs = sum(runner.slab_bytes for runner in model.runners)
    buffers = sum(runner._attention.nbytes + runner._log_probabilities.nbytes for runner in model.runners)
    encoded = 2 * 1024 * (bundle.architecture.feed_forward + 4 * bundle.architecture.width) * 4
    assert bytes_of(bundle, engine) == 2 * graphs + slabs + buffers + encoded
    assert bytes_of(bundle, replace(engine, num_threads=2)) == 4 * graphs + slabs + buffers + encoded

    shutil.copytree(bundle.directory, tmp_path / "a")
    build_synthetic_bundle(tmp_path / "b", SyntheticOptions(name="b"))

    def load_within(num_bytes: int) -> list[int]:
        config = Config(
            server=ServerConfig(models=str(tmp_path)), engine=engine, swap=SwapConfig(max_memory_bytes=num_bytes)
        )
        return [model.num_bytes for model in load_models(config, deliver=lambda _: None, observe=lambda _: None)]

    each = load_within(0)
    assert each[0] == bytes_of(bundle, engine)
    assert load_within(sum(each)) == each
    with pytest.raises(ModelsError, match=r"at most .* bytes, but b takes"):
        load_within(sum(each) - 1)


@pytest.mark.parametrize("is_required", [False, True])
def test_a_model_whose_probe_ends_in_an_error_is_refused_whatever_may_differ(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, *, is_required: bool
) -> None:
    broken = ProbeResult(num_sentences=0, ways=(), differences=(), error=RuntimeError("no step"), seconds=0.0)
    monkeypatch.setattr(models, "probe_same_bytes", lambda _: broken)
    shutil.copytree(FIXTURE, tmp_path / "model")
    config = Config(server=ServerConfig(models=str(tmp_path)), engine=EngineConfig(require_same_bytes=is_required))
    with pytest.raises(ModelsError, match="same-bytes probe failed: RuntimeError: no step"):
        load_models(config, deliver=lambda _: None, observe=lambda _: None)
