"""`python -m training`: prepare, train, average and evaluate from one configuration file."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from training.config import Config
from training.config_file import load_config

INTERRUPTED_STATUS = 130

DESCRIPTION = """\
Trains a translation model from parallel text. The usual course, for the toy that learns in seconds:

  python -m training toy-data runs/toy-data
  python -m training prepare  training/configs/toy.toml
  python -m training train    training/configs/toy.toml
  python -m training average  training/configs/toy.toml
  python -m training evaluate training/configs/toy.toml

Everything of a run lies in one directory, runs/NAME unless --run says otherwise:

  config.toml        the configuration it was started with
  prepared/          tokenizer, encoded data and the account of what was dropped (prepare)
  checkpoints/       the newest checkpoints and the best one (train)
  metrics.jsonl      loss, learning rate, speed, validation scores; also tensorboard/ and curves.png (train)
  averaged/          the mean of the last checkpoints (average)
  evaluation.json    BLEU and chrF of the test sets (evaluate)
"""

PREPARE = """\
Reads the corpora of the configuration, drops bad pairs and says how many and why, trains the SentencePiece tokenizer,
and writes the encoded pairs to RUN/prepared. Malformed lines are counted and listed by file and line. What is prepared
already is an error, replaced with --force, or kept as it is with --if-missing.

  python -m training prepare training/configs/en-zh.toml --data ../shared/data
"""

TRAIN = """\
Trains until the updates or seconds of the configuration are used up. Ctrl-C or SIGTERM saves a checkpoint and leaves;
the same command again goes on from the newest checkpoint as if nothing had happened. Exit status: 0 when training
ended, 130 when it was interrupted, 1 when it diverged. Under torchrun the `--` keeps it from taking --run for its own.

  python -m training train training/configs/en-zh.toml
  torchrun --nproc-per-node 2 -m -- training train training/configs/en-zh.toml
"""

AVERAGE = """\
Writes RUN/averaged: the mean of the weights of the newest checkpoints, which is often a little better than the last.

  python -m training average training/configs/en-zh.toml --last 5
"""

EVALUATE = """\
Translates the test sets of the configuration with a checkpoint and scores them: BLEU (sacreBLEU; its signature is in
the output) and chrF. Prints JSON and writes it to RUN/evaluation.json, or to --output.

  python -m training evaluate training/configs/en-zh.toml --data ../shared/data
  python -m training evaluate training/configs/en-zh.toml --beam-size 4 \\
      --checkpoint runs/en-zh/checkpoints/update_000500
"""

TOY_DATA = """\
Writes a small made-up language pair to DIRECTORY: numbers in words, to be translated to digits. A model learns it in
seconds, which makes it the quickest way to see every command work.

  python -m training toy-data runs/toy-data
