"""Stands in front of a real server: asks for a password, refuses, or breaks off after the server has acted."""

from __future__ import annotations

import ssl
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler

import httpx

from tests.serving import serving

HOP_BY_HOP = {"connection", "keep-alive", "transfer-encoding", "content-length", "content-encoding", "host"}


@dataclass
class Forwarder:
    """Hands requests on to ``target``, whose certificate, if it has one, ``verify`` checks. Use as a context manager.

    ``required`` are headers without which it answers 401; ``before`` is called before a request is handed on;
    ``refuses`` says which requests it answers by 400; ``cuts`` for which one, once, the connection breaks after the
    server has done what it was asked; ``busy`` for which one, once, it answers 429 however often it comes again, as
    ZenML's server does that was killed over it.
    """

    target: str
    required: Mapping[str, str] = field(default_factory=dict)
    before: Callable[[str, str], None] = lambda method, path: None
    refuses: Callable[[str, str], bool] = lambda method, path: False
    cuts: Callable[[str, str], bool] = lambda method, path: False
    busy: Callable[[str, str], bool] = lambda method, path: False
    verify: ssl.SSLContext | bool = True
    left_open: str = ""
    cut: bool = False
    refused: int = 0

    def __enter__(self) -> Forwarder:
        outer = self

        class Handler(BaseHTTPRequestHandler):
            def handle_any(self) -> None:
                outer.handle(self)

            do_GET = do_HEAD = do_POST = do_PATCH = do_DELETE = do_PUT = handle_any

            def log_message(self, format: str, *args: object) -> None:
                """Says nothing."""

        self._leave = ExitStack()
        self._server = self._leave.enter_context(serving(Handler))
        return self

    def __exit__(self, *exc_info: object) -> None:
        self._leave.close()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._server.server_address[1]}"

    def handle(self, request: BaseHTTPRequestHandler) -> None:
        body = request.rfile.read(int(request.headers.get("content-length") or 0))
        if any(request.headers.get(name) != value for name, value in self.required.items()):
            self.refused += 1
            self._answer(request, httpx.Response(401, json={"exception_message": "Unauthorized"}))
            return
        if self.refuses(request.command, request.path):
            self.refused += 1
            self._answer(request, httpx.Response(400, json={"exception_message": "not today"}))
            return
        key = request.headers.get("Idempotency-Key", "")
        if not self.left_open and self.busy(request.command, request.path):
            self.left_open = key
        if key and key == self.left_open:
            self._answer(request, httpx.Response(429, json={"exception_message": "too busy"}))
            return
        self.before(request.command, request.path)
        headers = {name: value for name, value in request.headers.items() if name.lower() not in HOP_BY_HOP}
        answer = httpx.request(
            request.command, self.target + request.path, content=body, headers=headers, timeout=30, verify=self.verify
        )
        if not self.cut and self.cuts(request.command, request.path):
            self.cut = True
            request.connection.close()
            return
        self._answer(request, answer)

    def _answer(self, request: BaseHTTPRequestHandler, answer: httpx.Response) -> None:
        request.send_response(answer.status_code)
        for name, value in answer.headers.items():
            if name.lower() not in HOP_BY_HOP:
                request.send_header(name, value)
        length = answer.headers.get("content-length", "0") if request.command == "HEAD" else str(len(answer.content))
        request.send_header("content-length", length)
        request.end_headers()
        request.wfile.write(answer.content)
