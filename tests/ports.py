"""Ports on loopback that stay ours between their choice and the server that listens on them.

A port that was only looked up (bound to 0 and closed) lies in the range from which the kernel serves outgoing
connections: any of them may take it before the server does, and while the server is stopped.
"""

from __future__ import annotations

import socket

HOST = "127.0.0.1"
_KEPT: list[socket.socket] = []


def reserve() -> socket.socket:
    """A socket that holds a port of its own for as long as it is open, and doesn't listen.

    A server that sets ``SO_REUSEADDR``, as asyncio, uvicorn and ``http.server`` do, may listen there meanwhile, again
    and again. Nobody else is given the port, and whoever connects without a server is refused (Linux,
    net/ipv4/inet_connection_sock.c ``inet_csk_bind_conflict`` and inet_hashtables.c ``__inet_hash_connect``).
    """
    held = socket.socket()
    held.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    held.bind((HOST, 0))
    return held


def number(held: socket.socket) -> int:
    """The port that a socket holds."""
    port: int = held.getsockname()[1]
    return port


def free_port() -> int:
    """A port on which nothing listens, held until this process ends."""
    _KEPT.append(reserve())
    return number(_KEPT[-1])
