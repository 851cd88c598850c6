"""Where the folders of local sandboxes are, and who still needs them.

A folder is needed while its sandbox runs, and while any program holds a sandbox object of it: that keeps a
shared lock on its request file. Whoever lets go last removes it. What a killed program left behind is kept for
:data:`KEEP_SECONDS` after its end, since that program may come back and ask what became of it.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TextIO

from bridge.errors import SandboxRefused
from bridge.runners.local_folder import LocalFolder, StoredRequest

KEEP_SECONDS = 86400.0


@dataclass(frozen=True)
class LocalState:
    """A state directory. Its methods are a few file operations each: they may be called from an event loop."""

    root: Path

    def open(self) -> None:
        """Make it, and remove what nobody needs. Raises ``SandboxRefused`` if it is somebody else's."""
        for folder in (self.root, self._sandboxes, self._names):
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        if self.root.lstat().st_uid != os.getuid():  # nor a link that somebody else laid
            raise SandboxRefused(f"{self.root} belongs to another user. Use another state_dir, or set TMPDIR.")
        self.tidy()

    def tidy(self) -> None:
        """Remove the folders that nobody needs, and their names."""
        for folder in self.folders():
            if time.time() - folder.changed() > KEEP_SECONDS:
                self._remove_unless_needed(folder)
        with self.locked():
            self._remove_leftovers()

    def folders(self) -> Iterator[LocalFolder]:
        """Yield all folders, of running sandboxes and others."""
        for path in sorted(self._sandboxes.iterdir()):
            yield LocalFolder(path)

    def create(self, request: StoredRequest) -> tuple[LocalFolder, int, int]:
        """Make a folder and give it the request's name; see :meth:`LocalFolder.create`. Call it :meth:`locked`."""
        made = LocalFolder.create(self._sandboxes, request)
        link = self._link(request)
        partial = link.with_suffix(".partial")
        partial.write_text(made[0].id)
        partial.replace(link)
        return made

    def named(self, app: str, name: str) -> LocalFolder | None:
        """Return the folder of the running sandbox of that name, or None. Call it :meth:`locked`."""
        try:
            folder = LocalFolder(self._sandboxes / self.link_of(app, name).read_text())
        except FileNotFoundError:
            return None
        return folder if folder.is_alive() else None

    def hold(self, folder: LocalFolder) -> Callable[[], None] | None:
        """Keep a folder from being removed; call what is returned to let go. None if it is gone already."""
        import fcntl  # not on Windows

        try:
            held = os.open(folder.path / "request.json", os.O_RDONLY | os.O_CLOEXEC)
        except (FileNotFoundError, NotADirectoryError):
            return None
        fcntl.flock(held, fcntl.LOCK_SH)

        def let_go() -> None:
            os.close(held)
            self._remove_unless_needed(folder)

        return let_go

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Exclude other processes. Never to be held across an await."""
        import fcntl  # not on Windows

        lock: TextIO
        with (self.root / "lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            yield

    def _remove_unless_needed(self, folder: LocalFolder) -> None:
        # Runs in finalizers, so perhaps in the middle of anything that this thread does: it never waits for a lock.
        import fcntl  # not on Windows

        try:
            stored = (folder.path / "request.json").open()
        except (FileNotFoundError, NotADirectoryError):
            return  # half made, or half removed
        with stored:
            if folder.is_alive():
                return
            try:
                fcntl.flock(stored, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                return  # somebody holds it
            # Not worth an error: the next one to come tries again.
            shutil.rmtree(folder.path, ignore_errors=True)

    def _remove_leftovers(self) -> None:
        # Under the lock nobody is making a folder: one without a request is of somebody who died at it.
        for folder in self.folders():
            if not (folder.path / "request.json").exists():
                shutil.rmtree(folder.path, ignore_errors=True)
        for link in self._names.iterdir():
            if not (self._sandboxes / link.read_text()).exists():
                link.unlink()

    @property
    def _sandboxes(self) -> Path:
        return self.root / "sandboxes"

    @property
    def _names(self) -> Path:
        return self.root / "names"

    def _link(self, request: StoredRequest) -> Path:
        return self.link_of(request.app, request.name)

    def link_of(self, app: str, name: str) -> Path:
        """Return the file that says which sandbox has this name."""
        return self._names / hashlib.sha256(f"{app}\0{name}".encode("utf-8", "surrogatepass")).hexdigest()
