"""What is served is changed over a port of its own while calls go on, by the interface and the command line."""

import asyncio
import shutil
import signal
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from io import StringIO
from pathlib import Path
from typing import Any

import grpc
import pytest
from google.rpc import error_details_pb2, status_pb2

from service.bundle import ENCODER_NAME, load_bundle
from service.cli import main
from service.config import load_config
from service.pb.translation.admin.v1 import admin_pb2 as pb
from service.pb.translation.admin.v1 import admin_pb2_grpc
from service.pb.translation.v1 import translation_pb2_grpc
from service.server import Server
from tests.integration.serving import request, stub_of, unpack
from tests.synthetic.bundle import SyntheticOptions, sentences
from tests.synthetic.fixtures import COPY, REVERSE, synthetic_bundle

OTHER = SyntheticOptions(name="other", layers=1)
TEXTS = sentences(3, seed=8)


@pytest.fixture
def bundles(tmp_path: Path) -> Path:
    """`synthetic`, which copies; `.next` reverses under the same name, `.other` has another one."""
    for name, options in (("synthetic", COPY), (".next", REVERSE), (".other", OTHER)):
        shutil.copytree(synthetic_bundle(options).directory, tmp_path / "models" / name)
    return tmp_path / "models"


@asynccontextmanager
async def serving(models: Path, **flags: Any) -> AsyncIterator[Server]:
    """A server in the test's own event loop, ready."""
    settings = {"address": "127.0.0.1:0", "admin_address": "127.0.0.1:0", "metrics_address": "", "models": str(models),
                "num_workers": 1, "num_threads": 1, "max_rows": 8, "shutdown_delay_seconds": 0.0}  # fmt: skip
    output = StringIO()
    server = Server(load_config(flags={**settings, **flags}), output=output)
    task = asyncio.create_task(server.run())
    try:
        async with asyncio.timeout(60):
            while "Serving" not in output.getvalue():
                assert not task.done(), task
                await asyncio.sleep(0.001)
        assert f", admin on {server.admin_address}: " in output.getvalue()
        yield server
    finally:
        server.stop(signal.SIGTERM)
        assert await task == 0


@asynccontextmanager
async def admin_of(server: Server) -> AsyncIterator[Any]:
    async with grpc.aio.insecure_channel(server.admin_address) as channel:
        yield admin_pb2_grpc.AdminServiceStub(channel)  # type: ignore[no-untyped-call]


async def refusal(call: Any) -> tuple[str, list[str]]:
    """Code, reason and problems of a call that must fail."""
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await call
    found = unpack(caught.value)
    trailers = dict(caught.value.trailing_metadata() or ())
    details = error_details_pb2.PreconditionFailure()
    for detail in status_pb2.Status.FromString(trailers.get("grpc-status-details-bin", b"")).details:
        detail.Unpack(details)
    return f"{found.code} {found.reason}", [each.description for each in details.violations]


