"""A bundle is loaded only when every byte is what its maker wrote, and every problem is named at once."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from service.bundle import MAX_MANIFEST_BYTES, BundleError, load_bundle, manifest_checksum_line
from service.tokenizer import Tokenizer

FIXTURE = Path(__file__).parents[1] / "data" / "bundle-v3"
FILES = sorted(path.relative_to(FIXTURE).as_posix() for path in FIXTURE.rglob("*") if path.is_file())

Change = Callable[[dict[str, Any]], object]


@pytest.fixture
def bundle(tmp_path: Path) -> Path:
    return Path(shutil.copytree(FIXTURE, tmp_path / "bundle"))


def problems_of(directory: Path) -> list[str]:
    with pytest.raises(BundleError) as caught:
        load_bundle(directory)
    assert str(directory) in str(caught.value)
    assert all(problem in str(caught.value) for problem in caught.value.problems)
    return caught.value.problems


def rewrite(directory: Path, change: Change) -> None:
    """Changes the manifest as someone would who can also compute checksums."""
    fields = json.loads((directory / "manifest.json").read_text(encoding="utf-8"))
    change(fields)
    text = json.dumps(fields).encode()
    (directory / "manifest.json").write_bytes(text)
    (directory / "manifest.sha256").write_bytes(manifest_checksum_line(text))


def test_a_whole_bundle_loads(bundle: Path) -> None:
    loaded = load_bundle(bundle)
    assert loaded.digest == hashlib.sha256((bundle / "manifest.json").read_bytes()).hexdigest()
    assert set(loaded.manifest.files) == set(FILES) - {"manifest.json", "manifest.sha256"}
    assert loaded.encoder_path.is_file()
    assert loaded.decoder_path.is_file()
    assert loaded.tokenizer.target_vocab_size == loaded.architecture.target_tokens
    load_bundle(str(bundle))  # a path may be text


def test_files_are_kept_as_they_were_verified(bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    wanted = {name: (bundle / name).read_bytes() for name in FILES if name not in ("manifest.json", "manifest.sha256")}
    verified = Tokenizer.from_files

    def damage_first(files: Mapping[str, bytes], *, where: Path) -> Tokenizer:
        """Damages every file when all were verified and none is used yet."""
        for name in FILES:
            (bundle / name).write_bytes(b"damaged")
        return verified(files, where=where)

    with monkeypatch.context() as patched:
        patched.setattr(Tokenizer, "from_files", damage_first)
        loaded = load_bundle(bundle)
    assert loaded.files == wanted
    assert loaded.tokenizer.encode_source("a") == Tokenizer.load(FIXTURE / "tokenizer").encode_source("a")


@settings(max_examples=150)
@given(data=st.data())
def test_any_altered_byte_of_any_file_is_refused(data: st.DataObject, tmp_path_factory: pytest.TempPathFactory) -> None:
    name = data.draw(st.sampled_from(FILES))
    content = bytearray((FIXTURE / name).read_bytes())
    content[data.draw(st.integers(0, len(content) - 1))] ^= data.draw(st.integers(1, 255))
    bundle = Path(shutil.copytree(FIXTURE, tmp_path_factory.mktemp("altered") / "bundle"))
    (bundle / name).write_bytes(content)
    assert any("altered" in problem for problem in problems_of(bundle))
    shutil.rmtree(bundle)


@pytest.mark.parametrize("name", FILES)
def test_a_cut_or_longer_file_is_refused(bundle: Path, name: str) -> None:
    content = (bundle / name).read_bytes()
    for altered in (content[:-1], content + b"\n", b""):
        (bundle / name).write_bytes(altered)
        assert any("altered" in problem for problem in problems_of(bundle))


@pytest.mark.parametrize("name", FILES)
def test_a_missing_file_is_named(bundle: Path, name: str) -> None:
    (bundle / name).unlink()
    assert any(problem.startswith(name) for problem in problems_of(bundle))


@pytest.mark.parametrize("name", ["extra.txt", "tokenizer/extra.model", ".hidden", "encoder.onnx.data"])
def test_an_extra_file_is_named(bundle: Path, name: str) -> None:
    (bundle / name).write_bytes(b"x")
    assert problems_of(bundle) == [f"{name} must be named in the manifest, but is not."]


@pytest.mark.parametrize("name", FILES)
def test_a_symbolic_link_is_refused_even_to_the_same_bytes(bundle: Path, tmp_path: Path, name: str) -> None:
    (bundle / name).rename(tmp_path / "elsewhere")
    (bundle / name).symlink_to(tmp_path / "elsewhere")
    assert any(problem.startswith(f"{name} must be a plain file") for problem in problems_of(bundle))


def test_a_linked_directory_is_refused(bundle: Path, tmp_path: Path) -> None:
    (bundle / "tokenizer").rename(tmp_path / "tokenizer")
    (bundle / "tokenizer").symlink_to(tmp_path / "tokenizer")
    assert any(problem.startswith("tokenizer must be a plain file") for problem in problems_of(bundle))


@pytest.mark.parametrize("name", ["encoder.onnx", "manifest.json", "manifest.sha256"])
def test_a_pipe_is_refused_and_not_read(bundle: Path, name: str) -> None:
    (bundle / name).unlink()
    os.mkfifo(bundle / name)
    assert any(problem.startswith(f"{name} must be a plain file") for problem in problems_of(bundle))


def test_a_directory_is_no_manifest(bundle: Path) -> None:
    (bundle / "manifest.json").unlink()
    (bundle / "manifest.json").mkdir()
    assert problems_of(bundle) == ["manifest.json must be a plain file, but is not."]


def test_a_name_that_cannot_be_looked_up_is_refused(tmp_path: Path) -> None:
    assert problems_of(tmp_path / ("n" * 300)) == ["It must be readable, but is not: File name too long."]


@pytest.mark.parametrize("text", [b"[" * 100_000, b'{"format_version": ' + b"1" * 5_000 + b"}"])
def test_a_tokenizer_that_no_parser_takes_is_refused(bundle: Path, text: bytes) -> None:
    (bundle / "tokenizer" / "tokenizer.json").write_bytes(text)
    record = {"num_bytes": len(text), "sha256": hashlib.sha256(text).hexdigest()}
    rewrite(bundle, lambda fields: fields["files"].update({"tokenizer/tokenizer.json": record}))
    (problem,) = problems_of(bundle)
    assert "must be JSON, but is not" in problem


@pytest.mark.parametrize(
    "path", ["../outside", "tokenizer/../../outside", "/etc/hostname", "C:outside", "..\\outside", "a\0b"]
)
def test_a_path_that_leaves_the_bundle_is_refused(bundle: Path, path: str) -> None:
    (bundle.parent / "outside").write_bytes(b"x")
    record = {"sha256": hashlib.sha256(b"x").hexdigest(), "num_bytes": 1}
    rewrite(bundle, lambda fields: fields["files"].update({path: record}))
    assert problems_of(bundle) == [f"A path in `files` must stay inside the bundle, but is {path!r}."]


@pytest.mark.parametrize("path", ["", ".", "./encoder.onnx", "tokenizer//source.model", "manifest.json"])
def test_a_path_that_is_not_plain_is_refused(bundle: Path, path: str) -> None:
    rewrite(bundle, lambda fields: fields["files"].update({path: {"sha256": "", "num_bytes": 1}}))
    assert any("must be the plain path of a file" in problem for problem in problems_of(bundle))


def test_a_newer_format_is_refused_and_nothing_else_is_said_of_it(bundle: Path) -> None:
    rewrite(bundle, lambda fields: fields.update(format_version=4, unheard_of=True))
    assert problems_of(bundle) == ["format version 4 is newer than this build reads (3)"]


def test_an_older_format_is_refused_and_nothing_else_is_said_of_it(bundle: Path) -> None:
    def as_version_1(fields: dict[str, Any]) -> None:
        fields["format_version"] = 1
        del fields["alignment_layer"], fields["decoding"]

    rewrite(bundle, as_version_1)
    assert problems_of(bundle) == ["format version 1 is older than this build reads (2): export the checkpoint again"]


@pytest.mark.parametrize("version", [0, -1, True, "1", None, 1.0])
def test_a_format_version_must_be_a_whole_number(bundle: Path, version: object) -> None:
    rewrite(bundle, lambda fields: fields.update(format_version=version))
    (problem,) = problems_of(bundle)
    assert "`format_version` must be a whole number" in problem


@pytest.mark.parametrize("text", [b"", b"{", b"[]", b"null", b"\xff", b'{"format_version": NaN}', b"[" * 100_000])
def test_a_manifest_that_is_no_json_object_is_refused(bundle: Path, text: bytes) -> None:
    (bundle / "manifest.json").write_bytes(text)
    (bundle / "manifest.sha256").write_bytes(manifest_checksum_line(text))
    (problem,) = problems_of(bundle)
    assert "manifest.json must be" in problem or "`format_version`" in problem


def test_a_huge_manifest_is_not_read(bundle: Path) -> None:
    with (bundle / "manifest.json").open("wb") as file:
        file.truncate(MAX_MANIFEST_BYTES + 1)
    assert problems_of(bundle) == [
        f"manifest.json must have at most {MAX_MANIFEST_BYTES} bytes, but has {MAX_MANIFEST_BYTES + 1}."
    ]


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda f: f["architecture"].update(decoder_layers=2), "`signature` must be that of `architecture`"),
        (lambda f: f["signature"]["decoder_inputs"][0].update(dtype="int32"), "`signature` must be that"),
        (lambda f: f["architecture"].update(target_vocabulary=309), "must be a multiple of 8"),
        (lambda f: f["architecture"].update(heads=0), "`architecture.heads` must be at least 1"),
        (lambda f: f["architecture"].update(heads=3), "must be a multiple of `heads`"),
        (lambda f: f["architecture"].update(target_tokens=5000), "must be at most `target_vocabulary`"),
        (lambda f: f["architecture"].update(target_tokens=300), "tokenizer must have 300 target tokens"),
        (lambda f: f.update(source_language="de"), "tokenizer must be for de to zh"),
        (lambda f: f["files"].pop("encoder.onnx"), "must name encoder.onnx"),
    ],
)
def test_parts_that_do_not_belong_together_are_refused(bundle: Path, change: Change, said: str) -> None:
    rewrite(bundle, change)
    assert any(said in problem for problem in problems_of(bundle))


def test_every_problem_is_reported_together(bundle: Path) -> None:
    (bundle / "encoder.onnx").unlink()
    (bundle / "decoder.onnx").write_bytes(b"x")
    (bundle / "extra").write_bytes(b"x")
    (bundle / "link").symlink_to("decoder.onnx")
    (bundle / "manifest.sha256").unlink()
    problems = problems_of(bundle)
    assert len(problems) == 5
    for name in ("encoder.onnx", "decoder.onnx", "extra", "link", "manifest.sha256"):
        assert any(problem.startswith(name) for problem in problems)


def test_what_is_no_directory_is_refused(tmp_path: Path) -> None:
    assert problems_of(tmp_path / "nothing") == ["It must be a directory, but is not."]
    assert problems_of(FIXTURE / "manifest.json") == ["It must be a directory, but is not."]
    (tmp_path / "empty").mkdir()
    assert len(problems_of(tmp_path / "empty")) == 2


def test_the_bundle_may_be_reached_through_a_link(bundle: Path, tmp_path: Path) -> None:
    (tmp_path / "current").symlink_to(bundle)
    assert load_bundle(tmp_path / "current").digest == load_bundle(bundle).digest


@pytest.mark.parametrize("name", ["encoder.onnx", "decoder.onnx", "candidates.onnx", "greedy.onnx"])
def test_every_graph_that_the_manifest_speaks_of_must_be_named(bundle: Path, name: str) -> None:
    (bundle / name).unlink()
    rewrite(bundle, lambda fields: fields["files"].pop(name))
    assert problems_of(bundle) == [f"`files` must name {name}, but does not."]
