"""`python -m training`: prepare, train, average and evaluate from one configuration file."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from service.tokenizer import TokenizerError
from training.config import Config, ConfigError, load_config
from training.corpus import CorpusError

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
and writes the encoded pairs to RUN/prepared. Malformed lines are counted and listed by file and line.

  python -m training prepare training/configs/en-zh.toml --data ../shared/data
"""

TRAIN = """\
Trains until the updates or seconds of the configuration are used up. Ctrl-C or SIGTERM saves a checkpoint and leaves;
the same command again goes on from the newest checkpoint as if nothing had happened.

  python -m training train training/configs/en-zh.toml
  torchrun --nproc-per-node 2 -m training train training/configs/en-zh.toml
"""

AVERAGE = """\
Writes RUN/averaged: the mean of the weights of the newest checkpoints, which is often a little better than the last.

  python -m training average training/configs/en-zh.toml --last 5
"""

EVALUATE = """\
Translates the test sets of the configuration with a checkpoint and scores them: BLEU (sacreBLEU; its signature is in the
output) and chrF. Prints JSON and writes it to RUN/evaluation.json, or to --output.

  python -m training evaluate training/configs/en-zh.toml --data ../shared/data
  python -m training evaluate training/configs/en-zh.toml --checkpoint runs/en-zh/checkpoints/update_000500 --beam-size 4
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
    prepare.add_argument("--force", action="store_true", help="replace an earlier preparation")

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
        "--checkpoint", type=Path, metavar="DIR", help="checkpoint (default: RUN/averaged, else the best, else the newest)"
    )
    evaluate.add_argument("--beam-size", type=int, metavar="N", help="beams (default: evaluate.beam_size; 1 is greedy)")
    evaluate.add_argument("--output", type=Path, metavar="FILE", help="JSON file (default: RUN/evaluation.json)")

    toy_data = add("toy-data", TOY_DATA, "write the data of the toy")
    toy_data.add_argument("directory", type=Path, metavar="DIRECTORY", help="created when it does not exist")
    return parser


def run_command(arguments: argparse.Namespace) -> int:
    """Runs the parsed command; returns the exit status."""
    config = load_config(arguments.config)
    run_directory = arguments.run or Path("runs") / config.name
    if arguments.command == "prepare":
        return _prepare(config, run_directory, arguments)
    raise AssertionError(arguments.command)


def _prepare(config: Config, run_directory: Path, arguments: argparse.Namespace) -> int:
    from training.prepare import prepare

    report = prepare(config, run_directory, root=arguments.data, force=arguments.force)
    print(report.to_text())
    return 0


def main() -> int:
    """Entry point; problems of the user's making are said in words, without a trace."""
    arguments = build_parser().parse_args()
    try:
        return run_command(arguments)
    except (ConfigError, CorpusError, TokenizerError, FileNotFoundError, FileExistsError, ValueError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2


if __name__ == "__main__":
    sys.exit(main())
