"""The end of an attempt as the body of a frame (:mod:`bridge.host.wire`). Standard library only."""

from __future__ import annotations

import json

from bridge.outcome import End, SandboxEnd


def encode(end: SandboxEnd) -> bytes:
    """Return an end as bytes."""
    return json.dumps({"end": end.end.value, "exit_code": end.exit_code, "detail": end.detail}).encode()


def decode(body: bytes) -> SandboxEnd:
    """Read what :func:`encode` wrote."""
    read = json.loads(body)
    return SandboxEnd(End(read["end"]), read["exit_code"], read["detail"])
