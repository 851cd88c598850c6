import socket
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from tests import ports


def test_a_held_port_is_a_servers_again_and_again_and_nobody_elses() -> None:
    port = ports.free_port()

    def nobody_listens() -> None:
        with pytest.raises(ConnectionRefusedError):
            socket.create_connection((ports.HOST, port))
        with socket.socket() as other, pytest.raises(OSError, match="already in use"):
            other.bind((ports.HOST, port))

    for _ in range(2):
        nobody_listens()
        with ThreadingHTTPServer((ports.HOST, port), BaseHTTPRequestHandler):
            socket.create_connection((ports.HOST, port)).close()
    nobody_listens()
