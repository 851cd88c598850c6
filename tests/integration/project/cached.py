"""Steps that share a Modal volume."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from shapes import trace
from zenml import pipeline, step


def mounted(path: str) -> Path:
    """Where a mount path is: a loopback's sandbox has no root of its own to mount into."""
    places = dict(pair.split("=") for pair in os.environ["MODAL_LOOPBACK_VOLUMES"].split(":"))
    return Path(places[path])


@step(enable_cache=False)
def download(folder: str, name: str) -> str:
    """Puts a model into the cache."""
    trace(folder, "begin", seen=sorted(path.name for path in mounted("/cache").iterdir()))
    (mounted("/cache") / name).write_text(f"weights of {name}")
    return name


@step(enable_cache=False)
def read(folder: str, left: str, right: str) -> list[str]:
    """Reads what the others put there."""
    trace(folder, "begin")
    return [(mounted("/cache") / name).read_text() for name in (left, right)]


@pipeline
def cached(folder: str) -> None:
    """Two at the same time put something into the volume, a third reads both."""
    read(folder, download(folder, "left", id="left"), download(folder, "right", id="right"))


@step(enable_cache=False)
def look(folder: str, name: str, hold: bool = False) -> list[str]:
    """Reads what is in the cache; with ``hold`` it leaves something behind that has a file there open."""
    trace(folder, "begin")
    if hold:
        code = "import sys, time; file = open(sys.argv[1]); print('open', flush=True); time.sleep(600)"
        argv = [sys.executable, "-c", code, str(mounted("/cache") / name)]
        left = subprocess.Popen(argv, stdout=subprocess.PIPE, start_new_session=True)
        assert left.stdout is not None
        assert left.stdout.readline() == b"open\n"
    return sorted(path.read_text() for path in mounted("/cache").iterdir())


@pipeline
def read_again(folder: str, hold: bool = False) -> None:
    """Two look into the volume, the second after somebody has added to it."""
    look(folder, download(folder, "one", id="one"), hold)
    look(folder, download(folder, "two", id="two", after="look"), id="look_again")
