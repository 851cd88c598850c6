"""Volumes as sandboxes see them: as they were when the sandbox started, and written back when it has ended.

modal.com/docs/guide/sandbox-files, "Using Volumes": files are synced back to a volume when the sandbox terminates.
modal.com/docs/guide/volumes, "Volume commits and reloads": a mounted volume doesn't show what others wrote until it is
reloaded, which fails while a file on it is open.
"""

from __future__ import annotations

import shutil
from pathlib import Path


class MountedVolume:
    """A volume in one sandbox: a copy of its own. ``committed`` is what the others get."""

    def __init__(self, committed: Path, place: Path, read_only: bool = False) -> None:
        self.place = place
        self.read_only = read_only
        self._committed = committed
        self._before: dict[Path, tuple[int, int]] = {}

    def mount(self) -> None:
        """Copy what is committed by now."""
        shutil.copytree(self._committed, self.place)
        self._before = self._stamps()

    def reload(self) -> None:
        """Show what is committed by now, and what was changed in the sandbox itself."""
        kept = {path: (self.place / path).read_bytes() for path in self._changed()}
        shutil.rmtree(self.place)
        self.mount()
        for path, content in kept.items():
            (self.place / path).parent.mkdir(parents=True, exist_ok=True)
            (self.place / path).write_bytes(content)

    def commit(self) -> None:
        """Write back what was changed in the sandbox; the last one to do so wins, as on Modal."""
        if self.read_only:
            return
        for path in self._changed():
            target = self._committed / path
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(self.place / path, target)

    def _changed(self) -> list[Path]:
        return [path for path, stamp in self._stamps().items() if self._before.get(path) != stamp]

    def _stamps(self) -> dict[Path, tuple[int, int]]:
        files = [path for path in self.place.rglob("*") if path.is_file()]
        return {path.relative_to(self.place): (path.stat().st_mtime_ns, path.stat().st_size) for path in files}
