"""Who may call: TLS, certificates of clients, keys, hooks; each refusal has its documented code."""

import asyncio
import logging
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from unittest import mock

import grpc
import pytest
import trustme
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc

from service import access
from service.access import CertificateAccess, find_hook, token_of
from service.api_keys import new_key
from service.caller import Caller
from service.config import TlsConfig
from service.pb.translation.v1 import translation_pb2 as pb
from service.pb.translation.v1 import translation_pb2_grpc
from service.refusals import CredentialsError
from service.tls import ServerCertificates
from service.watched_files import FilesError
from tests.integration.serving import HeldServer, held_server, refusal_of, request, stub_of, unpack

TEXT = "Bado gimu. "
HOST = "127.0.0.1"


@dataclass
class Files:
    """The files of a server's certificates, replaced as certbot and Kubernetes do it: by renaming."""

    directory: Path
    authority: trustme.CA
    client_authority: trustme.CA

    def write(self, name: str, data: bytes) -> str:
        path = self.directory / name
        renewed = path.with_suffix(".new")
        renewed.write_bytes(data)
        renewed.replace(path)
        return str(path)

    def renew(self, authority: trustme.CA | None = None, **given: Any) -> None:
        """A new certificate for the server."""
        issued = (authority or self.authority).issue_cert(HOST, "localhost", **given)
        self.write("server.pem", b"".join(blob.bytes() for blob in issued.cert_chain_pems))
        self.write("server.key", issued.private_key_pem.bytes())

    @property
    def tls(self) -> dict[str, str]:
        """The settings without certificates of clients."""
        return {"tls_certificate": str(self.directory / "server.pem"), "tls_key": str(self.directory / "server.key")}

    @property
    def mutual(self) -> dict[str, str]:
        """The settings with them."""
        return self.tls | {
            "tls_client_ca": self.write("clients.pem", self.client_authority.cert_pem.bytes()),
        }


@pytest.fixture(scope="module")
def authorities() -> tuple[trustme.CA, trustme.CA, trustme.CA]:
    """Who vouches for servers, for clients, and for nobody here."""
    return trustme.CA(), trustme.CA(), trustme.CA()


@pytest.fixture
def files(tmp_path: Path, authorities: tuple[trustme.CA, trustme.CA, trustme.CA]) -> Files:
    made = Files(tmp_path, authorities[0], authorities[1])
    made.renew()
    return made


@asynccontextmanager
async def ready(models: Path, **flags: Any) -> AsyncIterator[HeldServer]:
    """A server that takes calls and makes steps."""
    async with held_server(models, **flags) as held:
        await held.until_ready()
        held.go.set()
        yield held


def channel_to(held: HeldServer, authority: trustme.CA, identity: trustme.LeafCert | None = None) -> Any:
    """A connection of its own: handshakes are not shared with others."""
    credentials = grpc.ssl_channel_credentials(
        authority.cert_pem.bytes(),
        identity.private_key_pem.bytes() if identity else None,
        identity.cert_chain_pems[0].bytes() if identity else None,
    )
    return grpc.aio.secure_channel(held.address, credentials, [("grpc.use_local_subchannel_pool", 1)])


async def outcome(channel: Any, call: pb.TranslateTextRequest | None = None, **given: Any) -> str:
    """The translation of a call over a connection that is closed after it, or the code and reason of its refusal."""
    async with channel:
        stub: Any = translation_pb2_grpc.TranslationServiceStub(channel)  # type: ignore[no-untyped-call]
        try:
            reply = await stub.TranslateText(call or request(TEXT), **given)
        except grpc.aio.AioRpcError as error:
            refusal = unpack(error)
            return f"{refusal.code} {refusal.reason}".strip()
        return str(reply.translations[0].translated_text)


def ended(caplog: pytest.LogCaptureFixture) -> list[dict[str, Any]]:
    return [record.__dict__ for record in caplog.records if record.message == "A call ended."]


async def test_tls(models: Path, files: Files, authorities: tuple[trustme.CA, ...]) -> None:
    """What fails in the handshake is told by the client's own gRPC, with its own code and no reason of ours."""
    async with ready(models, **files.tls) as held:
        assert await outcome(channel_to(held, files.authority)) == TEXT
        assert await outcome(channel_to(held, authorities[2])) == "UNAVAILABLE", "a server that nobody vouches for"
        assert await outcome(grpc.aio.insecure_channel(held.address)) == "UNAVAILABLE", "plaintext"
        with socket.create_connection((HOST, int(held.address.rpartition(":")[2]))) as peer:
            peer.sendall(b"GET / HTTP/1.1\r\n\r\n")
        assert await outcome(channel_to(held, files.authority)) == TEXT
        assert held.calls_by_code() == {"OK": 2.0}