async def test_operators_change_what_is_served(bundles: Path) -> None:
    first, second, other = (load_bundle(bundles / name).digest for name in ("synthetic", ".next", ".other"))
    async with serving(bundles) as server, admin_of(server) as admin, stub_of(server.address) as stub:
        (listed,) = (await admin.ListModels(pb.ListModelsRequest())).models
        assert (listed.name, listed.digest, listed.directory) == ("synthetic", first, "synthetic")
        assert (listed.is_default, listed.is_served, listed.num_running) == (True, True, 0)

        tried = pb.LoadModelRequest(directory=".next", canary_texts=TEXTS, min_similarity=0.99)
        code, (problem,) = await refusal(admin.LoadModel(tried))
        assert code == "FAILED_PRECONDITION CANARY_FAILED"
        assert "mean similarity of at least 0.99" in problem
        tried.min_similarity = 0.0
        tried.dry_run = True
        reply = await admin.LoadModel(tried)
        assert (reply.name, reply.digest, reply.replaced_digest, reply.has_changed) == (
            "synthetic",
            second,
            first,
            False,
        )
        assert (reply.canary.num_texts, reply.canary.num_compared, reply.canary.num_equal) == (3, 3, 0)
        assert (await stub.TranslateText(request(*TEXTS))).metadata.model_digest == first
        tried.dry_run = False
        assert (await admin.LoadModel(tried)).has_changed
        assert (await stub.TranslateText(request(*TEXTS))).metadata.model_digest == second

        assert (await refusal(admin.UnloadModel(pb.UnloadModelRequest(name="synthetic"))))[0].endswith("LAST_MODEL")
        await admin.LoadModel(pb.LoadModelRequest(directory=".other"))
        assert (await stub.TranslateText(request(*TEXTS))).metadata.model_digest == other
        default = await admin.SetDefaultModel(pb.SetDefaultModelRequest(name="synthetic"))
        assert default.previous_name == "other"
        assert (await stub.TranslateText(request(*TEXTS))).metadata.model_digest == second
        assert (await refusal(admin.SetDefaultModel(pb.SetDefaultModelRequest(name="x"))))[0] == (
            "NOT_FOUND MODEL_NOT_FOUND"
        )
        unloaded = await admin.UnloadModel(pb.UnloadModelRequest(name="synthetic", digest=second[:12]))
        assert unloaded.digest == second
        assert (await stub.TranslateText(request(*TEXTS))).metadata.model_digest == other

        (bundles / "synthetic" / ENCODER_NAME).write_bytes(b"damaged")
        code, problems = await refusal(admin.LoadModel(pb.LoadModelRequest(directory="synthetic")))
        assert code == "FAILED_PRECONDITION BUNDLE_REFUSED"
        assert "encoder.onnx must have" in problems[0]
        loads = [asyncio.ensure_future(admin.LoadModel(pb.LoadModelRequest(directory=".next"))) for _ in range(2)]
        outcomes = await asyncio.gather(*loads, return_exceptions=True)
        (refused,) = [error for error in outcomes if isinstance(error, grpc.aio.AioRpcError)]
        assert unpack(refused).reason == "SWAP_IN_PROGRESS"


async def test_each_service_has_its_port(bundles: Path) -> None:
    async with serving(bundles) as server:
        async with grpc.aio.insecure_channel(server.address) as channel:
            admin: Any = admin_pb2_grpc.AdminServiceStub(channel)  # type: ignore[no-untyped-call]
            assert (await refusal(admin.ListModels(pb.ListModelsRequest())))[0].startswith("UNIMPLEMENTED")
        async with grpc.aio.insecure_channel(server.admin_address) as channel:
            stub: Any = translation_pb2_grpc.TranslationServiceStub(channel)  # type: ignore[no-untyped-call]
            assert (await refusal(stub.TranslateText(request("x"))))[0].startswith("UNIMPLEMENTED")


async def test_calls_through_swaps_are_all_answered_by_one_model(bundles: Path) -> None:
    async with serving(bundles) as server, admin_of(server) as admin, stub_of(server.address) as stub:
        wanted: dict[str, list[str]] = {}

        async def translate() -> tuple[str, list[str]]:
            reply = await stub.TranslateText(request(*TEXTS))
            return reply.metadata.model_digest, [each.translated_text for each in reply.translations]

        async def stream() -> tuple[str, list[str]]:
            pieces = [""] * len(TEXTS)
            async for message in stub.StreamTranslateText(request(*TEXTS)):
                if message.HasField("piece"):
                    pieces[message.piece.contents_index] += message.piece.text
                else:
                    result = message.result
            assert [each.translated_text for each in result.translations] == pieces
            return result.metadata.model_digest, pieces

        for directory in (".next", "synthetic"):
            await admin.LoadModel(pb.LoadModelRequest(directory=directory, min_similarity=0.0))
            digest, texts = await translate()
            wanted[digest] = texts
        counts = dict.fromkeys(wanted, 0)
        is_over = False

        async def calls(call: Any) -> None:
            while not is_over:
                digest, texts = await call()
                assert texts == wanted[digest]
                counts[digest] += 1

        callers = [asyncio.create_task(calls(call)) for call in (translate, stream, translate)]
        for directory in (".next", "synthetic") * 2:
            await admin.LoadModel(pb.LoadModelRequest(directory=directory, min_similarity=0.0))
        is_over = True
        await asyncio.gather(*callers)
        assert min(counts.values()) > 5


