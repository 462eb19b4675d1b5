"""How does the server prove who it is, and know whose certificate a client has?

The files are read anew when they have changed, at the next connection that is opened: a renewed certificate needs no
restart, and connections that are open already go on with the old one. A pair that does not belong together, as while
the second file of it is being replaced, changes nothing.
"""

import ssl
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import grpc

from service.config import TlsConfig
from service.watched_files import FilesError, WatchedFiles, read_text

_PEM_BEGIN, _PEM_END = "-----BEGIN CERTIFICATE-----", "-----END CERTIFICATE-----"
_SEQUENCE, _UTC_TIME, _VERSION = 0x30, 0x17, 0xA0


@dataclass(frozen=True, kw_only=True)
class _Pair:
    """What the files say."""

    certificate: bytes
    """Chain of the server, PEM, its own certificate first."""
    key: bytes
    """Its private key, PEM."""
    client_ca: bytes | None
    """Who vouches for clients, PEM; None: they need no certificate."""
    expires_at: float
    """When the certificate ends, in seconds since 1970."""


class ServerCertificates:
    """The certificates of a server, as of now. May be asked by any thread."""

    def __init__(self, config: TlsConfig, *, on_failure: Callable[[], None] = lambda: None) -> None:
        """See `WatchedFiles`. `config` must name a certificate and a key.

        Raises:
            FilesError: when they cannot be used.
        """
        self._requires_client = bool(config.tls_client_ca)
        paths = [path for path in (config.tls_certificate, config.tls_key, config.tls_client_ca) if path]
        self._files = WatchedFiles(paths, lambda: _read(config), what="certificates", on_failure=on_failure)

    def expires_at(self) -> float:
        """When the certificate ends, in seconds since 1970."""
        return self._files.current().expires_at

    def credentials(self) -> grpc.ServerCredentials:
        """What a port is opened with. gRPC asks at every handshake, in a thread of its own, whether there is news."""
        given = first = self._files.current()

        def news() -> Any:  # the stubs do not know that None is an answer, too
            nonlocal given
            if (found := self._files.current()) is given:
                return None
            given = found
            return _configuration(found)

        return grpc.dynamic_ssl_server_credentials(_configuration(first), news, self._requires_client)


def _configuration(pair: _Pair) -> grpc.ServerCertificateConfiguration:
    return grpc.ssl_server_certificate_configuration([(pair.key, pair.certificate)], pair.client_ca)


def _read(config: TlsConfig) -> _Pair:
    """The files, checked.

    Raises:
        FilesError: when they cannot be used.
        OSError: when one cannot be read.
    """
    certificate = read_text(config.tls_certificate)
    key = read_text(config.tls_key)
    client_ca = read_text(config.tls_client_ca) if config.tls_client_ca else None
    problems = []
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    try:
        context.load_cert_chain(
            config.tls_certificate, config.tls_key, password=lambda: b""
        )  # else a terminal is asked
    except ssl.SSLError as error:
        why = error.reason or "one of them is no unencrypted PEM file"
        problems.append(
            f"{config.tls_certificate} and {config.tls_key} must be a certificate and its key, but are not: {why}."
        )
    else:
        if _PEM_BEGIN not in certificate:  # OpenSSL takes older labels, too
            problems.append(
                f"{config.tls_certificate} must have `{_PEM_BEGIN}`, but has a certificate of another kind."
            )
    if client_ca is not None:
        try:
            context.load_verify_locations(cadata=client_ca)
        except (ssl.SSLError, ValueError, TypeError) as error:  # the last two: it is empty, or has more than ASCII
            why = getattr(error, "reason", None) or "no certificate is in it"
            problems.append(f"{config.tls_client_ca} must have certificates, but has not: {why}.")
    if problems:
        raise FilesError(problems)
    return _Pair(
        certificate=certificate.encode(),
        key=key.encode(),
        client_ca=client_ca.encode() if client_ca is not None else None,
        expires_at=_expiry(ssl.PEM_cert_to_DER_cert(_first(certificate))),
    )


def _first(chain: str) -> str:
    """The first certificate of a chain."""
    begin = chain.index(_PEM_BEGIN)
    return chain[begin : chain.index(_PEM_END, begin) + len(_PEM_END)]


def _expiry(der: bytes) -> float:
    """When a certificate that OpenSSL has accepted ends (RFC 5280, 4.1), in seconds since 1970.

    It is `SEQUENCE { tbs SEQUENCE { [0] version, serial, algorithm, issuer, validity SEQUENCE { from, to } … } … }`,
    where the version may be missing.
    """
    _, start, _ = _element(der, 0)
    _, at, _ = _element(der, start)
    tag, _, end = _element(der, at)
    num_before_validity = 4 if tag == _VERSION else 3
    for _ in range(num_before_validity - 1):
        _, _, end = _element(der, end)
    tag, start, _ = _element(der, end)
    assert tag == _SEQUENCE, "the validity is a sequence"
    _, _, end = _element(der, start)
    tag, start, end = _element(der, end)
    text = der[start:end].decode("ascii")
    if tag == _UTC_TIME:  # two digits of the year: from 1950 to 2049
        text = ("20" if int(text[:2]) < 50 else "19") + text
    return datetime.strptime(text, "%Y%m%d%H%M%SZ").replace(tzinfo=UTC).timestamp()


def _element(der: bytes, at: int) -> tuple[int, int, int]:
    """The element that begins there: its tag, where its value begins, and where it ends."""
    tag, length, start = der[at], der[at + 1], at + 2
    if length & 0x80:
        num_bytes = length & 0x7F
        length = int.from_bytes(der[start : start + num_bytes], "big")
        start += num_bytes
    return tag, start, start + length
