"""A package index that opens to one password: a real server of this machine, with one package that is nowhere else."""

from __future__ import annotations

import base64
from contextlib import ExitStack
from http.server import BaseHTTPRequestHandler

from tests.serving import serving
from tests.wheel import wheel

PACKAGE = "kept-private"
USER = "robot"


class PrivateIndex:
    """Use it as a context manager. ``served`` counts what was sent of the package, ``refused`` the wrong passwords."""

    def __init__(self, password: str) -> None:
        self.served = self.refused = 0
        self._expected = "Basic " + base64.b64encode(f"{USER}:{password}".encode()).decode()
        self._name, self._wheel = wheel(PACKAGE, "")
        owner = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                owner._answer(self)

            do_HEAD = do_GET

            def log_message(self, format: str, *args: object) -> None:
                """Says nothing."""

        self._handler, self._leave = Handler, ExitStack()

    def url(self, password: str) -> str:
        """The address of the index, for somebody with that password."""
        return f"http://{USER}:{password}@127.0.0.1:{self._server.server_address[1]}/simple"

    def _answer(self, asked: BaseHTTPRequestHandler) -> None:
        if asked.headers.get("Authorization") != self._expected:
            self.refused += "Authorization" in asked.headers
            body, code, kind = b"", 401, "text/plain"
        elif asked.path.rstrip("/").endswith(f"/simple/{PACKAGE}"):
            body, code, kind = f'<a href="/files/{self._name}">{self._name}</a>'.encode(), 200, "text/html"
        elif asked.path == f"/files/{self._name}":
            self.served += asked.command == "GET"
            body, code, kind = self._wheel, 200, "application/zip"
        else:
            body, code, kind = b"", 404, "text/plain"
        asked.send_response(code)
        if code == 401:
            asked.send_header("WWW-Authenticate", 'Basic realm="packages"')
        asked.send_header("Content-Type", kind)
        asked.send_header("Content-Length", str(len(body)))
        asked.end_headers()
        if asked.command == "GET":
            asked.wfile.write(body)

    def __enter__(self) -> PrivateIndex:
        self._server = self._leave.enter_context(serving(self._handler))
        return self

    def __exit__(self, *exc_info: object) -> None:
        self._leave.close()
