"""Which settings cannot be used together, though each is allowed, or would give away what they should keep?"""

from __future__ import annotations

import ipaddress
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from service.config import Config


def problems_together(config: Config) -> list[str]:
    """Every reason, one sentence each."""
    problems = []
    tls, access = config.tls, config.access
    if bool(tls.tls_certificate) != bool(tls.tls_key):
        problems.append("`tls_certificate` and `tls_key` must be given together, but only one of them is.")
    if tls.tls_client_ca and not tls.tls_certificate:
        problems.append("`tls_client_ca` must come with `tls_certificate`, but does not.")
    if access.bearer_hook and not all(access.bearer_hook.partition(":")):
        problems.append(f"`bearer_hook` must be module:function, but is {access.bearer_hook!r}.")
    asks_for_tokens = bool(access.api_keys_file or access.bearer_hook)
    is_safe = tls.tls_certificate or access.allow_plaintext_keys or is_loopback(config.server.address)
    if asks_for_tokens and not is_safe:
        problems.append(
            f"`address` must be a loopback address where tokens come without TLS, but is {config.server.address!r}; "
            "behind a proxy that ends TLS, say `allow_plaintext_keys`."
        )
    admin = config.server.admin_address
    if admin and not is_loopback(admin):
        if not asks_for_tokens:
            problems.append(
                f"`admin_address` must be a loopback address where no tokens are asked for, but is {admin!r}."
            )
        elif not (tls.tls_certificate or access.allow_plaintext_keys):
            problems.append(
                f"`admin_address` must be a loopback address where tokens come without TLS, but is {admin!r}."
            )
    return problems


def is_loopback(address: str) -> bool:
    """Whether only this machine reaches an address, host:port."""
    host = address.rpartition(":")[0].strip("[]")
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
