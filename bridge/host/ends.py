"""The end of an attempt as the body of a frame (:mod:`bridge.host.wire`). Standard library only."""

from __future__ import annotations

import json

from bridge.flow_run.outcome import End, SandboxEnd
from bridge.host.passed_on import as_json, record_of


def encode(end: SandboxEnd) -> bytes:
    """Return an end as bytes."""
    record = {"record": as_json(end.record)} if end.record is not None else {}
    return json.dumps({"end": end.end.value, "exit_code": end.exit_code, "detail": end.detail, **record}).encode()


def decode(body: bytes) -> SandboxEnd:
    """Read what :func:`encode` wrote."""
    read = json.loads(body)
    record = record_of(read["record"]) if "record" in read else None
    return SandboxEnd(End(read["end"]), read["exit_code"], read["detail"], record)
