"""Which process works on a flow run, written so that another program can tell whether it is still there.

A process is known by its machine, its id and when it started: ids are used again. A container that numbers its
processes itself is a machine of its own. Standard library only.
"""

from __future__ import annotations

import os
import socket
from pathlib import Path


def of_this_process() -> str:
    """Return the text that stands for this process: machine, process id and start, with slashes between."""
    return f"{_machine()}/{os.getpid()}/{_started(os.getpid())}"


def is_there(process: str) -> bool | None:
    """Whether the process that such a text stands for is alive; None where only another machine could tell."""
    machine, pid, started = process.rsplit("/", 2)
    if machine != _machine():
        return None
    return _started(int(pid)) == started


def _machine() -> str:
    # The name alone may be that of a container which was made anew after the machine had started again, and that of
    # its host, whose network it shares: then it has neither the host's processes nor their ids.
    boot, among = Path("/proc/sys/kernel/random/boot_id"), Path("/proc/self/ns/pid")
    if not boot.exists():
        return socket.gethostname()
    numbered = os.readlink(among).strip("pid:[]") if among.is_symlink() else ""
    return f"{socket.gethostname()}~{boot.read_text().strip()[:8]}~{numbered}"


def _started(pid: int) -> str:
    """When a process started, as the system counts; "" for one that is gone, "?" where the system doesn't tell."""
    if not Path("/proc/self/stat").exists():
        try:
            os.kill(pid, 0)
        except ProcessLookupError:
            return ""
        except PermissionError:
            return "?"
        return "?"
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except (FileNotFoundError, ProcessLookupError):
        return ""
    return "" if fields[0] in "ZX" else fields[19]  # proc_pid_stat(5): state, starttime
