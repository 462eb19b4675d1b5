"""A real server process with TLS, certificates of clients and keys: the client, the command line and the start."""

import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc
import pytest
import trustme

from service.client import AsyncClient, Client, CredentialsError, NotAllowedError, UnavailableError
from service.handlers import SERVICE_NAME
from service.pb.translation.v1 import translation_pb2 as pb
from tests.integration.serving import PATIENCE_SECONDS, ServerProcess, environment, request, server_process

TEXT = "Bado gimu."


@dataclass
class Secured:
    """A server and what its clients need."""

    server: ServerProcess
    directory: Path
    keys: dict[str, str]

    def given(self, *, key: str = "shop", **changed: Any) -> dict[str, Any]:
        """The arguments of a client."""
        files = {"root_certificates": "authority.pem", "certificate": "client.pem", "key": "client.key"}
        given = {name: (self.directory / file).read_bytes() for name, file in files.items()}
        return given | {"api_key": self.keys[key], "timeout_seconds": PATIENCE_SECONDS} | changed


def command(*arguments: str | Path, text: str | None = None) -> "subprocess.CompletedProcess[str]":
    """Runs the command line to its end."""
    return subprocess.run(
        [sys.executable, "-m", "service", *map(str, arguments)],
        input=text,
        capture_output=True,
        text=True,
        timeout=PATIENCE_SECONDS,
        check=False,
        env=environment(),
    )


def new_key(path: Path, *arguments: str) -> str:
    made = command("keys", "new", *arguments, "--file", path)
    assert made.returncode == 0, made.stderr
    return made.stdout.strip()


@pytest.fixture(scope="module")
def secured(models: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Secured]:
    directory = tmp_path_factory.mktemp("secured")
    authority = trustme.CA()
    authority.cert_pem.write_to_path(directory / "authority.pem")
    for name, issued in (
        ("server", authority.issue_cert("127.0.0.1")),
        ("client", authority.issue_cert("shop.example")),
    ):
        issued.cert_chain_pems[0].write_to_path(directory / f"{name}.pem")
        issued.private_key_pem.write_to_path(directory / f"{name}.key")
    keys = {
        "shop": new_key(directory / "keys.toml", "shop"),
        "other": new_key(directory / "keys.toml", "other", "--model", "another"),
    }
    keys["wrong"] = keys["shop"][:-2] + ("AA" if keys["shop"][-2:] != "AA" else "BB")
    for name, key in keys.items():
        (directory / f"{name}-key").write_text(f"{key}\n", encoding="utf-8")
    flags = [
        *("--tls-certificate", str(directory / "server.pem"), "--tls-key", str(directory / "server.key")),
        *("--tls-client-ca", str(directory / "authority.pem"), "--api-keys-file", str(directory / "keys.toml")),
        *("--log-requests", "--log-level", "debug"),
    ]
    with server_process(models, directory, *flags) as running:
        yield Secured(running, directory, keys)


def test_a_client_with_certificate_and_key(secured: Secured) -> None:
    with Client(secured.server.address, **secured.given()) as client:
        assert client.translate([TEXT])[0].text == TEXT
        assert "".join(piece.text for piece in client.stream([TEXT])) == TEXT
        assert client.score([TEXT], [TEXT])[0].model == "synthetic"
        assert client.info().models[0].name == "synthetic"
    assert '"caller": "shop"' in secured.server.errors()


async def test_an_asyncio_client_with_certificate_and_key(secured: Secured) -> None:
    async with AsyncClient(secured.server.address, **secured.given()) as client:
        assert (await client.translate([TEXT]))[0].text == TEXT
        assert "".join([piece.text async for piece in client.stream([TEXT])]) == TEXT
        assert (await client.info()).models[0].name == "synthetic"


def test_refusals_have_their_own_exceptions(secured: Secured) -> None:
    for given, error, reason in (
        (secured.given(key="wrong"), CredentialsError, "CREDENTIALS_INVALID"),
        (secured.given(api_key=""), CredentialsError, "CREDENTIALS_MISSING"),
        (secured.given(key="other"), NotAllowedError, "NOT_ALLOWED"),
        (secured.given() | {"certificate": None, "key": None, "max_retries": 0}, UnavailableError, ""),
    ):
        with Client(secured.server.address, **given) as client, pytest.raises(error) as caught:
            client.translate([TEXT])
        assert caught.value.reason == reason


