"""How a command fails: with one line, not a traceback."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import click

from bridge.errors import BridgeError


@contextmanager
def told_plainly() -> Iterator[None]:
    """Turn what this package raises on purpose into the message of a command that failed (exit code 1)."""
    try:
        yield
    except BridgeError as error:
        raise click.ClickException(str(error)) from error
