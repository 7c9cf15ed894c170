"""The chain that every call passes, of all four shapes, on both listeners.

    outside ─► errors ─► identity ─► scope ─► well-formed ─► audit ─► servicer
            ◄─ status, trailers, one log line per call

A servicer raises our typed errors and returns messages; what that means on the wire is decided here alone. The order
matters: a caller without permission learns nothing about what exists, nor whether its request made sense.
"""

import asyncio
import inspect
import logging
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import aclosing, asynccontextmanager
from dataclasses import dataclass
from typing import Any, TypeAlias

import grpc
from grpc import aio

from controller.audit import Audit
from controller.clock import Clock
from controller.errors import Internal, PermissionDenied, ShuttingDown
from controller.logs import JOB_ID
from controller.security import status, wellformed
from controller.security.caller import CALLER
from controller.security.identity import Identity
from controller.security.permissions import RULES, Rule, allows
from engine import ids
from engine.errors import BackupManagerError

log = logging.getLogger(__name__)

_HEALTH = "/grpc.health.v1.Health/"

Context: TypeAlias = "aio.ServicerContext[Any, Any]"
Handler: TypeAlias = "grpc.RpcMethodHandler[Any, Any]"


@dataclass(slots=True)
class _Call:
    """One call on its way: what is known of it so far."""

    method: str
    rule: Rule
    response: Any = None


class Chain(aio.ServerInterceptor):
    """The interceptor. `identity` tells callers apart, `audit` keeps who changed what."""

    def __init__(self, identity: Identity, audit: Audit, clock: Clock, rules: Mapping[str, Rule] = RULES) -> None:
        self._rules = rules
        self._identity = identity
        self._audit = audit
        self._clock = clock
        self.stopping = False  # set once: every call from then on is refused with SHUTTING_DOWN, except health

    async def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], Awaitable["Handler | None"]],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> "Handler | None":
        handler = await continuation(handler_call_details)
        return None if handler is None else self._wrapped(str(handler_call_details.method), handler)

    def _wrapped(self, method: str, handler: "Handler") -> "Handler":
        inner: Any = handler.unary_unary or handler.unary_stream or handler.stream_unary or handler.stream_stream
        decode = wellformed.decoder(handler.request_deserializer) if handler.request_deserializer else None
        requests = handler.request_streaming

        async def one(request: Any, context: Context) -> Any:
            async with self._guard(method, None if requests else request, context) as call:
                call.response = await inner(_refusing(request) if requests else request, context)
            return call.response

        async def many(request: Any, context: Context) -> None:
            async with self._guard(method, None if requests else request, context):
                replies = inner(_refusing(request) if requests else request, context)
                if inspect.isawaitable(replies):  # it writes its replies itself
                    await replies
                    return
                async with aclosing(replies):
                    async for reply in replies:
                        await context.write(reply)

        if handler.response_streaming:
            make = grpc.stream_stream_rpc_method_handler if requests else grpc.unary_stream_rpc_method_handler
            return make(many, decode, handler.response_serializer)
        plain = grpc.stream_unary_rpc_method_handler if requests else grpc.unary_unary_rpc_method_handler
        return plain(one, decode, handler.response_serializer)

    @asynccontextmanager
    async def _guard(self, method: str, request: Any, context: Context) -> AsyncIterator[_Call]:
        """Let a call in or refuse it, and see it out. A refusal ends with AbortError, which grpc knows how to take."""
        started, reason = time.monotonic(), "OK"
        try:
            call = _Call(method, self._rule(method))
            await self._admit(call, request, context)
            async with self._audit.call(method, call.rule, request, context.peer(), lambda: call.response):
                yield call
        except aio.AbortError:
            reason = "ABORTED"
            raise
        except asyncio.CancelledError:
            reason = "CANCELLED"
            raise
        except BackupManagerError as error:
            refusal = error if status.leaves_calls(error) else self._fault(method)
            reason = refusal.reason
            await _refuse(context, refusal)
        except Exception:
            reason = "INTERNAL"
            await _refuse(context, self._fault(method))
        finally:
            seconds = time.monotonic() - started
            log.debug(
                "a call ended method=%s caller=%s reason=%s seconds=%.3f", method, CALLER.get().name, reason, seconds
            )

    async def _admit(self, call: _Call, request: Any, context: Context) -> None:
        if self.stopping and not call.method.startswith(_HEALTH):
            raise ShuttingDown
        caller = await self._identity.of(context, call.rule)
        CALLER.set(caller)  # never reset: each call has a task, and so a context, of its own
        if caller.scope is not None and not allows(caller.scope, call.rule.demand):
            if call.rule.audited:
                await self._audit.refused(call.method, call.rule, request, context.peer(), PermissionDenied.reason)
            raise PermissionDenied(problem=f"scope {caller.scope} does not allow this call")
        wellformed.check(request)
        job_id = getattr(request, "job_id", "")
        if ids.is_id(job_id):  # anything else could forge a line of the log
            JOB_ID.set(job_id)

    def _rule(self, method: str) -> Rule:
        rule = self._rules.get(method)
        if rule is None:
            raise PermissionDenied(problem="nobody may make this call")
        return rule

    def _fault(self, method: str) -> Internal:
        """Log the exception being handled, once, and return what the caller may know of it: a number to ask about."""
        error_id = ids.new_id(self._clock.now())
        log.exception("a call failed by a fault of ours method=%s error_id=%s", method, error_id)
        return Internal(error_id=error_id)


async def _refuse(context: Context, error: BackupManagerError) -> None:
    rich = status.status_of(error)
    await context.abort(rich.code, rich.details, (*rich.trailing_metadata, *status.trailers_of(error)))


async def _refusing(requests: AsyncIterator[Any]) -> AsyncIterator[Any]:
    """Yield a stream's requests, and refuse one that is no message at all."""
    async for request in requests:
        wellformed.check_times(request)
        yield request
