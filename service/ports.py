"""Which ports does the server listen on, and how are connections treated?"""

from __future__ import annotations

from typing import TYPE_CHECKING

import grpc

from service.config import Config
from service.metrics import Metrics, MetricsServer
from service.tls import ServerCertificates

if TYPE_CHECKING:
    from collections.abc import Callable


class StartError(RuntimeError):
    """The server cannot start; the message says why."""


async def listen(
    config: Config,
    add_services: Callable[[grpc.aio.Server], None],
    *,
    certificates: ServerCertificates | None = None,
    setting: str = "address",
) -> tuple[grpc.aio.Server, str]:
    """Starts gRPC on a configured address.

    Args:
        config: says where, and how connections are treated.
        add_services: gives the server what it answers.
        certificates: for TLS; None: connections are not encrypted.
        setting: name of the address among the server's settings.

    Returns:
        The running server, and the address with its real port.

    Raises:
        StartError: when it cannot be bound.
    """
    server = grpc.aio.server(options=channel_options(config))
    add_services(server)
    address: str = getattr(config.server, setting)
    try:
        if certificates is None:
            port = server.add_insecure_port(address)
        else:
            port = server.add_secure_port(address, certificates.credentials())
    except RuntimeError as error:
        raise StartError(f"`{setting}` must be free to listen on, but {address} is not.") from error
    await server.start()
    return server, f"{address.rpartition(':')[0]}:{port}"


def listen_metrics(config: Config, metrics: Metrics) -> tuple[MetricsServer | None, str]:
    """Serves the metrics page on the configured address.

    Returns:
        What stops it and the address with its real port; None and "" when none is configured.

    Raises:
        StartError: when it cannot be bound.
    """
    address = config.server.metrics_address
    if not address:
        return None, ""
    try:
        bound, server = metrics.serve(address)
    except OSError as error:
        raise StartError(
            f"`metrics_address` must be free to listen on, but {address} is not: {error.strerror}."
        ) from error
    return server, bound


def channel_options(config: Config) -> list[tuple[str, int]]:
    """The options of the gRPC server."""
    server = config.server
    options = [
        ("grpc.max_receive_message_length", server.max_message_bytes),
        ("grpc.max_send_message_length", -1),  # bounded by what was asked for
        ("grpc.keepalive_time_ms", round(server.keepalive_seconds * 1000)),
        ("grpc.keepalive_timeout_ms", round(server.keepalive_timeout_seconds * 1000)),
        ("grpc.keepalive_permit_without_calls", 1),
        ("grpc.http2.min_recv_ping_interval_without_data_ms", round(server.min_ping_seconds * 1000)),
        ("grpc.so_reuseport", 0),  # two servers on one address would share its calls unnoticed
    ]
    if server.max_connection_age_seconds:
        options += [
            ("grpc.max_connection_age_ms", round(server.max_connection_age_seconds * 1000)),
            ("grpc.max_connection_age_grace_ms", round(server.max_connection_age_grace_seconds * 1000)),
        ]
    return options
