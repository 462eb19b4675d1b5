"""A real server process on loopback, with a real bundle whose translations are known: it copies its source."""

import asyncio
import json
import random
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from shutil import copytree
from typing import Any

import grpc
import pytest
from google.protobuf import descriptor_pb2
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc

from service.client import AsyncClient, Client, InvalidRequestError, NotServedError, UnavailableError
from service.handlers import SERVICE_NAME
from service.pb.translation.v1 import translation_pb2 as pb
from tests.integration.serving import (
    PATIENCE_SECONDS,
    ServerProcess,
    environment,
    health_of,
    refusal_of,
    request,
    server_process,
    start_process,
    stub_of,
)
from tests.synthetic.bundle import sentences

NUM_CALLERS = 64


@pytest.fixture(scope="module")
def server(models: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    """A server that the tests of this module share."""
    with server_process(models, tmp_path_factory.mktemp("server"), "--log-requests", "--log-level", "debug") as running:
        yield running


@pytest.fixture
def client(server: ServerProcess) -> Iterator[Client]:
    with Client(server.address) as made:
        yield made


def command(*arguments: str, text: str | None = None) -> "subprocess.CompletedProcess[str]":
    """Runs the command line to its end."""
    return subprocess.run(
        [sys.executable, "-m", "service", *arguments],
        input=text,
        capture_output=True,
        text=True,
        timeout=PATIENCE_SECONDS,
        check=False,
        env=environment(),
    )


def test_the_ready_line_names_addresses_model_digest_precision_threads_and_provider(
    server: ServerProcess, client: Client
) -> None:
    info = client.info()
    (model,) = info.models
    assert server.ready_line == (
        f"Serving on {server.address}, metrics on {server.metrics_address}: "
        f"model synthetic {model.digest[:12]} fp32, 2 engine(s) on 2 thread(s), cpu\n"
    )


def test_a_translation_and_what_it_cost(client: Client) -> None:
    text = "Bado gimu. Nara 12?"
    (translation,) = client.translate([text], source="en", target="zh")
    assert (translation.text, translation.model) == (text, "synthetic")
    assert [segment.source_text for segment in translation.segments] == ["Bado gimu. ", "Nara 12?"]
    for segment in translation.segments:
        assert segment.translated_text == segment.source_text
        assert (segment.finish_reason, segment.flags) == ("STOP", ())
        assert segment.num_target_tokens == segment.num_source_tokens == len(segment.token_log_probabilities)
        assert segment.score == pytest.approx(sum(segment.token_log_probabilities), rel=1e-5)
        assert segment.score < 0
    cost = translation.metadata
    assert cost.num_source_tokens == cost.num_target_tokens == cost.num_steps
    assert cost.num_source_tokens == sum(segment.num_source_tokens for segment in translation.segments)
    assert cost.max_rows_shared >= 1
    parts = (cost.tokenize_seconds, cost.queue_seconds, cost.encode_seconds, cost.decode_seconds)
    assert all(0 <= part <= cost.total_seconds for part in parts)
    assert cost.model_digest == client.info().models[0].digest
    assert cost.request_id


def test_the_order_of_contents_is_kept(client: Client) -> None:
    texts = sentences(120, seed=1)
    random.Random(1).shuffle(texts)
    texts.insert(60, "")
    assert [translation.text for translation in client.translate(texts)] == texts


@pytest.mark.parametrize(
    "text",
    [
        "",
        " ",
        " \n\t ",
        "\n\n\n",
        "  Bado.\n\n\tGimu.  ",
        "a\x00b\x07c\x1bd\x7fe",
        "🙂 👩‍👩‍👧‍👦 🇨🇭",
        "مرحبا بالعالم",
        "\u202eabc\u202c",
        "这不是英语。",
        "\ufeffBado",
        "<s> </s> <pad> <ph0> <unk>",
        "e\u0301\u0327" * 20,
        "{name} %s ${x}",
        "." * 50,
        "-",
    ],
    ids=repr,
)
def test_any_text_comes_back(client: Client, text: str) -> None:
    (translation,) = client.translate([text])
    assert "".join(segment.source_text for segment in translation.segments) == text
    assert "".join(segment.translated_text for segment in translation.segments) == translation.text
    for segment in translation.segments:
        is_blank = not segment.source_text.strip()
        assert (segment.finish_reason == "BLANK") is is_blank
        assert is_blank is (segment.num_target_tokens == 0)
    if not text.strip():
        assert translation.text == text
    elif text not in ("." * 50, "e\u0301\u0327" * 20):  # loops of which the copying model may lose count
        assert " ".join(translation.text.split()) == " ".join(text.split())


def test_exactly_as_many_characters_as_allowed_are_translated(client: Client) -> None:
    limit = client.info().limits.max_characters_per_item
    text = "\n".join(sentences(100, seed=2))  # and white space, for it costs no decoding
    text = text.replace("\n", "\n" + " " * ((limit - len(text)) // 100)).ljust(limit)
    assert len(text) == limit
    (translation,) = client.translate([text])
    assert "".join(segment.source_text for segment in translation.segments) == text
    assert translation.text == text
    assert len(translation.segments) == 100


def test_one_character_more_is_refused_by_name(client: Client) -> None:
    limit = client.info().limits.max_characters_per_item
    with pytest.raises(InvalidRequestError) as caught:
        client.translate(["fine", "a" * (limit + 1)])
    assert [violation.field for violation in caught.value.violations] == ["contents[1]"]
    assert f"but has {limit + 1}" in caught.value.violations[0].description


async def test_every_wrong_field_is_named(server: ServerProcess) -> None:
    async with stub_of(server.address) as stub:
        call = request("ok", "a" * 100_001, mime_type="text/html")
        call.decoding_options.max_target_tokens = -1
        call.glossary_config.glossary = "ours"
        refusal = await refusal_of(stub.TranslateText(call))
        assert refusal.code == "INVALID_ARGUMENT"
        assert refusal.fields == ["contents[1]", "mime_type", "glossary_config", "decoding_options.max_target_tokens"]
        assert "text/html" in str(await refusal_of(stub.TranslateText(request("a", mime_type="text/html"))))
        assert (await refusal_of(stub.TranslateText(request()))).fields == ["contents"]
        assert (await refusal_of(stub.TranslateText(request(*["a"] * 1025)))).fields == ["contents"]
        call = request("a")
        call.decoding_options.max_target_tokens = 100_000
        assert (await refusal_of(stub.TranslateText(call))).fields == ["decoding_options.max_target_tokens"]


@pytest.mark.parametrize(
    ("fields", "reason", "served"),
    [
        ({"model": "fr-de"}, "MODEL_NOT_FOUND", "Served: synthetic"),
        ({"source": "fr", "target": "de"}, "LANGUAGE_PAIR_NOT_FOUND", "Served: en-zh"),
        ({"source": "zh", "target": "en"}, "LANGUAGE_PAIR_NOT_FOUND", "Served: en-zh"),
        ({"target": "de"}, "LANGUAGE_PAIR_NOT_FOUND", "Served: en-zh"),
        ({"model": "synthetic", "target": "de"}, "LANGUAGE_PAIR_NOT_FOUND", "Served: en-zh"),
    ],
)
def test_what_is_not_served_is_answered_with_what_is(
    client: Client, fields: dict[str, str], reason: str, served: str
) -> None:
    with pytest.raises(NotServedError) as caught:
        client.translate(["a"], **fields)  # type: ignore[arg-type]
    assert (caught.value.reason, caught.value.served) == (reason, served)


@pytest.mark.parametrize("fields", [{"model": "synthetic"}, {"source": "EN"}, {"target": "zh"}, {}])
def test_what_is_served_need_not_be_said_in_full(client: Client, fields: dict[str, str]) -> None:
    assert client.translate(["Bado."], **fields)[0].text == "Bado."  # type: ignore[arg-type]


def test_a_cut_translation_says_so(client: Client) -> None:
    (translation,) = client.translate(["Bado gimu nara tesi."], max_target_tokens=3)
    (segment,) = translation.segments
    assert (segment.finish_reason, segment.flags, segment.num_target_tokens) == ("LENGTH", ("TRUNCATED",), 3)


def test_a_sentence_too_long_is_split_and_says_so(client: Client) -> None:
    limit = client.info().limits.max_source_tokens_per_segment
    text = " ".join(["bado", "gimu", "nara", "tesi"] * limit)
    (translation,) = client.translate([text])
    assert len(translation.segments) > 2
    for segment in translation.segments:
        assert "SOURCE_SPLIT" in segment.flags
        assert segment.num_source_tokens <= limit
    assert "".join(segment.source_text for segment in translation.segments) == text


async def test_64_callers_get_what_each_gets_alone(server: ServerProcess) -> None:
    texts = sentences(100, seed=3)
    async with AsyncClient(server.address) as client:
        alone = [(await client.translate([text]))[0].segments for text in texts[:NUM_CALLERS]]
        before = server.metrics()
        shared: list[int] = []

        async def caller(i: int) -> None:
            order = random.Random(i).sample(range(len(texts)), 3)
            for k in [*order, i]:
                (translation,) = await client.translate([texts[k]])
                assert translation.text == texts[k]
                shared.append(translation.metadata.max_rows_shared)
                if k < len(alone):
                    assert translation.segments == alone[k]  # scores too, to the bit

        await asyncio.gather(*(caller(i) for i in range(NUM_CALLERS)))
    assert max(shared) > 1  # they were decoded together; how many at a time is the machine's affair
    after = server.metrics()
    names = ("dragoman_rows_per_step_sum", "dragoman_rows_per_step_count")
    rows, steps = (after[name] - before[name] for name in names)
    assert rows / steps > 1


async def test_health(server: ServerProcess) -> None:
    for name in ("", SERVICE_NAME, "liveness", "readiness"):
        assert await health_of(server.address, name) == "SERVING"
    assert await health_of(server.address, "something.else") == "NOT_FOUND"


def reflected(address: str, **asked: Any) -> Any:
    """The first reply. Not with asyncio: a stream that is refused while it is written to reports INTERNAL there."""
    with grpc.insecure_channel(address) as channel:
        stub: Any = reflection_pb2_grpc.ServerReflectionStub(channel)
        call = stub.ServerReflectionInfo(
            iter([reflection_pb2.ServerReflectionRequest(**asked)]), timeout=PATIENCE_SECONDS
        )
        return next(call)


def test_reflection_tells_tools_the_interface(server: ServerProcess) -> None:
    listed = reflected(server.address, list_services="")
    names = {entry.name for entry in listed.list_services_response.service}
    assert {SERVICE_NAME, "grpc.health.v1.Health"} <= names
    reply = reflected(server.address, file_containing_symbol=SERVICE_NAME)
    (file,) = (
        descriptor_pb2.FileDescriptorProto.FromString(binary)
        for binary in reply.file_descriptor_response.file_descriptor_proto
    )
    assert file.package == "translation.v1"
    methods = [method.name for method in file.service[0].method]
    assert methods == ["TranslateText", "StreamTranslateText", "ScoreText", "GetServerInfo"]


async def test_the_callers_identity_of_a_call_is_kept(server: ServerProcess) -> None:
    async with stub_of(server.address) as stub:
        reply = await stub.TranslateText(request("Bado."), metadata=(("x-request-id", "order:66.a_b-c"),))
        assert reply.metadata.request_id == "order:66.a_b-c"
        reply = await stub.TranslateText(request("Bado."), metadata=(("x-request-id", "no spaces or text"),))
        assert reply.metadata.request_id.replace("-", "").isalnum()
    assert '"request_id": "order:66.a_b-c"' in server.errors()
    assert "no spaces" not in server.errors()


async def test_no_text_in_logs_or_metrics(server: ServerProcess) -> None:
    """At the most talkative setting, for calls that are answered, refused, cancelled and late."""
    sentinel = "Xylophon quetzal {geheim}"
    async with stub_of(server.address) as stub:
        reply = await stub.TranslateText(request(sentinel))
        assert reply.translations[0].translated_text == sentinel
        await refusal_of(stub.TranslateText(request(sentinel, mime_type=sentinel, model=sentinel)))
        await refusal_of(stub.TranslateText(request(sentinel, model=sentinel)))
        await refusal_of(stub.TranslateText(request(*[sentinel * 400] * 20), timeout=0.05))
        cancelled = stub.TranslateText(request(*[sentinel * 400] * 20))
        cancelled.cancel()
        await asyncio.wait([asyncio.ensure_future(cancelled.wait_for_connection())])
    server.wait_for(lambda seen: seen["dragoman_running"] + seen["dragoman_waiting"] == 0)
    for written in (server.errors(), server.ready_line, server.metrics_text()):
        for word in ("Xylophon", "quetzal", "geheim"):
            assert word not in written
    lines = [json.loads(line) for line in server.errors().splitlines()]
    assert {"OK", "INVALID_ARGUMENT", "NOT_FOUND"} <= {line.get("code") for line in lines}


def frame(kind: int, payload: bytes) -> bytes:
    """An HTTP/2 frame of the connection."""
    return len(payload).to_bytes(3, "big") + bytes([kind, 0]) + bytes(4) + payload


def test_all_that_is_written_is_json(server: ServerProcess, client: Client) -> None:
    """What peers do on the wire is no reason for gRPC's core to write lines of its own, with their addresses."""
    host, _, port = server.address.rpartition(":")
    settings, ping = frame(4, b""), frame(6, b"answered")
    leave_with_an_error = frame(7, (0).to_bytes(4, "big") + (2).to_bytes(4, "big") + b"x")
    with socket.create_connection((host, int(port)), timeout=PATIENCE_SECONDS) as peer:
        peer.sendall(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + settings + leave_with_an_error + ping)
        seen = b""
        while b"answered" not in seen and (more := peer.recv(4096)):
            seen += more
    with socket.create_connection((host, int(port)), timeout=PATIENCE_SECONDS) as peer:
        peer.sendall(b"GET / HTTP/1.1\r\n\r\n")
        while peer.recv(4096):
            pass
    assert client.translate(["Bado."])[0].text == "Bado."
    assert all(json.loads(line)["logger"] for line in server.errors().splitlines())


def test_the_command_line_translates(server: ServerProcess) -> None:
    assert command("translate", "--address", server.address, "Bado gimu.").stdout == "Bado gimu.\n"
    assert command("translate", "--address", server.address, text="Bado.\n\nGimu.\n").stdout == "Bado.\n\nGimu.\n"
    told = command("translate", "-v", "--address", server.address, "Bado. Nara {x}?").stdout
    for part in ("[1] STOP", "[2] STOP", "score", "tokenize", "queue", "decode", "rows"):
        assert part in told
    listed = command("models", "--address", server.address).stdout
    assert "synthetic  en → zh  fp32" in listed
    assert "same bytes" in listed


def test_the_command_line_says_why_not(server: ServerProcess) -> None:
    refused = command("translate", "--address", server.address, "--target", "de", "Bado.")
    assert (refused.returncode, refused.stdout) == (1, "")
    assert refused.stderr.startswith("NOT_FOUND: No language pair '*-de' is served here, but en-zh.")
    refused = command("translate", "--address", server.address, "--max-target-tokens", "-5", "Bado.")
    assert refused.returncode == 1
    assert "decoding_options.max_target_tokens: It must be between" in refused.stderr
    nobody = command("translate", "--address", "127.0.0.1:1", "--timeout", "0.5", "Bado.")
    assert nobody.returncode == 1
    assert nobody.stderr.startswith(("UNAVAILABLE", "DEADLINE_EXCEEDED"))


def test_the_command_line_without_a_server(models: Path, tmp_path: Path) -> None:
    listed = command("models", str(models))
    assert listed.stdout.startswith("synthetic  en → zh  fp32")
    assert command("models", str(tmp_path)).returncode == 1
    good = command("check", str(models / "synthetic"))
    assert (good.returncode, good.stderr) == (0, "")
    assert good.stdout.startswith("OK: synthetic")
    printed = command("serve", "--max-rows", "5", "--print-config")
    assert "max_rows = 5" in printed.stdout
    wrong = command("serve", "--max-rows", "0", "--address", "here")
    assert wrong.returncode == 2
    assert "2 problem(s)" in wrong.stderr


def test_a_damaged_bundle_is_refused_with_every_problem(models: Path, tmp_path: Path) -> None:
    damaged = tmp_path / "models" / "synthetic"
    copytree(models / "synthetic", damaged)
    binary = bytearray((damaged / "decoder.onnx").read_bytes())
    binary[len(binary) // 2] ^= 1
    (damaged / "decoder.onnx").write_bytes(binary)
    (damaged / "encoder.onnx").unlink()
    anywhere = ("--address", "127.0.0.1:0", "--metrics-address", "127.0.0.1:0")
    for arguments in (("check", str(damaged)), ("serve", "--models", str(damaged.parent), *anywhere)):
        refused = command(*arguments)
        assert (refused.returncode, refused.stdout) == (1, "")
        assert "encoder.onnx must exist, but is missing." in refused.stderr
        assert "decoder.onnx must be" in refused.stderr
        assert "altered" in refused.stderr


def test_a_directory_without_models_is_refused(tmp_path: Path) -> None:
    process = start_process(tmp_path, tmp_path / "stderr.txt")
    output, _ = process.communicate(timeout=PATIENCE_SECONDS)
    assert (process.returncode, output) == (1, "")
    assert "`models` must be a directory of bundles" in (tmp_path / "stderr.txt").read_text(encoding="utf-8")


def test_sigterm_under_load_drops_no_call(models: Path, tmp_path: Path) -> None:
    """Callers in full flight: what was accepted is answered, what comes later is refused; exit code 0."""
    texts = sentences(50, seed=4)

    async def run(server: ServerProcess) -> tuple[int, int]:
        async with AsyncClient(server.address, max_retries=0) as client:

            async def caller(i: int) -> int:
                num_answered = 0
                generator = random.Random(i)
                while True:
                    text = generator.choice(texts)
                    try:
                        (translation,) = await client.translate([text])
                    except UnavailableError:
                        return num_answered
                    assert translation.text == text
                    num_answered += 1

            callers = [asyncio.create_task(caller(i)) for i in range(16)]
            while True:  # until they are decoded together
                (probe,) = await client.translate(["Bado."])
                if probe.metadata.max_rows_shared >= 3:
                    break
            server.process.send_signal(signal.SIGTERM)
            answered = await asyncio.gather(*callers)
            return sum(answered), min(answered)

    with server_process(models, tmp_path) as server:
        num_answered, _ = asyncio.run(run(server))
        assert num_answered > 0
        assert server.process.wait(PATIENCE_SECONDS) == 0
        assert "Stopped." in server.errors()


def test_the_settings_reach_the_server(models: Path, tmp_path: Path) -> None:
    flags = ["--max-rows", "2", "--max-contents", "3", "--max-source-tokens", "16", "--max-target-tokens", "12"]
    with server_process(models, tmp_path, *flags, "--no-reflection") as server, Client(server.address) as client:
        limits = client.info().limits
        assert (limits.max_rows, limits.max_contents) == (2, 3)
        assert (limits.max_source_tokens_per_segment, limits.max_target_tokens_per_segment) == (16, 12)
        (translation,) = client.translate([" ".join(["bado"] * 40)])
        assert all(segment.num_source_tokens <= 16 for segment in translation.segments)
        assert all(segment.num_target_tokens <= 12 for segment in translation.segments)
        assert translation.metadata.max_rows_shared <= 2
        with pytest.raises(grpc.RpcError) as caught:
            reflected(server.address, list_services="")
        assert caught.value.code() is grpc.StatusCode.UNIMPLEMENTED
        assert server.metrics()["dragoman_slots_capacity"] == 2
        assert isinstance(client.info(), pb.GetServerInfoResponse)
