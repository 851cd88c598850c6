"""The process that forks, seen from the one that it comes from: that one alone goes on."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from bridge.host.zygote import SUPPORTED

SPLIT = """
import atexit, os, sys
from bridge.host import forking

print("before", flush=True)
atexit.register(print, "at its end")
sent = {sent!r}
try:
    link = forking.split(lambda attempt: os._exit(0))
    print("goes on", flush=True)
    link.commands.sendall(sent)
    link.commands.close()
    print("exit code", os.waitstatus_to_exitcode(os.waitpid(link.pid, 0)[1]))
finally:
    print("finally")
"""
A_COMMAND_THAT_IS_NONE = b"\0\0\0\4null"


@pytest.mark.skipif(not SUPPORTED, reason="nothing is forked here")
@pytest.mark.parametrize(("sent", "code"), [(b"", 0), (A_COMMAND_THAT_IS_NONE, 1), (b"\0\0\0\4", 0)])
def test_only_the_caller_goes_on_however_what_forks_ends(sent: bytes, code: int) -> None:
    """Else it would be a second host, and take away the socket of the first."""
    command = [sys.executable, "-c", SPLIT.format(sent=sent)]
    ran = subprocess.run(command, capture_output=True, text=True, cwd=Path(__file__).parents[2], timeout=60)
    assert ran.stdout.splitlines() == ["before", "goes on", f"exit code {code}", "finally", "at its end"], ran.stderr
    assert ran.returncode == 0
    assert ("Traceback" in ran.stderr) == (code == 1)
