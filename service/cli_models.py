"""The part of the command line that changes what a running server serves: `python -m service models list|load|…`."""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

import grpc

from service.client.errors import error_of
from service.pb.translation.admin.v1 import admin_pb2 as pb
from service.pb.translation.admin.v1 import admin_pb2_grpc

_NUM_WORDS = {"list": 0, "load": 1, "unload": 1, "default": 1}
ACTIONS = tuple(_NUM_WORDS)
Metadata = tuple[tuple[str, str], ...]


def add_change_flags(parser: argparse.ArgumentParser) -> None:
    """Adds what the actions of `models` take beside their words."""
    group = parser.add_argument_group("load, unload")
    group.add_argument("--dry-run", action="store_true", help="load: do all but serve it")
    group.add_argument("--canaries", metavar="FILE", help="load: lines that the new model must translate")
    group.add_argument("--min-similarity", type=float, metavar="FLOAT", help="load: with the old one's, 0 to 1")
    group.add_argument("--digest", default="", metavar="HEX", help="unload: only if its digest begins like this")


def change_models(
    words: Sequence[str],
    parsed: argparse.Namespace,
    credentials: grpc.ChannelCredentials | None,
    metadata: Metadata,
) -> int:
    """Asks the admin port at `parsed.address` for an action, prints what came of it and returns the exit code.

    Raises:
        TranslationError: when it is refused.
    """
    action, *rest = words
    if len(rest) != _NUM_WORDS[action]:
        print(f"`models {action}` must have {_NUM_WORDS[action]} argument(s), but has {len(rest)}.", file=sys.stderr)
        return 2
    address = parsed.address
    opened = grpc.insecure_channel(address) if credentials is None else grpc.secure_channel(address, credentials)
    with opened as channel:
        stub = cast(Any, admin_pb2_grpc).AdminServiceStub(channel)
        call = {"list": _list, "load": _load, "unload": _unload, "default": _default}[action]
        try:
            call(stub, rest, parsed, {"timeout": parsed.timeout, "metadata": metadata})
        except grpc.RpcError as error:
            raise error_of(error) from error
        except OSError as error:
            print(f"{parsed.canaries} must be readable, but is not: {error.strerror}.", file=sys.stderr)
            return 1
        except UnicodeDecodeError as error:
            print(f"{parsed.canaries} must be UTF-8, but its byte {error.start} is not.", file=sys.stderr)
            return 1
    return 0


def _list(stub: Any, _: Sequence[str], __: argparse.Namespace, how: dict[str, Any]) -> None:
    for model in stub.ListModels(pb.ListModelsRequest(), **how).models:
        pair = f"{model.source_language_code} → {model.target_language_code}"
        state = "" if model.is_served else "  serves its last calls"
        default = "  default" if model.is_default else ""
        work = f"{model.num_running} running, {model.num_waiting} waiting"
        print(
            f"{model.name}  {pair}  {model.precision}  {model.digest[:12]}  {model.directory}  {work}{default}{state}"
        )


def _load(stub: Any, words: Sequence[str], parsed: argparse.Namespace, how: dict[str, Any]) -> None:
    request = pb.LoadModelRequest(directory=words[0], dry_run=parsed.dry_run)
    if parsed.canaries is not None:
        lines = Path(parsed.canaries).read_text(encoding="utf-8").splitlines()
        request.canary_texts.extend(line for line in lines if line.strip())
    if parsed.min_similarity is not None:
        request.min_similarity = parsed.min_similarity
    reply = stub.LoadModel(request, **how)
    done = "served" if reply.has_changed else "would be served" if parsed.dry_run else "served already"
    replaced = f", in place of {reply.replaced_digest[:12]}" if reply.replaced_digest else ""
    print(f"{reply.name} {reply.digest[:12]}: {done}{replaced}")
    canary = reply.canary
    if canary.num_texts:
        print(
            f"    {canary.num_texts} canary texts translated; {canary.num_equal} of {canary.num_compared} as before, "
            f"mean similarity {canary.mean_similarity:.3f}; segments cut: {canary.num_cut_before} before, "
            f"{canary.num_cut_after} now"
        )


def _unload(stub: Any, words: Sequence[str], parsed: argparse.Namespace, how: dict[str, Any]) -> None:
    reply = stub.UnloadModel(pb.UnloadModelRequest(name=words[0], digest=parsed.digest), **how)
    print(f"{words[0]} {reply.digest[:12]}: out of service")


def _default(stub: Any, words: Sequence[str], _: argparse.Namespace, how: dict[str, Any]) -> None:
    reply = stub.SetDefaultModel(pb.SetDefaultModelRequest(name=words[0]), **how)
    print(f"{words[0]}: default now, before it {reply.previous_name}")
