"""Settings that are each allowed and cannot be used together."""

from pathlib import Path

import pytest

from service.config import ConfigError, load_config
from service.config_rules import is_loopback

ANYWHERE = "0.0.0.0:50051"
PAIR = {"tls_certificate": "server.pem", "tls_key": "server.key"}


def problems_of(**flags: object) -> list[str]:
    """The first words of each problem."""
    try:
        load_config(flags=flags)
    except ConfigError as error:
        return [problem.split(" must ")[0] for problem in error.problems]
    return []


@pytest.mark.parametrize(
    ("flags", "problems"),
    [
        ({}, []),
        ({"address": ANYWHERE}, []),
        (PAIR, []),
        ({"tls_certificate": "server.pem"}, ["`tls_certificate` and `tls_key`"]),
        ({"tls_key": "server.key"}, ["`tls_certificate` and `tls_key`"]),
        ({"tls_client_ca": "ca.pem"}, ["`tls_client_ca`"]),
        ({"tls_client_ca": "ca.pem", **PAIR, "address": ANYWHERE}, []),
        ({"api_keys_file": "keys.toml"}, []),
        ({"bearer_hook": "a.b:c", "address": "localhost:1"}, []),
        ({"api_keys_file": "keys.toml", "address": ANYWHERE}, ["`address`"]),
        ({"bearer_hook": "a.b:c", "address": "[::]:1"}, ["`address`"]),
        ({"api_keys_file": "keys.toml", "address": ANYWHERE, **PAIR}, []),
        ({"api_keys_file": "keys.toml", "address": ANYWHERE, "allow_plaintext_keys": True}, []),
        ({"admin_address": "localhost:1"}, []),
        ({"admin_address": ANYWHERE}, ["`admin_address`"]),
        ({"admin_address": ANYWHERE, "tls_client_ca": "ca.pem", **PAIR}, ["`admin_address`"]),
        ({"admin_address": ANYWHERE, "api_keys_file": "keys.toml"}, ["`admin_address`"]),
        ({"admin_address": ANYWHERE, "api_keys_file": "keys.toml", **PAIR}, []),
        ({"admin_address": ANYWHERE, "bearer_hook": "a.b:c", "allow_plaintext_keys": True}, []),
        ({"bearer_hook": "a.b"}, ["`bearer_hook`"]),
        ({"bearer_hook": "a.b:"}, ["`bearer_hook`"]),
        (
            {"tls_key": "k", "tls_client_ca": "c", "bearer_hook": "x", "address": ANYWHERE},
            ["`tls_certificate` and `tls_key`", "`tls_client_ca`", "`bearer_hook`", "`address`"],
        ),
    ],
)
def test_what_cannot_be_used_together(flags: dict[str, object], problems: list[str]) -> None:
    assert problems_of(**flags) == problems


def test_it_is_seen_wherever_it_was_said(tmp_path: Path) -> None:
    file = tmp_path / "service.toml"
    file.write_text('[tls]\ntls_certificate = "a"\n', encoding="utf-8")
    with pytest.raises(ConfigError, match="only one of them is"):
        load_config(file=file)
    load_config(file=file, environment={"DRAGOMAN_TLS_KEY": "b"})


def test_which_addresses_only_this_machine_reaches() -> None:
    assert all(map(is_loopback, ["127.0.0.1:1", "127.9.9.9:1", "localhost:1", "[::1]:1"]))
    assert not any(map(is_loopback, ["0.0.0.0:1", "[::]:1", "10.0.0.1:1", "translation:1", "localhost.example:1"]))
