"""`python -m export`: make a bundle, verify one, look into one."""

from __future__ import annotations

import argparse
import dataclasses
import logging
import sys
import typing
from collections.abc import Sequence
from pathlib import Path

from export.build import export_bundle
from export.config import MIN_PARITY_SENTENCES, ExportConfig, ExportError, VerifyConfig, parse_validation
from export.inspect import describe
from export.reverify import verify_bundle
from service.bundle import BundleError, load_bundle
from service.manifest import DecodingDefaults
from service.tokenizer import TokenizerError
from training.checkpoint import CheckpointError
from training.config import ConfigError

_EPILOG = """\
Make a bundle (held-out sets from the checkpoint's training record, files below DATA):
  python -m export runs/en-zh/averaged --output build/en-zh --precision int8 --data DATA
Check one again, against its checkpoint or alone:
  python -m export verify build/en-zh --checkpoint runs/en-zh/averaged --data DATA
Look into one:
  python -m export inspect build/en-zh

A bundle is verified before it is written: names, axes and types of the graphs, numbers at odd shapes, greedy tokens of
real sentences, BLEU and chrF, and the same bits alone as in company. What fails is listed, and nothing is written.
"""


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs one command; returns the process's exit status: 0 done, 1 refused or failed, 2 used wrongly."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)  # it speaks of packages we do not use
    try:
        if words[:1] == ["verify"]:
            return _verify(words[1:])
        if words[:1] == ["inspect"]:
            return _inspect(words[1:])
        return _export(words)
    except (ExportError, BundleError, CheckpointError, ConfigError, TokenizerError, FileExistsError) as error:
        print(error, file=sys.stderr)
        return 1


def _export(words: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m export",
        description="Turn a checkpoint into a verified bundle.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("checkpoint", type=Path, help="directory of the checkpoint")
    parser.add_argument("--output", type=Path, required=True, help="directory of the bundle; must not exist")
    parser.add_argument("--precision", choices=("fp32", "int8"), required=True, help="precision of the weights")
    parser.add_argument("--name", default="", help="name of the model (default: its languages, as in en-zh)")
    parser.add_argument("--licence", default="", help="licence of the model (default: its corpora's)")
    parser.add_argument("--external-data", action="store_true", help="store the weights apart, in *.onnx.data")
    parser.add_argument(
        "--alignment-layer", type=int, help="decoder layer, 0 the first, whose attention aligns (default: the last)"
    )
    parser.add_argument(
        "--greedy-steps",
        type=int,
        help="steps of greedy search in one run; 1: no graph for it (default: 4 for a small decoder, else 1)",
    )
    _add_decoding_options(parser)
    _add_verify_options(parser)
    parsed = parser.parse_args(words)
    bundle = export_bundle(
        ExportConfig(
            checkpoint=parsed.checkpoint,
            output=parsed.output,
            precision=parsed.precision,
            name=parsed.name,
            licence=parsed.licence,
            is_external_data=parsed.external_data,
            alignment_layer=parsed.alignment_layer,
            greedy_steps=parsed.greedy_steps,
            decoding=DecodingDefaults(
                **{entry.name: getattr(parsed, entry.name) for entry in dataclasses.fields(DecodingDefaults)}
            ),
            verify=_verify_config(parser, parsed),
        )
    )
    print(describe(bundle), end="")
    return 0


def _verify(words: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m export verify", description="Verify a bundle: its bytes, its graphs, and what it promises."
    )
    parser.add_argument("bundle", type=Path, help="directory of the bundle")
    parser.add_argument(
        "--checkpoint", type=Path, help="compare with this checkpoint; without it only what the bundle shows alone"
    )
    _add_verify_options(parser)
    parsed = parser.parse_args(words)
    for line in verify_bundle(parsed.bundle, parsed.checkpoint, _verify_config(parser, parsed)):
        print(line)
    return 0


def _inspect(words: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(prog="python -m export inspect", description="Describe a bundle for people.")
    parser.add_argument("bundle", type=Path, help="directory of the bundle")
    print(describe(load_bundle(parser.parse_args(words).bundle)), end="")
    return 0


def _add_decoding_options(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group(
        "decoding", "what these options are where a call does not give them; left out: the service's own defaults"
    )
    hints = typing.get_type_hints(DecodingDefaults)
    for entry in dataclasses.fields(DecodingDefaults):
        flag = f"--{entry.name.replace('_', '-')}"
        (kind,) = (each for each in typing.get_args(hints[entry.name]) if each is not type(None))
        if kind is bool:
            group.add_argument(flag, action=argparse.BooleanOptionalAction, default=None)
        else:
            group.add_argument(flag, type=kind, metavar="N" if kind is int else "X")


def _add_verify_options(parser: argparse.ArgumentParser) -> None:
    default = VerifyConfig()
    parser.add_argument(
        "--validation",
        action="append",
        default=[],
        metavar="[NAME=]FILE.tsv",
        help="held-out set, or SOURCE,TARGET for paired files; may be repeated (default: the training record's sets)",
    )
    parser.add_argument("--data", type=Path, help="directory that the sets' files are relative to")
    parser.add_argument(
        "--max-sentences", type=int, default=default.max_sentences, help="taken from each set (default %(default)s)"
    )
    parser.add_argument(
        "--min-parity-sentences",
        type=int,
        default=MIN_PARITY_SENTENCES,
        help="fewest sentences compared; fewer than %(default)s is recorded and not fit to publish",
    )
    parser.add_argument(
        "--max-bleu-loss",
        type=float,
        default=default.max_bleu_loss,
        help="most BLEU that int8 may lose on a set (default %(default)s)",
    )
    parser.add_argument("--threads", type=int, default=default.num_threads, help="default %(default)s")


def _verify_config(parser: argparse.ArgumentParser, parsed: argparse.Namespace) -> VerifyConfig:
    try:
        validation = tuple(parse_validation(text) for text in parsed.validation)
    except ValueError as error:
        parser.error(str(error))
    return VerifyConfig(
        validation=validation,
        data_root=parsed.data,
        max_sentences=parsed.max_sentences,
        min_parity_sentences=parsed.min_parity_sentences,
        max_bleu_loss=parsed.max_bleu_loss,
        num_threads=parsed.threads,
    )


if __name__ == "__main__":
    sys.exit(main())
