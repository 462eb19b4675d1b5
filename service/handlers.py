"""How do the interface's methods reach the servicer, and bytes become a request?

gRPC would parse requests before the servicer sees the call, and answer bytes that are none with `UNKNOWN`: outside our
table of codes, the metrics and the log. So methods take bytes, and each parses them when it has admitted the call.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, TypeVar

import grpc
from google.protobuf import message_factory
from google.protobuf.message import DecodeError, Message

from service.pb.translation.v1 import translation_pb2 as pb
from service.refusals import MalformedMessageError

if TYPE_CHECKING:
    from google.protobuf.descriptor import MethodDescriptor, ServiceDescriptor

SERVICE = pb.DESCRIPTOR.services_by_name["TranslationService"]
SERVICE_NAME = SERVICE.full_name
Request = TypeVar("Request", bound=Message)


def parse(kind: type[Request], data: bytes) -> Request:
    """The request that a call's bytes are.

    Raises:
        MalformedMessageError: when they are none.
    """
    try:
        return kind.FromString(data)
    except DecodeError as error:
        raise MalformedMessageError(
            f"The message must be a {kind.DESCRIPTOR.full_name}, but its {len(data)} bytes are none."
        ) from error


def add_methods(servicer: Any, server: grpc.aio.Server, *, service: ServiceDescriptor = SERVICE) -> None:
    """Makes `server` answer each method of an interface by the servicer's coroutine of that name, which takes the
    request's bytes and the context."""
    handlers = {method.name: _handler(servicer, method) for method in service.methods}
    name = service.full_name
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(name, handlers),))
    server.add_registered_method_handlers(name, handlers)  # type: ignore[attr-defined]  # unknown to the stubs


def _handler(servicer: Any, method: MethodDescriptor) -> Any:
    make = grpc.unary_stream_rpc_method_handler if method.server_streaming else grpc.unary_unary_rpc_method_handler
    return make(
        getattr(servicer, method.name),
        request_deserializer=None,
        response_serializer=message_factory.GetMessageClass(method.output_type).SerializeToString,
    )
