"""Serving a generated gRPC service with plain coroutines: ``async def Method(self, request, metadata)``.

Methods that a service doesn't have answer UNIMPLEMENTED, so that each version of the SDK meets the same server.
"""

from __future__ import annotations

from asyncio import Transport
from collections import Counter
from collections.abc import Awaitable, Callable, Mapping
from functools import cached_property
from typing import Any, cast
from weakref import WeakSet

import grpclib.const
import grpclib.server
from grpclib import GRPCError, Status
from grpclib.config import Configuration
from grpclib.protocol import H2Protocol
from h2.settings import SettingCodes

Gate = Callable[[str, Mapping[str, str]], Awaitable[None]]
"""Called before each RPC with its name and metadata; raises ``GRPCError`` to refuse it."""

Tape = list[tuple[str, Any]]
"""Every RPC's name and request, in the order of their coming."""


class Service:
    """A grpclib service over ``implementation``, for all methods of the generated ``base``."""

    def __init__(
        self, base: type, implementation: object, gate: Gate, in_flight: Counter[str], tape: Tape | None = None
    ) -> None:
        async def unimplemented(self: object, stream: object) -> None: ...

        names: frozenset[str] = base.__abstractmethods__  # type: ignore[attr-defined]
        filled = type("Filled", (base,), dict.fromkeys(names, unimplemented))
        self._handlers = cast(Mapping[str, grpclib.const.Handler], filled().__mapping__())
        self._implementation = implementation
        self._gate = gate
        self._in_flight = in_flight
        self._tape = tape

    def __mapping__(self) -> dict[str, grpclib.const.Handler]:
        return {path: self._handler(path, handler) for path, handler in self._handlers.items()}

    def _handler(self, path: str, handler: grpclib.const.Handler) -> grpclib.const.Handler:
        name = path.rpartition("/")[2]
        method = getattr(self._implementation, name, None)

        async def serve(stream: grpclib.server.Stream[Any, Any]) -> None:
            metadata = {key: value for key, value in (stream.metadata or {}).items() if isinstance(value, str)}
            await self._gate(name, metadata)
            if method is None:
                raise GRPCError(Status.UNIMPLEMENTED, f"the loopback server doesn't speak {name}")
            self._in_flight[name] += 1
            try:
                request = await stream.recv_message()
                if self._tape is not None:
                    self._tape.append((name, request))
                if handler.cardinality is grpclib.const.Cardinality.UNARY_UNARY:
                    await stream.send_message(await method(request, metadata))
                    return
                async for message in method(request, metadata):
                    await stream.send_message(message)
            finally:
                self._in_flight[name] -= 1

        return grpclib.const.Handler(serve, handler.cardinality, handler.request_type, handler.reply_type)


class ManyStreamsServer(grpclib.server.Server):
    """grpclib's server with more streams to a connection than h2's default of 100.

    Modal's own limit isn't known. The default here is far above it, so that a test can set it to 100 on purpose.
    """

    max_streams: int = 1000

    def drop(self) -> None:
        """Refuse new connections and cut the ones there are, in the middle of whatever they carry."""
        self.close()
        for transport in self._transports:
            transport.abort()
        self._transports.clear()

    @cached_property
    def _transports(self) -> WeakSet[Transport]:
        return WeakSet()

    def _protocol_factory(self) -> H2Protocol:
        protocol = super()._protocol_factory()
        limit, transports = self.max_streams, self._transports

        class Protocol(H2Protocol):
            def connection_made(self, transport: Any) -> None:
                super().connection_made(transport)
                transports.add(transport)
                connection = self.connection._connection
                connection.update_settings({SettingCodes.MAX_CONCURRENT_STREAMS: limit})
                self.connection.flush()

        return Protocol(protocol.handler, protocol.config, protocol.h2_config)


def configuration() -> Configuration:
    return Configuration(http2_connection_window_size=64 * 1024 * 1024, http2_stream_window_size=64 * 1024 * 1024)
