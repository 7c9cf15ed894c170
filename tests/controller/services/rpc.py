"""Every method of the controller by its path, called with any bytes: for tests that go through all of them."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from google.protobuf import descriptor_pool
from google.protobuf.descriptor import MethodDescriptor
from google.protobuf.message_factory import GetMessageClass
from grpc import aio

from clients.errors import refusal
from clients.gen.backupmanager.agent.v1 import session_service_pb2
from controller.serving import PUBLIC_SERVICES

_pool = descriptor_pool.Default()
_services = [_pool.FindServiceByName(name) for name in PUBLIC_SERVICES]
_services.append(session_service_pb2.DESCRIPTOR.services_by_name["SessionService"])
METHODS: dict[str, MethodDescriptor] = {
    f"/{service.full_name}/{method.name}": method for service in _services for method in service.methods
}
CALL_SECONDS = 10.0
ENDLESS = {"/backupmanager.v1.EventService/WatchEvents"}  # their first answer comes at once


@dataclass(frozen=True)
class Outcome:
    """How a call ended: a reason and a status; "" and "OK" for one that was answered."""

    reason: str
    status: str
    message: str = ""


async def call(channel: aio.Channel, path: str, data: bytes = b"", metadata: Sequence[tuple[str, str]] = ()) -> Outcome:
    """Send bytes as the request of a method of any shape, and read its answers to the end."""
    method = METHODS[path]
    decode = GetMessageClass(method.output_type).FromString
    plain: dict[str, Any] = {"request_serializer": None, "response_deserializer": decode}
    raw: Any = channel  # its stub knows no calls with bytes
    try:
        if method.client_streaming:
            stream = raw.stream_stream(path, **plain)(iter([data]), metadata=metadata, timeout=CALL_SECONDS)
            async for _ in stream:
                pass
        elif method.server_streaming:
            answers = raw.unary_stream(path, **plain)(data, metadata=metadata, timeout=CALL_SECONDS)
            async for _ in answers:
                if path in ENDLESS:
                    answers.cancel()
                    break
        else:
            await raw.unary_unary(path, **plain)(data, metadata=metadata, timeout=CALL_SECONDS)
    except aio.AioRpcError as error:
        told = refusal(error)
        return Outcome(told.reason, told.status.name, told.message)
    return Outcome("", "OK")
