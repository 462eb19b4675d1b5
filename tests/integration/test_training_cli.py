"""The command line from nothing to a scored model, on the toy; and what it says when something is missing."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from export.config import MIN_PARITY_SENTENCES
from training.__main__ import build_parser, main
from training.checkpoint import load_model
from training.config_file import load_config
from training.decode import translate
from training.toy import write_toy_data

CONFIGS = Path(__file__).parents[2] / "training" / "configs"
TOY = str(CONFIGS / "toy.toml")


@pytest.fixture(scope="module")
def toy_root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory in which the toy was trained by the commands that the help text gives."""
    root = tmp_path_factory.mktemp("toy")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(root)
        assert main(["toy-data", "runs/toy-data"]) == 0
        for command in ("prepare", "train", "average", "evaluate"):
            assert main([command, TOY]) == 0
    return root


def test_the_toy_is_learnt(toy_root: Path) -> None:
    evaluation = json.loads((toy_root / "runs/toy/evaluation.json").read_text(encoding="utf-8"))
    assert evaluation["checkpoint"] == "averaged"
    assert evaluation["sets"]["test"]["bleu"] > 98
    assert "tok:zh" in evaluation["sets"]["test"]["bleu_signature"]
    model, tokenizer, _ = load_model(toy_root / "runs/toy/averaged")
    assert translate(model, tokenizer, ["two zero seven one"]) == ["二零七一"]


def test_the_figures_are_those_of_the_files_references(toy_root: Path) -> None:
    model, tokenizer, _ = load_model(toy_root / "runs/toy/averaged")
    rows = [line.split("\t") for line in (toy_root / "runs/toy-data/test.tsv").read_text(encoding="utf-8").splitlines()]
    translations = translate(model, tokenizer, [source for source, _ in rows])
    num_right = sum(translation == target for translation, (_, target) in zip(translations, rows, strict=True))
    assert num_right > 0.95 * len(rows)


def test_evaluate_takes_a_checkpoint_a_beam_and_an_output(toy_root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    checkpoint = sorted((toy_root / "runs/toy/checkpoints").iterdir())[-1]
    arguments = ["evaluate", TOY, "--run", str(toy_root / "runs/toy"), "--data", str(toy_root / "runs/toy-data")]
    output = toy_root / "other" / "scores.json"
    arguments += ["--checkpoint", str(checkpoint), "--beam-size", "3", "--output", str(output)]
    assert main(arguments) == 0
    written = output.read_text(encoding="utf-8")
    assert capsys.readouterr().out == written
    evaluation = json.loads(written)
    assert evaluation["checkpoint"] == checkpoint.name
    assert evaluation["decoding"]["beam_size"] == 3


def test_average_takes_as_many_as_it_is_told(toy_root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = toy_root / "runs/toy"
    names = [path.name for path in sorted((run / "checkpoints").iterdir())]
    assert main(["average", TOY, "--run", str(run), "--last", "3", "--output", str(run / "mean3")]) == 0
    assert capsys.readouterr().out.strip() == f"{run / 'mean3'}: mean of {', '.join(names[-3:])}"
    assert main(["average", TOY, "--run", str(run), "--last", "0"]) == 2
    assert "`--last` must be at least 1, but is 0." in capsys.readouterr().err


def test_prepare_keeps_what_is_complete_when_told_to(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    write_toy_data(Path("runs/toy-data"))
    assert main(["prepare", TOY, "--if-missing"]) == 0
    assert "toy: " in capsys.readouterr().out
    report = Path("runs/toy/prepared/prepare.json")
    before = report.stat().st_mtime_ns
    assert main(["prepare", TOY]) == 2
    assert "--force" in capsys.readouterr().err
    assert main(["prepare", TOY, "--if-missing"]) == 0
    assert (
        capsys.readouterr().out.strip() == "runs/toy/prepared is there already and kept as it is; --force replaces it."
    )
    assert report.stat().st_mtime_ns == before
    ids = Path("runs/toy/prepared/train/source.ids")
    ids.write_bytes(ids.read_bytes()[:-2])
    assert main(["prepare", TOY, "--if-missing"]) == 2
    assert "run `prepare` again" in capsys.readouterr().err
    report.unlink()
    assert main(["prepare", TOY, "--if-missing"]) == 2
    assert "--force replaces it" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        main(["prepare", TOY, "--if-missing", "--force"])


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["prepare", "gone.toml"], "gone.toml"),
        (["prepare", TOY, "--data", "gone"], "there is no such file"),
        (["train", TOY], "run `python -m training prepare` first"),
        (["average", TOY], "run `train` first"),
        (["evaluate", TOY], "run `train` first"),
        (["evaluate", TOY, "--checkpoint", "gone"], "must be a checkpoint"),
        (["evaluate", TOY, "--beam-size", "0"], "`--beam-size` must be between 1 and 64, but is 0."),
    ],
)
def test_what_is_missing_is_said_without_a_trace(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    arguments: list[str],
    said: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(arguments) == 2
    captured = capsys.readouterr()
    assert captured.err.startswith("error: ")
    assert said in captured.err


def test_a_wrong_configuration_is_reported_whole(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    text = (
        Path(TOY)
        .read_text(encoding="utf-8")
        .replace("width = 64", "width = 65")
        .replace("[train]", "[train]\nspeed = 1")
    )
    path = tmp_path / "wrong.toml"
    path.write_text(text, encoding="utf-8")
    assert main(["prepare", str(path)]) == 2
    assert "speed" in capsys.readouterr().err


def test_every_shipped_configuration_is_valid() -> None:
    names = {path.stem: load_config(path).name for path in CONFIGS.glob("*.toml")}
    assert {"en-zh", "multi30k-en-de", "toy"} <= names.keys()
    assert all(stem == name for stem, name in names.items())


def test_help_gives_commands_that_parse() -> None:
    parser = build_parser()
    help_text = parser.format_help()
    commands = [line.strip() for line in help_text.splitlines() if line.startswith("  python -m training ")]
    assert len(commands) == 5
    for command in commands:
        parser.parse_args(command.split()[3:])


def test_toy_data_keeps_test_apart_from_training(tmp_path: Path) -> None:
    paths = write_toy_data(tmp_path)
    sources = [{line.split("\t")[0] for line in path.read_text(encoding="utf-8").splitlines()} for path in paths]
    assert [path.name for path in paths] == ["train.tsv", "dev.tsv", "test.tsv"]
    assert sum(map(len, sources)) == len(set.union(*sources))
    assert len(sources[1]) >= MIN_PARITY_SENTENCES
    assert write_toy_data(tmp_path) == paths
