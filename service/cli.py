"""The command line: `python -m service serve|translate|score|models|check|keys`."""

import argparse
import json
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from service.cli_decoding import add_decoding_flags, add_ranking_flags, options_of
from service.cli_keys import add_keys_command
from service.cli_models import ACTIONS, add_change_flags, change_models
from service.cli_output import print_alignments, print_cost, print_details, print_hypotheses, print_score
from service.client import DEFAULT_ADDRESS, Client, DecodingOptions, InvalidRequestError, Translation, TranslationError
from service.client.connection import credentials_of
from service.config import Config, ConfigError, add_flags, load_config
from service.watched_files import FilesError

_EXAMPLES = """examples:
  python -m service serve --models models
  python -m service translate "The function returns a null pointer." -v
  python -m service translate "Save the file." --beam-size 4 --n-best 3
  python -m service translate --stream < page.txt
  python -m service score "Save the file." "保存文件。"
  python -m service models --address 127.0.0.1:50051
  python -m service models load en-zh --address 127.0.0.1:50052
  python -m service check models/en-zh
  python -m service keys new shop --file keys.toml
"""


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs one command and returns the exit code."""
    parsed = _parser().parse_args(arguments)
    try:
        return int(parsed.run(parsed))
    except ConfigError as error:
        print(error, file=sys.stderr)
        return 2
    except FilesError as error:
        print(error, file=sys.stderr)
        return 2
    except TranslationError as error:
        _print_error(error)
        return 1
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:  # the reader of our output has gone, as `head` does
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m service",
        description="Translates text by gRPC: serve models, or call a server.",
        epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    serve = commands.add_parser(
        "serve",
        help="serve the models of a directory",
        description="Serves every bundle below a directory until SIGTERM or Ctrl-C. Settings come from a TOML file, "
        "then the environment (DRAGOMAN_MAX_ROWS), then flags; prints one line when ready.",
    )
    add_flags(serve)
    serve.add_argument("--print-config", action="store_true", help="print the settings as TOML and leave")
    serve.set_defaults(run=_serve)

    translate = commands.add_parser(
        "translate",
        help="translate a text through a server",
        description="Prints the translation of TEXT, or of stdin.",
    )
    translate.add_argument("text", nargs="?", metavar="TEXT", help="what to translate; left out: stdin")
    translate.add_argument("-v", "--verbose", action="store_true", help="also the segments, scores, flags and timings")
    translate.add_argument("--stream", action="store_true", help="print text as it becomes certain")
    translate.add_argument("--alignment", action="store_true", help="also which source word each word comes from")
    translate.add_argument(
        "--alignment-plot", metavar="FILE", help="draw the attention, source by target (.png, .svg, .pdf)"
    )
    _add_model_flags(translate)
    add_decoding_flags(translate)
    _add_client_flags(translate)
    translate.set_defaults(run=_translate)

    score = commands.add_parser(
        "score",
        help="score a translation through a server",
        description="Prints the score of TRANSLATION as a translation of SOURCE (the sum of the natural-log "
        "probabilities of its tokens) and the score normalized for its length. Without both: of each line of stdin, "
        "source and translation parted by a tab.",
    )
    score.add_argument("source_text", nargs="?", metavar="SOURCE", help="a sentence")
    score.add_argument("translation", nargs="?", metavar="TRANSLATION", help="its translation")
    score.add_argument("-v", "--verbose", action="store_true", help="also the tokens with theirs, and timings")
    score.add_argument("--alignment", action="store_true", help="also which source word each word comes from")
    _add_model_flags(score)
    add_ranking_flags(score)
    _add_client_flags(score)
    score.set_defaults(run=_score)

    models = commands.add_parser(
        "models",
        help="list or change what is served",
        description="Lists the models of a server, or of a DIRECTORY of bundles. With an action, lists or changes what "
        "a running server serves; --address is its admin address then. Actions: list; load BUNDLE (a sub-directory of "
        "the server's models); unload NAME; default NAME (of its language pair).",
    )
    models.add_argument(
        "words", nargs="*", metavar="DIRECTORY | ACTION ...", help="a directory of bundles; left out: the server"
    )
    add_change_flags(models)
    _add_client_flags(models)
    models.set_defaults(run=_models)

    check = commands.add_parser(
        "check",
        help="verify a bundle",
        description="Verifies every file of a bundle, opens its graphs and runs the same-bytes probe on this machine. "
        "Says OK, or every problem with exit code 1.",
    )
    check.add_argument("bundle", metavar="BUNDLE", help="directory of the bundle")
    check.add_argument(
        "--num-threads", type=int, default=0, metavar="INT", help="threads (default: the cores there are)"
    )
    check.set_defaults(run=_check)

    add_keys_command(commands)
    return parser


def _add_model_flags(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--source", default="", metavar="LANGUAGE", help="language of the text (default: the model's)")
    parser.add_argument("--target", default="", metavar="LANGUAGE", help="language wanted (default: the model's)")
    parser.add_argument("--model", default="", metavar="NAME", help="which model (default: the pair's)")
    parser.add_argument(
        "--priority",
        choices=("interactive", "bulk"),
        default="interactive",
        help="bulk fills the rows that interactive work leaves (default interactive)",
    )


def _add_client_flags(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--address", default=DEFAULT_ADDRESS, metavar="HOST:PORT", help=f"default {DEFAULT_ADDRESS}")
    parser.add_argument("--timeout", type=float, default=60.0, metavar="SECONDS", help="default 60")
    parser.add_argument("--tls", action="store_true", help="encrypt, and trust whom the system trusts")
    parser.add_argument("--root-certificates", metavar="FILE", help="encrypt, and trust these (PEM)")
    parser.add_argument("--certificate", metavar="FILE", help="the client's certificate (PEM), if the server wants one")
    parser.add_argument("--key", metavar="FILE", help="its private key (PEM)")
    parser.add_argument("--api-key-file", metavar="FILE", help="file of the key or token to show")
    parser.add_argument(
        "--allow-plaintext-key", action="store_true", help="show it to another machine without TLS, too"
    )


def _connection(parsed: argparse.Namespace) -> dict[str, Any]:
    """How flags say that a server is trusted, and who asks; see `Client`.

    Raises:
        FilesError: when a file cannot be read.
    """

    def read(path: str | None) -> bytes | None:
        try:
            return None if path is None else Path(path).read_bytes()
        except OSError as error:
            raise FilesError([f"{path} must be readable, but is not: {error.strerror}."]) from error

    return {
        "tls": parsed.tls,
        "root_certificates": read(parsed.root_certificates),
        "certificate": read(parsed.certificate),
        "key": read(parsed.key),
        "api_key": (read(parsed.api_key_file) or b"").decode(errors="replace").strip(),
        "allow_plaintext_key": parsed.allow_plaintext_key,
    }


def _client(parsed: argparse.Namespace) -> Client:
    """The client that flags describe.

    Raises:
        FilesError: when a file cannot be read, or the flags do not go together.
    """
    flags = _connection(parsed)
    try:
        return Client(parsed.address, timeout_seconds=parsed.timeout, **flags)
    except ValueError as error:
        raise FilesError([str(error)]) from error


def _serve(parsed: argparse.Namespace) -> int:
    config = load_config(file=parsed.config, environment=os.environ, flags=vars(parsed))
    if parsed.print_config:
        print(config.to_toml(), end="")
        return 0
    from service.server import serve  # ONNX Runtime is loaded only where it is used

    return serve(config)


def _translate(parsed: argparse.Namespace) -> int:
    text = sys.stdin.read() if parsed.text is None else parsed.text
    options = options_of(parsed, with_alignment=parsed.alignment or parsed.alignment_plot is not None)
    with _client(parsed) as client:
        translation = (_print_stream if parsed.stream else _print_translation)(client, text, parsed, options)
    if any(segment.hypotheses for segment in translation.segments):
        print_hypotheses(translation.segments)
    if parsed.alignment:
        print_alignments(translation.segments)
    if parsed.verbose:
        print_details(translation)
    return _plot(translation, parsed.alignment_plot) if parsed.alignment_plot is not None else 0


def _print_translation(client: Client, text: str, parsed: argparse.Namespace, options: DecodingOptions) -> Translation:
    (translation,) = client.translate(
        [text],
        source=parsed.source,
        target=parsed.target,
        model=parsed.model,
        options=options,
        priority=parsed.priority,
    )
    sys.stdout.write(translation.text if translation.text.endswith("\n") else translation.text + "\n")
    return translation


def _print_stream(client: Client, text: str, parsed: argparse.Namespace, options: DecodingOptions) -> Translation:
    last = ""
    with client.stream(
        [text],
        source=parsed.source,
        target=parsed.target,
        model=parsed.model,
        options=options,
        priority=parsed.priority,
    ) as stream:
        try:
            for piece in stream:
                last = piece.text or last
                sys.stdout.write(piece.text)
                sys.stdout.flush()
        finally:
            if not last.endswith("\n"):
                sys.stdout.write("\n")
    return stream.translations[0]


def _plot(translation: Translation, path: str) -> int:
    from service.alignment_plot import MAX_PANELS, PlotError, draw_alignments

    try:
        missing = draw_alignments(translation.segments, path)
    except PlotError as error:
        print(error, file=sys.stderr)
        return 1
    num_segments = sum(segment.alignment is not None for segment in translation.segments)
    if num_segments > MAX_PANELS:
        print(f"Drawn are the first {MAX_PANELS} of {num_segments} segments.", file=sys.stderr)
    if missing and not path.endswith(".svg"):
        characters = "".join(sorted(missing))
        print(f"No font here has {characters}: boxes stand for them. An .svg shows them anywhere.", file=sys.stderr)
    return 0


def _score(parsed: argparse.Namespace) -> int:
    if parsed.translation is not None:
        pairs = [(parsed.source_text, parsed.translation)]
    elif parsed.source_text is not None:
        print("SOURCE must come with a TRANSLATION, or both by stdin.", file=sys.stderr)
        return 2
    else:
        lines = [line for line in sys.stdin.read().splitlines() if line]
        wrong = [number for number, line in enumerate(lines, start=1) if line.count("\t") != 1]
        if wrong:
            print(f"Each line must have one tab, but line {wrong[0]} has not.", file=sys.stderr)
            return 2
        pairs = [(source, target) for source, _, target in (line.partition("\t") for line in lines)]
    with _client(parsed) as client:
        scores = client.score(
            [source for source, _ in pairs],
            [target for _, target in pairs],
            source=parsed.source,
            target=parsed.target,
            model=parsed.model,
            options=options_of(parsed, with_alignment=parsed.alignment),
            priority=parsed.priority,
        )
    for score in scores:
        print_score(score, is_verbose=parsed.verbose)
    if parsed.verbose and scores:
        print(f"\nmodel {scores[0].model} {scores[0].metadata.model_digest[:12]}")
        print_cost(scores[0].metadata)
    return 0


def _print_error(error: TranslationError) -> None:
    print(f"{error.code}: {error}", file=sys.stderr)
    if isinstance(error, InvalidRequestError):
        for violation in error.violations:
            print(f"  {violation.field}: {violation.description}", file=sys.stderr)
    if error.request_id:
        print(f"  request {error.request_id}", file=sys.stderr)


def _models(parsed: argparse.Namespace) -> int:
    if parsed.words and parsed.words[0] in ACTIONS:
        flags = _connection(parsed)
        try:
            credentials, metadata = credentials_of(parsed.address, **flags)
        except ValueError as error:
            raise FilesError([str(error)]) from error
        return change_models(parsed.words, parsed, credentials, metadata)
    if len(parsed.words) > 1:
        print(f"`models` must have one directory or an action, but has {parsed.words}.", file=sys.stderr)
        return 2
    if parsed.words:
        return _models_of_directory(Path(parsed.words[0]))
    with _client(parsed) as client:
        info = client.info()
    for model in info.models:
        same = "same bytes" if model.is_same_bytes else "NOT the same bytes under load"
        pair = f"{model.source_language_code} → {model.target_language_code}"
        print(f"{model.name}  {pair}  {model.precision}  {model.digest[:12]}  {same}")
        defaults = (f"{entry.name} {json.dumps(value)}" for entry, value in model.default_decoding_options.ListFields())
        print(f"    decoding: {', '.join(defaults)}")
    print(f"version {info.version}, ONNX Runtime {info.runtime_version}, {info.provider}, {info.num_threads} thread(s)")
    return 0


def _models_of_directory(directory: Path) -> int:
    from service.bundle import BundleError, load_bundle
    from service.models import ModelsError, find_bundles

    exit_code = 0
    try:
        bundles = find_bundles(directory)
    except ModelsError as error:
        print(error, file=sys.stderr)
        return 1
    for path in bundles:
        try:
            bundle = load_bundle(path)
        except BundleError as error:
            print(error, file=sys.stderr)
            exit_code = 1
            continue
        manifest = bundle.manifest
        pair = f"{manifest.source_language} → {manifest.target_language}"
        print(f"{manifest.name}  {pair}  {manifest.precision}  {bundle.digest[:12]}  {path}")
    return exit_code


def _check(parsed: argparse.Namespace) -> int:
    from service.bundle import BundleError
    from service.models import ModelsError, open_model, same_bytes_problem

    flags = {"num_threads": parsed.num_threads}
    config: Config = load_config(flags=flags)
    try:
        model = open_model(parsed.bundle, config.engine)
    except (BundleError, ModelsError) as error:
        print(error, file=sys.stderr)
        return 1
    manifest = model.bundle.manifest
    if not model.probe.is_same_bytes:
        print(f"{parsed.bundle}: {same_bytes_problem(model.probe)}", file=sys.stderr)
        return 1
    num_bytes = sum(record.num_bytes for record in manifest.files.values())
    print(
        f"OK: {manifest.name} {model.bundle.digest[:12]} {manifest.precision}, {len(manifest.files)} files, "
        f"{num_bytes / 1e6:.1f} MB, same bytes alone and together on this machine "
        f"({len(model.runners)} engine(s) of {model.num_threads} thread(s))"
    )
    return 0