"""


def build_parser() -> argparse.ArgumentParser:
    """The command line of `python -m training`."""
    parser = argparse.ArgumentParser(
        prog="python -m training", description=DESCRIPTION, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")

    def add(name: str, text: str, summary: str) -> argparse.ArgumentParser:
        return commands.add_parser(
            name, help=summary, description=text, formatter_class=argparse.RawDescriptionHelpFormatter
        )

    def add_run(command: argparse.ArgumentParser) -> None:
        command.add_argument("config", type=Path, metavar="CONFIG", help="configuration file (TOML)")
        command.add_argument("--run", type=Path, metavar="DIR", help="run directory (default: runs/NAME)")

    prepare = add("prepare", PREPARE, "filter the corpora, train the tokenizer, encode")
    add_run(prepare)
    prepare.add_argument("--data", type=Path, metavar="DIR", help="directory of the corpora (default: data.root)")
    earlier = prepare.add_mutually_exclusive_group()
    earlier.add_argument("--force", action="store_true", help="replace an earlier preparation")
    earlier.add_argument("--if-missing", action="store_true", help="keep an earlier preparation and do nothing")

    train = add("train", TRAIN, "train, or go on training")
    add_run(train)

    average = add("average", AVERAGE, "average the last checkpoints")
    add_run(average)
    average.add_argument("--last", type=int, metavar="N", help="checkpoints to average (default: train.average_last)")
    average.add_argument("--output", type=Path, metavar="DIR", help="where to write (default: RUN/averaged)")

    evaluate = add("evaluate", EVALUATE, "BLEU and chrF of the test sets")
    add_run(evaluate)
    evaluate.add_argument("--data", type=Path, metavar="DIR", help="directory of the test sets (default: data.root)")
    evaluate.add_argument(
        "--checkpoint",
        type=Path,
        metavar="DIR",
        help="checkpoint (default: RUN/averaged, else the best, else the newest)",
    )
    evaluate.add_argument("--beam-size", type=int, metavar="N", help="beams (default: evaluate.beam_size; 1 is greedy)")
    evaluate.add_argument("--output", type=Path, metavar="FILE", help="JSON file (default: RUN/evaluation.json)")

    toy_data = add("toy-data", TOY_DATA, "write the data of the toy")
    toy_data.add_argument("directory", type=Path, metavar="DIRECTORY", help="created when it does not exist")
    return parser


def run_command(arguments: argparse.Namespace) -> int:
    """Runs the parsed command; returns the exit status."""
    if arguments.command == "toy-data":
        return _toy_data(arguments)
    config = load_config(arguments.config)
    run_directory: Path = arguments.run or Path("runs") / config.name
    return _COMMANDS[arguments.command](config, run_directory, arguments)


def _prepare(config: Config, run_directory: Path, arguments: argparse.Namespace) -> int:
    from training.data import PREPARED_NAME, REPORT_NAME, PreparedData
    from training.prepare import prepare

    prepared = run_directory / PREPARED_NAME
    if arguments.if_missing and (prepared / REPORT_NAME).is_file():
        PreparedData.open(run_directory)  # raises where it is damaged
        print(f"{prepared} is there already and kept as it is; --force replaces it.")
        return 0
    report = prepare(config, run_directory, root=arguments.data, force=arguments.force)
    print(report.to_text())
    return 0


def _train(config: Config, run_directory: Path, _arguments: argparse.Namespace) -> int:
    from training.trainer import StopReason, TrainingDivergedError, train

    try:
        reason = train(config, run_directory)
    except TrainingDivergedError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    if int(os.environ.get("RANK", "0")) == 0:
        said = {
            StopReason.FINISHED: "finished",
            StopReason.EARLY: f"stopped early: {config.train.patience} validations brought nothing better",
            StopReason.INTERRUPTED: "interrupted and saved; the same command goes on from here",
        }
        print(said[reason])
    return INTERRUPTED_STATUS if reason is StopReason.INTERRUPTED else 0


def _average(config: Config, run_directory: Path, arguments: argparse.Namespace) -> int:
    from training.checkpoint import average_checkpoints, list_checkpoints
    from training.run_files import RunPaths

    paths = RunPaths(directory=run_directory)
    num_last = config.train.average_last if arguments.last is None else arguments.last
    if num_last < 1:
        raise ValueError(f"`--last` must be at least 1, but is {num_last}.")
    checkpoints = list_checkpoints(paths.checkpoints)[-num_last:]
    if not checkpoints:
        raise FileNotFoundError(f"{paths.checkpoints} must hold a checkpoint, but holds none: run `train` first.")
    output = arguments.output or paths.averaged
    average_checkpoints(checkpoints, output)
    print(f"{output}: mean of {', '.join(path.name for path in checkpoints)}")
    return 0


def _evaluate(config: Config, run_directory: Path, arguments: argparse.Namespace) -> int:
    from training.checkpoint import load_model
    from training.evaluate import decode_options, evaluate_sets, results_json

    beam_size = arguments.beam_size
    if beam_size is not None and not 1 <= beam_size <= 64:
        raise ValueError(f"`--beam-size` must be between 1 and 64, but is {beam_size}.")
    if not config.evaluate.test:
        raise ValueError(f"`evaluate.test` in {arguments.config} must name a test set, but is empty.")
    checkpoint = arguments.checkpoint or _checkpoint_to_evaluate(run_directory)
    model, tokenizer, _ = load_model(checkpoint)
    if config.train.threads:
        import torch

        torch.set_num_threads(config.train.threads)
    root = arguments.data or Path(config.data.root)
    results = evaluate_sets(model, tokenizer, config.evaluate.test, root, config.evaluate, beam_size=beam_size)
    text = results_json(checkpoint, decode_options(config.evaluate, beam_size), results)
    output = arguments.output or run_directory / "evaluation.json"
    output.parent.mkdir(parents=True, exist_ok=True)
    output.write_text(text, encoding="utf-8")
    print(text, end="")
    return 0


def _checkpoint_to_evaluate(run_directory: Path) -> Path:
    """The averaged checkpoint of a run, else its best, else its newest; FileNotFoundError when there is none."""
    from training.checkpoint import checkpoint_name, list_checkpoints, load_trainer_state
    from training.run_files import RunPaths

    paths = RunPaths(directory=run_directory)
    if paths.averaged.is_dir():
        return paths.averaged
    checkpoints = list_checkpoints(paths.checkpoints)
    if not checkpoints:
        raise FileNotFoundError(f"{paths.checkpoints} must hold a checkpoint, but holds none: run `train` first.")
    state = load_trainer_state(checkpoints[-1]).state
    best = paths.checkpoints / checkpoint_name(state.best_update)
    return best if best.is_dir() else checkpoints[-1]


def _toy_data(arguments: argparse.Namespace) -> int:
    from training.toy import write_toy_data

    for path in write_toy_data(arguments.directory):
        print(path)
    return 0


_COMMANDS: dict[str, Callable[[Config, Path, argparse.Namespace], int]] = {
    "prepare": _prepare,
    "train": _train,
    "average": _average,
    "evaluate": _evaluate,
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Entry point; problems of the user's making are said in words, without a trace."""
    parsed = build_parser().parse_args(arguments)
    try:
        return run_command(parsed)
    except (ValueError, FileNotFoundError, FileExistsError) as error:  # all of the project's own errors are ValueErrors
        print(f"error: {error}", file=sys.stderr)
        return 2


if __name__ == "__main__":
    sys.exit(main())
