"""`python -m service keys new NAME`: a new key, and its entry in the server's file."""

import argparse
import os
import sys
from pathlib import Path
from tempfile import NamedTemporaryFile
from typing import Any

from service.api_keys import ApiKey, new_key, read_keys
from service.caller import SAFE_NAME, Caller
from service.watched_files import FilesError, read_text


def add_keys_command(commands: Any) -> None:
    """Adds `keys` to the commands of a parser."""
    keys = commands.add_parser("keys", help="make keys for callers", description="Makes keys for callers of a server.")
    actions = keys.add_subparsers(required=True, metavar="ACTION")
    new = actions.add_parser(
        "new",
        help="make a key",
        description="Adds a key for a caller to a file of hashed keys (the setting `api_keys_file`) and prints it, "
        "which is the only time that it is seen. A running server reads the file anew.",
    )
    new.add_argument("name", metavar="NAME", help="the caller: 1 to 64 letters, digits and ._:-")
    new.add_argument("--file", required=True, metavar="FILE", help="file of keys; made when there is none")
    new.add_argument("--weight", type=float, default=1.0, metavar="FLOAT", help="share beside others' (default: 1)")
    new.add_argument("--max-calls", type=int, default=0, metavar="INT", help="calls in progress (default: 0, no limit)")
    new.add_argument(
        "--segments-per-second", type=float, default=0.0, metavar="FLOAT", help="on average (default: 0, no limit)"
    )
    new.add_argument(
        "--tokens-per-second", type=float, default=0.0, metavar="FLOAT", help="of the source (default: 0, no limit)"
    )
    new.add_argument("--model", action="append", default=[], metavar="NAME", help="a model it may use (default: all)")
    new.add_argument("--admin", action="store_true", help="may change what is served")
    new.set_defaults(run=_new)


def _new(parsed: argparse.Namespace) -> int:
    if not SAFE_NAME.fullmatch(parsed.name):
        print(f"NAME must be 1 to 64 letters, digits and ._:-, but is {parsed.name!r}.", file=sys.stderr)
        return 2
    key, entry = new_key(
        Caller(
            name=parsed.name,
            weight=parsed.weight,
            is_admin=parsed.admin,
            models=frozenset(parsed.model),
            max_calls=parsed.max_calls,
            segments_per_second=parsed.segments_per_second,
            tokens_per_second=parsed.tokens_per_second,
        )
    )
    try:
        _add(entry, Path(parsed.file).resolve())
    except FilesError as error:
        print("\n".join(error.problems), file=sys.stderr)
        return 1
    except OSError as error:
        print(f"{parsed.file} must be a file that can be written, but is not: {error.strerror}.", file=sys.stderr)
        return 1
    print(key)
    return 0


def _add(entry: ApiKey, path: Path) -> None:
    """Puts a file with one more key in the place of a file: whoever reads it sees all of the key or nothing.

    Raises:
        FilesError: when the file, or the entry beside the others, is not as it must be.
        OSError: when it cannot be written.
    """
    before, mode = "", 0o600
    if path.exists():
        before, mode = read_text(str(path)), path.stat().st_mode & 0o777
        read_keys(str(path))
    with NamedTemporaryFile("w", encoding="utf-8", dir=path.parent, prefix=f".{path.name}.", delete=False) as file:
        renewed = Path(file.name)
        try:
            file.write(f"{before.rstrip()}\n\n{entry.to_toml()}".lstrip())
            file.flush()
            os.fsync(file.fileno())
            renewed.chmod(mode)
            read_keys(str(renewed))
            renewed.replace(path)
        except FilesError as error:
            raise FilesError([problem.replace(str(renewed), str(path)) for problem in error.problems]) from None
        finally:
            renewed.unlink(missing_ok=True)