async def test_a_bundle_that_takes_anothers_place_is_served(bundles: Path) -> None:
    wanted = load_bundle(bundles / ".next").digest
    async with serving(bundles, models_poll_seconds=0.01) as server, stub_of(server.address) as stub:
        (bundles / "synthetic").rename(bundles / ".old")
        (bundles / ".next").rename(bundles / "synthetic")
        async with asyncio.timeout(60):
            while (await stub.TranslateText(request("x"))).metadata.model_digest != wanted:
                pass


async def test_only_administrators_where_callers_are_known(bundles: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = bundles.parent / "keys.toml"
    keys = {}
    for name, flags in (("shop", []), ("operator", ["--admin"])):
        assert main(["keys", "new", name, "--file", str(file), *flags]) == 0
        keys[name] = capsys.readouterr().out.strip()
    async with serving(bundles, api_keys_file=str(file)) as server, admin_of(server) as admin:

        async def outcome(**given: Any) -> str:
            return (await refusal(admin.ListModels(pb.ListModelsRequest(), **given)))[0]

        assert await outcome() == "UNAUTHENTICATED CREDENTIALS_MISSING"
        assert await outcome(metadata=(("x-api-key", keys["shop"]),)) == "PERMISSION_DENIED NOT_ALLOWED"
        shown = (("x-api-key", keys["operator"]),)
        assert len((await admin.ListModels(pb.ListModelsRequest(), metadata=shown)).models) == 1
        (bundles.parent / "key").write_text(keys["operator"], encoding="utf-8")
        words = ["models", "list", "--address", server.admin_address, "--api-key-file", str(bundles.parent / "key")]
        assert await asyncio.to_thread(main, words) == 0


async def test_the_command_line(bundles: Path, capsys: pytest.CaptureFixture[str]) -> None:
    digest = load_bundle(bundles / ".next").digest[:12]
    (bundles.parent / "canaries.txt").write_text("\n\n".join(TEXTS), encoding="utf-8")
    async with serving(bundles) as server:

        async def run(*words: str) -> tuple[int, str, str]:
            code = await asyncio.to_thread(main, ["models", *words, "--address", server.admin_address])
            return code, *capsys.readouterr()

        flags = ["--canaries", str(bundles.parent / "canaries.txt"), "--min-similarity", "1"]
        code, _, error = await run("load", ".next", *flags)
        assert (code, "mean similarity of at least 1 " in error) == (1, True)
        flags[-1] = "0"
        code, said, _ = await run("load", ".next", *flags)
        assert (code, said.splitlines()[0][:40]) == (0, f"synthetic {digest}: served, in place"[:40])
        assert "3 canary texts translated; 0 of 3 as before" in said
        assert "served already" in (await run("load", ".next"))[1]
        assert "would be served" in (await run("load", ".other", "--dry-run"))[1]
        await run("load", ".other")
        assert "synthetic: default now, before it other" in (await run("default", "synthetic"))[1]
        _, said, _ = await run("list")
        assert [line.split()[0] for line in said.splitlines()] == ["other", "synthetic"]
        assert said.splitlines()[1].endswith("default")
        assert (await run("unload", "other"))[1].endswith("out of service\n")
        code, _, error = await run("unload", "synthetic")
        assert (code, "One model must be served" in error) == (1, True)
        assert (await run("unload"))[0] == 2
        assert (await run("load", "x", "--canaries", str(bundles / "none")))[0] == 1
        (bundles.parent / "canaries.txt").write_bytes(b"\xff")
        code, _, error = await run("load", "x", "--canaries", str(bundles.parent / "canaries.txt"))
        assert (code, "must be UTF-8, but its byte 0 is not" in error) == (1, True)
        assert (await run("here", "there"))[0] == 2
