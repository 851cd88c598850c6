"""Clients of Modal: one for short calls, more where long polls and streams would fill a connection.

A client is one HTTP/2 connection. A server may allow as few as 100 streams on it (h2's default), and at that
many long polls every other call waits for one to end. So long ones are spread over clients of their own.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass

import modal

from bridge import upstream_modal
from bridge.errors import CredentialsRefused
from bridge.planning import header_value
from bridge.runners.base import OUTAGE_SECONDS
from bridge.runners.modal_errors import CREDENTIALS_FIX, SDK_ERRORS, is_away, ride_out, translated

# Its DEBUG records are the headers of every request, tokens among them; whoever asks ZenML for DEBUG gets them, and
# ZenML keeps them with the run's logs.
logging.getLogger("hpack").setLevel(logging.INFO)

STREAMS = 90
"""Most long calls on one client."""


@dataclass
class _Connection:
    client: modal.Client
    streams: int = 0


class Clients:
    """The clients of one runner, all with the same credentials. Belongs to one event loop.

    ``outage`` is how many seconds Modal may be away when it is connected to.
    """

    def __init__(self, pair: tuple[str, str] | None, outage: float = OUTAGE_SECONDS) -> None:
        self._pair = pair
        self._outage = outage
        self._main: modal.Client | None = None
        self._owns_main = True
        self._connections: list[_Connection] = []
        self._opening = asyncio.Lock()

    async def open(self) -> None:
        """Connect and make sure that Modal takes the credentials.

        Raises ``CredentialsRefused`` if they are missing or wrong, ``RunnerUnavailable``.
        """
        try:
            self._pair = self._pair or upstream_modal.token_pair()
            _refuse_what_can_not_be_sent(self._pair)
            self._main = await ride_out(self._connect, self._outage, is_away)
        except SDK_ERRORS as error:
            raise translated(error, "Modal can't be used") from error

    async def _connect(self) -> modal.Client:
        if self._pair is None:
            # OAuth, or nothing: the SDK knows, and says which. Its client is one for the whole process.
            client = await modal.Client.from_env.aio()
            self._owns_main = False
            await client.hello.aio()  # type: ignore[no-untyped-call]
            return client
        client = await modal.Client.from_credentials.aio(*self._pair)
        try:
            await client.hello.aio()  # type: ignore[no-untyped-call]
        except BaseException:
            await client.__aexit__(None, None, None)  # type: ignore[no-untyped-call]
            raise
        return client

    async def close(self) -> None:
        """Close them; sandboxes live on."""
        mine = [connection.client for connection in self._connections]
        if self._main is not None and self._owns_main:
            mine.append(self._main)
        self._connections, self._main = [], None
        await asyncio.gather(*(client.__aexit__(None, None, None) for client in mine))  # type: ignore[no-untyped-call]

    @property
    def main(self) -> modal.Client:
        """The client for short calls. Raises ``RuntimeError`` outside of the runner's ``async with``."""
        if self._main is None:
            raise RuntimeError("the runner isn't entered: use `async with runner:`")
        return self._main

    @asynccontextmanager
    async def lease(self, streams: int) -> AsyncIterator[modal.Client]:
        """Lend a client that has room for that many long calls at once. Raises what the SDK raises."""
        if self._pair is None or not streams:
            yield self.main
            return
        connection = await self._with_room(streams, self._pair)
        try:
            yield connection.client
        finally:
            connection.streams -= streams

    async def _with_room(self, streams: int, pair: tuple[str, str]) -> _Connection:
        async with self._opening:
            for connection in self._connections:
                if connection.streams + streams <= STREAMS:
                    break
            else:
                connection = _Connection(await modal.Client.from_credentials.aio(*pair))
                self._connections.append(connection)
            connection.streams += streams
            return connection


def _refuse_what_can_not_be_sent(pair: tuple[str, str] | None) -> None:
    for name, value in zip(("token_id", "token_secret"), pair or (), strict=False):
        if not header_value.is_sendable(value):
            raise CredentialsRefused(f"Modal can't be used: {name} is no token, {header_value.WHY}. {CREDENTIALS_FIX}.")