def test_the_command_line(secured: Secured) -> None:
    directory = secured.directory
    trust = ["--address", secured.server.address, "--root-certificates", directory / "authority.pem"]
    show = ["--certificate", directory / "client.pem", "--key", directory / "client.key", "--api-key-file"]
    assert command("translate", *trust, *show, directory / "shop-key", TEXT).stdout == f"{TEXT}\n"
    assert command("score", *trust, *show, directory / "shop-key", TEXT, TEXT).returncode == 0
    assert "synthetic  en → zh" in command("models", *trust, *show, directory / "shop-key").stdout
    refused = command("translate", *trust, *show, directory / "wrong-key", TEXT)
    assert (refused.returncode, refused.stdout) == (1, "")
    assert refused.stderr.startswith("UNAUTHENTICATED: The key must be one that is known here, but is not.")
    refused = command("translate", *trust, *show, directory / "no-key", TEXT)
    assert refused.returncode == 2
    assert refused.stderr.endswith("no-key must be readable, but is not: No such file or directory.\n")
    refused = command("translate", "--address", "translation:1", "--api-key-file", directory / "shop-key", TEXT)
    assert refused.returncode == 2
    assert refused.stderr.startswith("`api_key` must be sent by TLS")


def test_no_key_is_in_the_log_or_the_metrics(secured: Secured) -> None:
    with Client(secured.server.address, **secured.given()) as client:
        client.translate([TEXT])
    for key in secured.keys.values():
        for written in (secured.server.errors(), secured.server.metrics_text()):
            assert key not in written
            assert key.split("_", 2)[2] not in written
    assert secured.server.metrics()["dragoman_certificate_expiry_timestamp_seconds"] > 2e9


def test_a_server_does_not_start_with_what_it_cannot_use(secured: Secured, models: Path) -> None:
    serve = ["serve", "--models", models, "--address", "127.0.0.1:0", "--metrics-address", ""]
    pair = ["--tls-certificate", secured.directory / "server.pem", "--tls-key"]
    refused = command(*serve, *pair, secured.directory / "client.key")
    assert (refused.returncode, refused.stdout) == (1, "")
    assert "must be a certificate and its key, but are not: KEY_VALUES_MISMATCH." in refused.stderr
    refused = command(*serve, "--api-keys-file", secured.directory / "none.toml")
    assert refused.returncode == 1
    assert "none.toml must be readable" in refused.stderr
    refused = command(*serve, "--api-keys-file", secured.directory / "keys.toml", "--address", "0.0.0.0:0")
    assert refused.returncode == 2
    assert "`address` must be a loopback address where tokens come without TLS" in refused.stderr


@pytest.mark.parametrize("key", ["shop", "other", "wrong", "text", "none"])
async def test_no_text_comes_back_or_stays_behind(secured: Secured, key: str) -> None:
    """A sentence in every call, with every key, as text and as every other word of a request: it is in the answers of
    those who may have one, and in no log, metric or detail of an error."""
    words = ("Xylophon", "quetzal", "geheim")
    sentence = " ".join(words)
    given = secured.given()
    credentials = grpc.ssl_channel_credentials(given["root_certificates"], given["key"], given["certificate"])
    token = {"text": [("x-api-key", sentence)], "none": []}
    tokens = token[key] if key in token else [("authorization", f"Bearer {secured.keys[key]}")]
    metadata = [*tokens, ("x-caller-id", sentence), ("x-request-id", sentence), ("x-else", sentence)]
    requests: list[tuple[str, Any]] = [
        ("TranslateText", request(sentence)),
        ("TranslateText", request(sentence, mime_type="text/html")),
        ("TranslateText", request(sentence, decoding_options=pb.DecodingOptions(target_prefixes=[sentence, sentence]))),
        ("TranslateText", request(sentence, decoding_options=pb.DecodingOptions(suppressed_texts=[sentence]))),
        ("TranslateText", request(sentence * 20_000)),
        ("StreamTranslateText", request(sentence)),
        ("StreamTranslateText", request(*[sentence] * 2000)),
        ("ScoreText", pb.ScoreTextRequest(contents=[sentence], translated_texts=[sentence])),
        ("ScoreText", pb.ScoreTextRequest(contents=[sentence], translated_texts=[sentence] * 2)),
        ("ScoreText", sentence.encode()),
        ("GetServerInfo", sentence.encode()),
    ]
    codes = set()
    async with grpc.aio.secure_channel(secured.server.address, credentials) as channel:
        for name, message in requests:
            make = channel.unary_stream if name.startswith("Stream") else channel.unary_unary
            data = message if isinstance(message, bytes) else message.SerializeToString()
            call: Any = make(f"/{SERVICE_NAME}/{name}")(data, metadata=metadata, timeout=PATIENCE_SECONDS)
            try:
                await (call.read() if name.startswith("Stream") else call)
            except grpc.aio.AioRpcError as error:
                codes.add(error.code().name)
                answered = repr((error.details(), error.trailing_metadata(), error.initial_metadata()))
                assert not any(word in answered for word in words)
    expected = {"shop": "INVALID_ARGUMENT", "other": "PERMISSION_DENIED"}.get(key, "UNAUTHENTICATED")
    assert expected in codes
    for written in (secured.server.errors(), secured.server.ready_line, secured.server.metrics_text()):
        assert not any(word in written for word in words)
