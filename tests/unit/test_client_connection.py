"""What a client refuses to send, and to whom."""

from typing import Any

import pytest

from service.client import AsyncClient, Client
from service.client.connection import credentials_of

NOTHING: dict[str, Any] = {
    "tls": False,
    "root_certificates": None,
    "certificate": None,
    "key": None,
    "api_key": "",
    "allow_plaintext_key": False,
}
ELSEWHERE = "translation:50051"


def made(address: str = ELSEWHERE, **given: Any) -> tuple[bool, tuple[tuple[str, str], ...]]:
    """Whether connections are encrypted, and what calls carry."""
    credentials, metadata = credentials_of(address, **NOTHING | given)
    return credentials is not None, metadata


def test_what_is_encrypted() -> None:
    assert made() == (False, ())
    assert made(tls=True) == (True, ())
    assert made(root_certificates=b"x") == (True, ())
    assert made(certificate=b"x", key=b"x") == (True, ())


@pytest.mark.parametrize(
    "address", [ELSEWHERE, "10.0.0.1:1", "dns:///localhost.example:1", "ipv4:0.0.0.0:1", "[::]:1", "unix.example:1"]
)
def test_a_key_is_not_sent_to_another_machine_in_plaintext(address: str) -> None:
    bearer = (("authorization", "Bearer secret"),)
    with pytest.raises(ValueError, match="`api_key` must be sent by TLS or to this machine") as caught:
        made(address, api_key="secret")
    assert "secret" not in str(caught.value)
    assert made(address, api_key="secret", tls=True) == (True, bearer)
    assert made(address, api_key="secret", allow_plaintext_key=True) == (False, bearer)


@pytest.mark.parametrize("address", ["127.0.0.1:1", "localhost:1", "[::1]:1", "dns:///localhost:1", "unix:/run/x.sock"])
def test_a_key_may_be_sent_to_this_machine(address: str) -> None:
    assert made(address, api_key="secret")[1] == (("authorization", "Bearer secret"),)


@pytest.mark.parametrize("api_key", ["two words", "a\nb", "ключ", "a\n"])
def test_a_key_that_no_header_can_carry_is_refused_without_being_repeated(api_key: str) -> None:
    with pytest.raises(ValueError, match="visible ASCII characters") as caught:
        made(tls=True, api_key=api_key)
    assert api_key not in str(caught.value)


@pytest.mark.parametrize("kind", [Client, AsyncClient])
@pytest.mark.parametrize("given", [{"certificate": b"x"}, {"key": b"x"}])
async def test_a_certificate_needs_its_key(kind: type, given: dict[str, bytes]) -> None:
    with pytest.raises(ValueError, match="only one of them is"):
        kind(ELSEWHERE, **given)
