"""What of the SDK's errors says that Modal couldn't be reached, and what is of this machine."""

from __future__ import annotations

import socket
import ssl
from pathlib import Path

import pytest

from bridge.errors import RunnerUnavailable, SandboxRefused
from bridge.runners.modal_errors import is_away, is_transient, translated


@pytest.mark.parametrize(
    "error",
    [
        ConnectionRefusedError(111, "Connect call failed"),
        PermissionError(1, "Operation not permitted"),  # a firewall of this machine
        OSError("Multiple exceptions"),
        socket.gaierror(-2, "Name or service not known"),
        ssl.SSLError("handshake"),
        TimeoutError(),
    ],
)
def test_a_connection_that_fails_is_an_outage(error: OSError) -> None:
    assert is_away(error)
    assert is_transient(error)
    assert isinstance(translated(error, "Modal"), RunnerUnavailable)


@pytest.mark.parametrize("path", ["nothing", "", "file/below"])
def test_a_file_of_this_machine_is_none(tmp_path: Path, path: str) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(OSError) as caught:
        (tmp_path / path).read_bytes()
    assert not is_away(caught.value)
    assert not is_transient(caught.value)
    told = translated(caught.value, "Modal can't build the Dockerfile")
    assert isinstance(told, SandboxRefused)
    assert str(tmp_path / path) in str(told)
    assert "Let this user read it" in str(told)
