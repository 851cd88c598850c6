"""Google, as far as a stack needs it, on this machine: tokens for the key of a service account, a store behind them."""

from __future__ import annotations

import base64
import json
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler
from urllib.parse import parse_qs

import httpx
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import padding, rsa

from tests.integration.forwarder import Forwarder

PROJECT_ID = "acme"
_TOKENS = "/token"
_AUDIENCE = "https://oauth2.googleapis.com/token"
"""Wherever the tokens come from (google/oauth2/service_account.py)."""
_WHO = "zenml@acme.iam.gserviceaccount.com"


@dataclass
class Google(Forwarder):
    """Gives out tokens of ``life`` seconds to whoever signs with the key; lets only their holders on to ``target``.

    ``given`` are the tokens so far, ``asked`` is what was asked of the store: method, path, token.
    """

    life: int = 3600
    given: list[str] = field(default_factory=list)
    asked: list[tuple[str, str, str]] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._key = rsa.generate_private_key(public_exponent=65537, key_size=2048)

    def key(self) -> str:
        """The JSON that Google gives to whoever makes a key of a service account."""
        pem, pkcs8 = serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8
        private = self._key.private_bytes(pem, pkcs8, serialization.NoEncryption())
        fields = dict.fromkeys(("auth_uri", "auth_provider_x509_cert_url", "client_x509_cert_url"), self.url)
        who = {"client_email": _WHO, "client_id": "1", "private_key_id": "1", "private_key": private.decode()}
        kind = {"type": "service_account", "project_id": PROJECT_ID, "token_uri": self.url + _TOKENS}
        return json.dumps({**fields, **who, **kind})

    def handle(self, request: BaseHTTPRequestHandler) -> None:
        if request.path == _TOKENS:
            body = request.rfile.read(int(request.headers["content-length"])).decode()
            self._answer(request, self._token(parse_qs(body)["assertion"][0]))
            return
        _, _, token = request.headers.get("authorization", "").partition("Bearer ")
        if token in self.given:
            self.asked.append((request.command, request.path, token))
            super().handle(request)
        else:
            self._answer(request, httpx.Response(401, json={"error": {"code": 401, "message": "Invalid Credentials"}}))

    def _token(self, assertion: str) -> httpx.Response:
        signed, _, signature = assertion.rpartition(".")
        claims = json.loads(_decoded(signed.partition(".")[2]))
        assert (claims["iss"], claims["aud"]) == (_WHO, _AUDIENCE)
        # Raises where another key has signed it.
        self._key.public_key().verify(_decoded(signature), signed.encode(), padding.PKCS1v15(), hashes.SHA256())
        self.given.append(f"ya29.{len(self.given)}")
        answer = {"access_token": self.given[-1], "expires_in": self.life, "token_type": "Bearer"}
        return httpx.Response(200, json=answer)


def _decoded(text: str) -> bytes:
    return base64.urlsafe_b64decode(text + "=" * (-len(text) % 4))
