"""Writes down what each Python process writes to: in PYTHONPATH it is imported when one starts, and by its children.

Of the file system alone this can't be told: in the machine's temporary folder other tests write too.
"""

from __future__ import annotations

import json
import os
import sys

LOG = os.environ["WRITES_LOG"]
SANDBOX = os.environ.get("MODAL_SANDBOX_ID", "")
PLACES = {"os.mkdir": 0, "os.rename": 1, "os.link": 1, "os.symlink": 1, "sqlite3.connect": 0}
"""Which argument of an event is what is written to."""
WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND
seen: set[str] = set()


def look(event: str, arguments: tuple[object, ...]) -> None:
    if event == "open":
        path, _, flags = arguments
        if not isinstance(flags, int) or not flags & WRITING:
            return
    elif event == "socket.bind":
        path = arguments[1]  # a path, where it is a Unix socket
    elif event in PLACES:
        path = arguments[PLACES[event]]
    else:
        return
    if not isinstance(path, (str, bytes, os.PathLike)):
        return
    name = os.path.abspath(os.fsdecode(path))
    if name == LOG or name in seen:
        return
    seen.add(name)
    # Opened for each line: whoever makes a daemon of itself closes all files that it finds open.
    with open(LOG, "a") as log:
        log.write(json.dumps({"pid": os.getpid(), "sandbox": SANDBOX, "path": name}) + "\n")


sys.addaudithook(look)