async def test_an_expired_certificate_is_refused_by_clients(models: Path, files: Files) -> None:
    files.renew(not_before=datetime(2020, 1, 1, tzinfo=UTC), not_after=datetime(2021, 2, 3, 4, 5, 6, tzinfo=UTC))
    async with ready(models, **files.tls) as held:
        assert await outcome(channel_to(held, files.authority)) == "UNAVAILABLE"
        files.renew()
        assert await outcome(channel_to(held, files.authority)) == TEXT


async def test_clients_need_a_certificate_that_is_vouched_for(
    models: Path, files: Files, authorities: tuple[trustme.CA, ...], caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    clients = files.client_authority
    long_ago = datetime(2020, 1, 1, tzinfo=UTC)
    refused = [
        None,
        authorities[2].issue_cert("shop.example"),
        files.authority.issue_cert("shop.example"),
        clients.issue_cert("shop.example", not_before=long_ago, not_after=long_ago + timedelta(days=1)),
    ]
    async with ready(models, log_requests=True, **files.mutual) as held:
        for identity in refused:
            assert await outcome(channel_to(held, files.authority, identity)) == "UNAVAILABLE"
        assert await outcome(grpc.aio.insecure_channel(held.address)) == "UNAVAILABLE"
        known = clients.issue_cert("shop.example", common_name="shop-7")
        said = (("x-caller-id", "somebody else"), ("authorization", "Bearer of nothing"))
        assert await outcome(channel_to(held, files.authority, known), metadata=said) == TEXT
        assert await outcome(channel_to(held, files.authority, clients.issue_cert("shop.example"))) == TEXT
        assert [record["caller"] for record in ended(caplog)] == ["shop-7", "shop.example"]


async def test_no_call_fails_while_a_certificate_is_renewed(
    models: Path, files: Files, authorities: tuple[trustme.CA, ...]
) -> None:
    """New connections all the time, which trust the old and the new, while both files are replaced, one after the
    other."""
    old, new = authorities[0], authorities[2]
    both = mock.Mock()
    both.cert_pem.bytes.return_value = old.cert_pem.bytes() + new.cert_pem.bytes()
    async with ready(models, **files.tls) as held:
        open_already = channel_to(held, old)
        stub: Any = translation_pb2_grpc.TranslationServiceStub(open_already)  # type: ignore[no-untyped-call]
        await stub.TranslateText(request(TEXT))
        assert await outcome(channel_to(held, new)) == "UNAVAILABLE"
        outcomes = []
        for turn in range(20):
            authority = new if turn % 2 == 0 else old
            calls = [outcome(channel_to(held, both)) for _ in range(10)]
            tasks = [asyncio.ensure_future(call) for call in calls[:5]]
            issued = authority.issue_cert(HOST)
            files.write("server.pem", issued.cert_chain_pems[0].bytes())
            outcomes += await asyncio.gather(*calls[5:])  # the pair does not belong together now
            files.write("server.key", issued.private_key_pem.bytes())
            outcomes += await asyncio.gather(*tasks)
            assert await outcome(channel_to(held, authority)) == TEXT, "the next connection sees the new certificate"
        assert outcomes == [TEXT] * 200
        reply = await stub.TranslateText(request(TEXT))
        assert reply.translations[0].translated_text == TEXT
        await open_already.close()
        assert held.calls_by_code() == {"OK": 222.0}


async def test_a_bad_pair_keeps_the_old_one_and_is_told(
    models: Path, files: Files, caplog: pytest.LogCaptureFixture
) -> None:
    async with ready(models, **files.tls) as held:
        registry = held.server._metrics.registry
        before = registry.get_sample_value("dragoman_certificate_expiry_timestamp_seconds")
        for number, (name, data) in enumerate(
            [
                ("server.key", b"no key"),
                ("server.pem", b"\xff"),
                ("server.pem", b""),
                ("server.pem", b"no certificate"),
            ],
            start=1,
        ):
            files.write(name, data)
            for _ in range(2):
                assert await outcome(channel_to(held, files.authority)) == TEXT
            assert registry.get_sample_value("dragoman_failed_reloads_total", {"what": "certificates"}) == number
            assert registry.get_sample_value("dragoman_certificate_expiry_timestamp_seconds") == before
        errors = [record.__dict__ for record in caplog.records if record.levelname == "ERROR"]
        assert [error["what"] for error in errors] == ["certificates"] * 4
        assert all("PRIVATE" not in str(error["problems"]) for error in errors)
        files.renew(not_after=datetime(2051, 2, 3, 4, 5, 6, tzinfo=UTC))  # a year that needs the longer form
        assert await outcome(channel_to(held, files.authority)) == TEXT
        expiry = registry.get_sample_value("dragoman_certificate_expiry_timestamp_seconds")
        assert expiry == datetime(2051, 2, 3, 4, 5, 6, tzinfo=UTC).timestamp()


def test_what_is_wrong_with_certificates_is_said_at_the_start(
    files: Files, authorities: tuple[trustme.CA, ...]
) -> None:
    ends_at = datetime(2031, 12, 31, 23, 59, 58, tzinfo=UTC)
    files.renew(not_after=ends_at)
    assert ServerCertificates(TlsConfig(**files.mutual)).expires_at() == ends_at.timestamp()
    files.write("clients.pem", b"no certificate")
    files.write("server.key", authorities[2].issue_cert(HOST).private_key_pem.bytes())
    paths = {**files.tls, "tls_client_ca": str(files.directory / "clients.pem")}
    with pytest.raises(FilesError) as caught:
        ServerCertificates(TlsConfig(**paths))
    mismatch, no_ca = caught.value.problems
    assert mismatch.startswith(f"{paths['tls_certificate']} and {paths['tls_key']} must be a certificate and its key, ")
    assert no_ca.startswith(f"{paths['tls_client_ca']} must have certificates, but has not: ")
    files.renew(not_after=ends_at)
    files.write("server.pem", Path(paths["tls_certificate"]).read_bytes().replace(b"CERTIFICATE", b"X509 CERTIFICATE"))
    with pytest.raises(FilesError, match="must have `-----BEGIN CERTIFICATE-----`"):
        ServerCertificates(TlsConfig(**paths))
    for content in (b"", "Ключ".encode()):
        files.write("clients.pem", content)
        with pytest.raises(FilesError, match="must have certificates, but has not: no certificate is in it"):
            ServerCertificates(TlsConfig(**paths))
    Path(paths["tls_key"]).unlink()
    with pytest.raises(FilesError, match="must be readable, but is not: No such file"):
        ServerCertificates(TlsConfig(**paths))


@dataclass
class Keys:
    """The keys of a server."""

    path: Path
    entries: dict[str, str]

    def give(self, name: str, **fields: Any) -> str:
        """A new key for a caller."""
        key, entry = new_key(Caller(name=name, **fields))
        self.entries[key] = entry.to_toml()
        self.write()
        return key

    def write(self) -> None:
        renewed = self.path.with_suffix(".new")
        renewed.write_text("\n".join(self.entries.values()), encoding="utf-8")
        renewed.replace(self.path)


@pytest.fixture
def keys(tmp_path: Path) -> Keys:
    made = Keys(tmp_path / "keys.toml", {})
    made.write()
    return made


def bearer(token: str) -> dict[str, Any]:
    return {"metadata": (("authorization", f"Bearer {token}"),)}


async def test_a_call_needs_a_key(models: Path, keys: Keys, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    key = keys.give("shop")
    wrong = [key[:-2] + ("AA" if key[-2:] != "AA" else "BB"), new_key(Caller(name="shop"))[0], "anything"]
    given: list[tuple[Any, str, str]] = [
        ((("authorization", f"Bearer {key}"),), "OK", ""),
        ((("authorization", f"bearer {key}"),), "OK", ""),
        ((("x-api-key", key),), "OK", ""),
        ((("x-caller-id", "shop"),), "UNAUTHENTICATED", "CREDENTIALS_MISSING"),
        (None, "UNAUTHENTICATED", "CREDENTIALS_MISSING"),
        *(((("x-api-key", token),), "UNAUTHENTICATED", "CREDENTIALS_INVALID") for token in wrong),
        ((("authorization", f"Basic {key}"),), "UNAUTHENTICATED", "CREDENTIALS_INVALID"),
        ((("authorization", "Bearer"),), "UNAUTHENTICATED", "CREDENTIALS_INVALID"),
        ((("authorization", f"Bearer {key}"), ("x-api-key", key)), "UNAUTHENTICATED", "CREDENTIALS_INVALID"),
    ]
    async with ready(models, log_requests=True, api_keys_file=str(keys.path)) as held, stub_of(held.address) as stub:
        said = set()
        for metadata, code, reason in given:
            if code == "OK":
                reply = await stub.TranslateText(request(TEXT), metadata=metadata)
                assert reply.translations[0].translated_text == TEXT
                assert len((await stub.GetServerInfo(pb.GetServerInfoRequest(), metadata=metadata)).models) == 1
                continue
            calls = [
                stub.TranslateText(request(TEXT), metadata=metadata),
                stub.ScoreText(pb.ScoreTextRequest(contents=["a"], translated_texts=["b"]), metadata=metadata),
                stub.StreamTranslateText(request(TEXT), metadata=metadata).read(),
                stub.GetServerInfo(pb.GetServerInfoRequest(), metadata=metadata),
            ]
            for call in calls:
                refusal = await refusal_of(call)
                assert (refusal.code, refusal.reason, refusal.retry_seconds) == (code, reason, None)
                said.add(refusal.message)
        await held.until(lambda: held.server_calls == 0)
        assert {record.get("caller") for record in ended(caplog)} == {"shop", None}
        assert held.calls_by_code() == {"OK": 3.0, "UNAUTHENTICATED": 24.0}
        everything = f"{said}{[record.__dict__ for record in caplog.records]}"
        assert not any(token in everything for token in [key, key.split("_")[2], *wrong[:2]])


async def test_a_key_that_is_revoked_is_refused_from_the_next_call_on(models: Path, keys: Keys) -> None:
    old = keys.give("shop")
    async with ready(models, api_keys_file=str(keys.path)) as held, stub_of(held.address) as stub:
        await stub.TranslateText(request(TEXT), **bearer(old))
        new = keys.give("shop")
        for key in (old, new):
            await stub.TranslateText(request(TEXT), **bearer(key))
        del keys.entries[old]
        keys.write()
        assert (await refusal_of(stub.TranslateText(request(TEXT), **bearer(old)))).reason == "CREDENTIALS_INVALID"
        await stub.TranslateText(request(TEXT), **bearer(new))
        keys.path.write_text("[[keys", encoding="utf-8")
        await stub.TranslateText(request(TEXT), **bearer(new))
        failed = held.server._metrics.registry.get_sample_value("dragoman_failed_reloads_total", {"what": "api_keys"})
        assert failed == 1


async def test_a_key_opens_the_models_it_is_for(models: Path, keys: Keys) -> None:
    other, own = keys.give("other", models=frozenset({"another"})), keys.give("own", models=frozenset({"fake", "b"}))
    async with ready(models, api_keys_file=str(keys.path)) as held, stub_of(held.address) as stub:
        score = pb.ScoreTextRequest(contents=["a"], translated_texts=["b"])
        for call in (request(TEXT), request(TEXT, model="fake")):
            assert (await stub.TranslateText(call, **bearer(own))).translations[0].translated_text == TEXT
            for refused in (
                stub.TranslateText(call, **bearer(other)),
                stub.StreamTranslateText(call, **bearer(other)).read(),
                stub.ScoreText(score, **bearer(other)),
            ):
                refusal = await refusal_of(refused)
                assert (refusal.code, refusal.reason) == ("PERMISSION_DENIED", "NOT_ALLOWED")
                assert refusal.message == "`model` must be one that the caller may use (another), but is 'fake'."
        await stub.ScoreText(score, **bearer(own))
        await held.until(lambda: held.server_calls == 0)
        assert held.server.servicer.catalog._num_leases == {}


async def test_health_is_open_and_the_interface_is_not(models: Path, keys: Keys) -> None:
    key = keys.give("shop")
    async with ready(models, api_keys_file=str(keys.path)) as held, grpc.aio.insecure_channel(held.address) as channel:
        health: Any = health_pb2_grpc.HealthStub(channel)
        assert (await health.Check(health_pb2.HealthCheckRequest())).status == health_pb2.HealthCheckResponse.SERVING
        reflection: Any = reflection_pb2_grpc.ServerReflectionStub(channel)
        asked = reflection_pb2.ServerReflectionRequest(list_services="")
        refusal = await refusal_of(reflection.ServerReflectionInfo(iter([asked])).read())
        assert (refusal.code, refusal.reason) == ("UNAUTHENTICATED", "CREDENTIALS_MISSING")
        reply = await reflection.ServerReflectionInfo(iter([asked]), **bearer(key)).read()
        assert "translation.v1.TranslationService" in {entry.name for entry in reply.list_services_response.service}


async def hook(token: str, method: str) -> Any:
    """What tests plug in."""
    if token == "slow":
        await asyncio.Event().wait()
    if token == "bad":
        raise ValueError("A secret: bad.")
    named = {"shop": Caller(name="shop"), "unsafe": Caller(name="two words"), "text": "shop"}
    return named.get(token) if method == "TranslateText" else None


def plain(token: str, method: str) -> None:
    """No async function."""


async def test_a_hook_knows_other_tokens_than_keys(
    models: Path, keys: Keys, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(access, "MAX_HOOK_SECONDS", 0.02)
    key = keys.give("own")
    both = {"bearer_hook": f"{__name__}:hook", "api_keys_file": str(keys.path)}
    async with ready(models, log_requests=True, **both) as held, stub_of(held.address) as stub:
        caplog.set_level(logging.INFO)
        for token in (key, "shop"):
            await stub.TranslateText(request(TEXT), **bearer(token))
        for token in ("nobody", new_key(Caller(name="shop"))[0]):
            refusal = await refusal_of(stub.TranslateText(request(TEXT), **bearer(token)))
            assert (refusal.code, refusal.reason) == ("UNAUTHENTICATED", "CREDENTIALS_INVALID")
        assert (await refusal_of(stub.GetServerInfo(pb.GetServerInfoRequest(), **bearer("shop")))).code == (
            "UNAUTHENTICATED"
        )
        for token in ("slow", "bad", "unsafe", "text"):
            refusal = await refusal_of(stub.TranslateText(request(TEXT), **bearer(token)))
            assert (refusal.code, refusal.reason) == ("UNAVAILABLE", "ACCESS_UNAVAILABLE")
            assert refusal.retry_seconds is not None
        await held.until(lambda: held.server_calls == 0)
        assert sorted({str(record.get("caller")) for record in ended(caplog)}) == ["None", "own", "shop"]
        failed = [record for record in caplog.records if record.message == "The bearer hook failed."]
        assert len(failed) == 4


async def test_calls_that_wait_for_the_hook_are_limited(models: Path) -> None:
    flags = {"bearer_hook": f"{__name__}:hook", "max_concurrent_calls": 1}
    async with ready(models, **flags) as held, stub_of(held.address) as stub:
        waiting = stub.TranslateText(request(TEXT), **bearer("slow"))
        await held.until(lambda: held.server_calls == 1)
        refusal = await refusal_of(stub.TranslateText(request(TEXT), **bearer("shop")))
        assert (refusal.code, refusal.reason) == ("RESOURCE_EXHAUSTED", "TOO_MANY_CALLS")
        waiting.cancel()
        await held.until(lambda: held.server_calls == 0)
        await stub.TranslateText(request(TEXT), **bearer("shop"))


@pytest.mark.parametrize(
    "name", ["no_such_module:hook", f"{__name__}:nothing", f"{__name__}:plain", f"{__name__}:HOST"]
)
def test_a_hook_must_be_an_async_function(name: str) -> None:
    with pytest.raises(FilesError, match="`bearer_hook` must name"):
        find_hook(name)


def test_a_token_in_bytes_is_none() -> None:
    with pytest.raises(CredentialsError):
        token_of([("x-api-key", b"\xff")])


async def test_names_of_certificates_are_safe_in_a_log() -> None:
    async def named(**context: list[bytes]) -> str:
        return (await CertificateAccess().caller_of((), context, method="TranslateText")).name

    assert await named(x509_common_name=[b"a"], x509_subject_alternative_name=[b"b"]) == "a"
    assert await named(x509_subject_alternative_name=[b"b", b"c"]) == "b"
    unsafe = [await named(x509_common_name=[name]) for name in (b"two words", b"two  words", b"\xff", b"a" * 65)]
    assert all(name.startswith("sha256:") and len(name) == 39 for name in unsafe)
    assert len(set(unsafe)) == 4
    with pytest.raises(CredentialsError):
        await named(x509_common_name=[b""])
