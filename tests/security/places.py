"""Where a secret could be found afterwards: each place yields pieces of what is there, and says where."""

from __future__ import annotations

import sqlite3
import threading
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from google.protobuf.message import Message

Piece = tuple[str, bytes]
"""Where, and what stands there."""

SECRET_FIELDS = ("env_dict", "ephemeral_secrets", "secret_sources")
"""The fields of Modal's requests whose contents become Modal secrets (modal_proto/api.proto)."""


def files(*roots: Path, leave_out: Iterable[str] = ()) -> Iterator[Piece]:
    """Every file below; symbolic links aren't followed. ``leave_out`` are names of files."""
    for root in roots:
        for path in sorted(root.rglob("*")):
            if path.is_file() and not path.is_symlink() and path.name not in set(leave_out):
                yield str(path), path.read_bytes()


def database(path: Path) -> Iterator[Piece]:
    """Every cell, by table; and the files as they are, where deleted rows may still be."""
    with sqlite3.connect(f"file:{path}?mode=ro", uri=True) as connection:
        tables = [name for (name,) in connection.execute("select name from sqlite_master where type = 'table'")]
        for table in tables:
            for row in connection.execute(f'select * from "{table}"'):
                for cell in row:
                    if isinstance(cell, (str, bytes)):
                        yield table, cell if isinstance(cell, bytes) else cell.encode("utf-8", "surrogatepass")
    for file in path.parent.glob(f"{path.name}*"):
        yield f"file {file.name}", file.read_bytes()


def requests(tape: Iterable[tuple[str, Message]]) -> Iterator[Piece]:
    """What a client sent to Modal, without what it sent as a Modal secret."""
    for name, request in tape:
        yield name, scrubbed(request).SerializeToString()


def scrubbed(request: Message) -> Message:
    """Return a copy without the contents of Modal secrets."""
    copy: Any = type(request)()
    copy.CopyFrom(request)
    for field in SECRET_FIELDS:
        if field in copy.DESCRIPTOR.fields_by_name:
            copy.ClearField(field)
    return copy


class CommandLines:
    """Looks at the command lines of all processes of this machine for as long as it is entered.

    Of those that are sandboxes it keeps what was in their environments, too.
    """

    def __init__(self) -> None:
        self.seen: set[bytes] = set()
        self._given: set[bytes] = set()
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._look, daemon=True)

    def __enter__(self) -> CommandLines:
        self._thread.start()
        return self

    def __exit__(self, *exc_info: object) -> None:
        self._over.set()
        self._thread.join()

    def _look(self) -> None:
        while not self._over.wait(0.04):
            for path in Path("/proc").glob("[0-9]*/cmdline"):
                try:
                    line = path.read_bytes()
                    self.seen.add(line)
                    if b"\0bridge.host\0" in line:
                        self._given.add(path.with_name("environ").read_bytes())
                except OSError:
                    continue  # gone meanwhile

    def pieces(self) -> Iterator[Piece]:
        """What was seen."""
        return (("argv", line) for line in self.seen)

    def environments(self) -> Iterator[dict[str, str]]:
        """Those of the local sandboxes that were seen, whosever they are."""
        for given in self._given:
            yield dict(pair.split("=", 1) for pair in given.decode("utf-8", "replace").split("\0") if "=" in pair)


def found_in(pieces: Iterable[Piece], needles: Mapping[bytes, str]) -> set[tuple[str, str]]:
    """Return (name of the value, where) for everything that was found."""
    return {(name, where) for where, data in pieces for needle, name in needles.items() if needle in data}
