"""How does a client trust a server, and show who it is?"""

import functools
import ipaddress
import re
from types import SimpleNamespace
from typing import Any, cast

import grpc

from service.pb.translation.v1 import translation_pb2 as pb
from service.pb.translation.v1 import translation_pb2_grpc

_TOKEN = re.compile(r"[!-~]+")
Metadata = tuple[tuple[str, str], ...]


def credentials_of(
    address: str,
    *,
    tls: bool,
    root_certificates: bytes | None,
    certificate: bytes | None,
    key: bytes | None,
    api_key: str,
    allow_plaintext_key: bool,
) -> tuple[grpc.ChannelCredentials | None, Metadata]:
    """What a connection is opened with (None: not encrypted), and what each call carries; see `Client`.

    Raises:
        ValueError: when a certificate comes without its key, or a key would be sent for all the network to read.
    """
    if (certificate is None) != (key is None):
        raise ValueError("`certificate` and `key` must be given together, but only one of them is.")
    is_encrypted = tls or root_certificates is not None or certificate is not None
    if api_key and not _TOKEN.fullmatch(api_key):
        raise ValueError("`api_key` must be of visible ASCII characters, but is not.")
    if api_key and not (is_encrypted or allow_plaintext_key or _is_local(address)):
        raise ValueError(
            f"`api_key` must be sent by TLS or to this machine, but {address} is neither; "
            "with `allow_plaintext_key` it is sent all the same."
        )
    credentials = grpc.ssl_channel_credentials(root_certificates, key, certificate) if is_encrypted else None
    return credentials, (("authorization", f"Bearer {api_key}"),) if api_key else ()


def stub_of(channel: Any, metadata: Metadata) -> Any:
    """The methods of a server; each call carries `metadata`."""
    stub = cast(Any, translation_pb2_grpc).TranslationServiceStub(channel)
    names = [method.name for method in pb.DESCRIPTOR.services_by_name["TranslationService"].methods]
    return SimpleNamespace(**{name: functools.partial(getattr(stub, name), metadata=metadata) for name in names})


def _is_local(target: str) -> bool:
    """Whether what is sent to a gRPC target stays on this machine."""
    if target.startswith(("unix:", "unix-abstract:")):
        return True
    host = target.rpartition("/")[2].rpartition(":")[0].strip("[]")
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
