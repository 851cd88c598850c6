"""Steps that share a Modal volume."""

from __future__ import annotations

import os
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
