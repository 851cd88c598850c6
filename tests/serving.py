"""HTTP servers of this machine that tests answer for themselves."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread


@contextmanager
def serving(handler: type[BaseHTTPRequestHandler]) -> Iterator[ThreadingHTTPServer]:
    """A server on loopback, on a port of its own, which answers by this handler; a thread for each connection."""
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        server.daemon_threads = True
        thread = Thread(target=server.serve_forever, daemon=True)
        thread.start()
        try:
            yield server
        finally:
            server.shutdown()
            thread.join()


@contextmanager
def serving_at(handler: type[BaseHTTPRequestHandler]) -> Iterator[str]:
    """The same; its address: host and port."""
    with serving(handler) as server:
        yield f"127.0.0.1:{server.server_address[1]}"
