"""Azure, as far as a stack needs it, on this machine: tokens for a service principal, a subscription, a store behind.

Its libraries know no other names than Azure's own, and no way but TLS: whoever is to reach this one is led to it by a
proxy and trusts its authority (:attr:`Azure.variables`).
"""

from __future__ import annotations

import base64
import json
import socket
import ssl
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from select import select
from urllib.parse import parse_qs

import httpx
import trustme

from tests.integration.forwarder import Forwarder
from tests.serving import serving

ACCOUNT = "devstoreaccount1"
"""That of Azurite."""
TENANT, CLIENT, SUBSCRIPTION = (f"00000000-0000-0000-0000-00000000000{digit}" for digit in "123")
SECRET = "of the principal"
REGISTRY = "acme"
"""Its images are in ``acme.azurecr.io``."""
_LOGIN, _MANAGEMENT, _STORE = "login.microsoftonline.com", "management.azure.com", f"{ACCOUNT}.blob.core.windows.net"
_ISSUER = f"https://sts.windows.net/{TENANT}/"


class Authority:
    """Who says that a certificate is right: files in a folder."""

    def __init__(self, folder: Path) -> None:
        ca = trustme.CA()
        issued = ca.issue_cert(_LOGIN, _MANAGEMENT, _STORE, "127.0.0.1")
        self.bundle, self.certificate, self.key = (folder / name for name in ("ca.pem", "cert.pem", "key.pem"))
        ca.cert_pem.write_to_path(str(self.bundle))
        issued.private_key_pem.write_to_path(str(self.key))
        for part in issued.cert_chain_pems:
            part.write_to_path(str(self.certificate), append=True)

    def context(self) -> ssl.SSLContext:
        """For whoever trusts it."""
        return ssl.create_default_context(cafile=self.bundle)


@dataclass
class Azure(Forwarder):
    """Gives out tokens of ``life`` seconds for :data:`SECRET`; lets only their holders on to ``target``, an Azurite.

    ``asked`` is what was asked of the store: method, path, token.
    """

    authority: Authority = field(kw_only=True)
    life: int = 3600
    given: list[str] = field(default_factory=list)
    asked: list[tuple[str, str, str]] = field(default_factory=list)

    def __enter__(self) -> Azure:
        super().__enter__()
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(self.authority.certificate, self.authority.key)
        self._server.socket = context.wrap_socket(self._server.socket, server_side=True)
        self._proxy = self._leave.enter_context(serving(_led_to(self._server.server_address[1])))
        return self

    @property
    def variables(self) -> Mapping[str, str]:
        """What leads a process here."""
        bundle, proxy = str(self.authority.bundle), f"http://127.0.0.1:{self._proxy.server_address[1]}"
        trusted = dict.fromkeys(("SSL_CERT_FILE", "REQUESTS_CA_BUNDLE"), bundle)
        return {**trusted, "HTTPS_PROXY": proxy, "NO_PROXY": "127.0.0.1,localhost"}

    def handle(self, request: BaseHTTPRequestHandler) -> None:
        host = request.headers["host"].partition(":")[0]
        if host == _LOGIN:
            self._answer(request, self._login(request))
            return
        _, _, token = request.headers.get("authorization", "").partition("Bearer ")
        if token not in self.given:
            self._answer(request, httpx.Response(401, json={"error": {"code": "InvalidAuthenticationToken"}}))
        elif host == _MANAGEMENT:
            self._answer(request, httpx.Response(200, json=_managed(request.path)))
        else:
            assert host == _STORE
            self.asked.append((request.command, request.path, token))
            request.path = f"/{ACCOUNT}{request.path}"
            super().handle(request)

    def _login(self, request: BaseHTTPRequestHandler) -> httpx.Response:
        if request.command == "GET":
            place = f"https://{_LOGIN}/{TENANT}/oauth2/v2.0"
            ends = {f"{what}_endpoint": f"{place}/{what}" for what in ("authorize", "authorization", "token")}
            return httpx.Response(200, json={"issuer": f"https://{_LOGIN}/{TENANT}/v2.0", **ends})
        body = parse_qs(request.rfile.read(int(request.headers["content-length"])).decode())
        assert (body["client_id"], body["client_secret"]) == ([CLIENT], [SECRET])
        audience = body["scope"][0].partition("/.default")[0]
        now = int(time.time())
        claims = {"aud": audience, "iss": _ISSUER, "nbf": now - 60, "iat": now - 60, "exp": now + self.life}
        parts = {"alg": "RS256", "typ": "JWT"}, {**claims, "jti": str(len(self.given))}
        self.given.append(".".join([*map(_encoded, parts), "unsigned"]))  # Azurite takes it so
        answer = {"token_type": "Bearer", "expires_in": self.life, "access_token": self.given[-1]}
        return httpx.Response(200, json=answer)


def _managed(path: str) -> Mapping[str, object]:
    """What there is: a subscription, and a container registry in it."""
    subscription = f"/subscriptions/{SUBSCRIPTION}"
    kind = "Microsoft.ContainerRegistry/registries"
    if kind in path:
        place = f"{subscription}/resourceGroups/ml/providers/{kind}/{REGISTRY}"
        return {"value": [{"id": place, "name": REGISTRY, "location": "westeurope", "sku": {"name": "Basic"}}]}
    return {"id": subscription, "subscriptionId": SUBSCRIPTION, "displayName": "acme"}


def _led_to(port: int) -> type[BaseHTTPRequestHandler]:
    """A proxy that leads every connection to one port of this machine, whatever host is asked for."""

    class Handler(BaseHTTPRequestHandler):
        def do_CONNECT(self) -> None:
            self.send_response(200)
            self.end_headers()
            with socket.create_connection(("127.0.0.1", port)) as there:
                _join(self.connection, there)

        def log_message(self, format: str, *args: object) -> None:
            """Says nothing."""

    return Handler


def _join(one: socket.socket, other: socket.socket) -> None:
    """Hand on what either says until one of them ends."""
    while True:
        for said in select([one, other], [], [])[0]:
            data = said.recv(65536)
            if not data:
                return
            (other if said is one else one).sendall(data)


def _encoded(value: Mapping[str, object]) -> str:
    return base64.urlsafe_b64encode(json.dumps(value).encode()).rstrip(b"=").decode()
