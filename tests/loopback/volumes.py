"""Volumes as sandboxes see them: as they were when the sandbox started, and written back when it has ended.

modal.com/docs/guide/sandbox-files, "Using Volumes": files are synced back to a volume when the sandbox terminates.
"""

from __future__ import annotations

import shutil
from pathlib import Path


class MountedVolume:
    """A volume in one sandbox: a copy of its own. ``committed`` is what the others get."""

    def __init__(self, committed: Path, place: Path) -> None:
        self.place = place
        self._committed = committed
        self._before: dict[Path, tuple[int, int]] = {}

    def mount(self) -> None:
        """Copy what is committed by now."""
        shutil.copytree(self._committed, self.place)
        self._before = self._stamps()

    def commit(self) -> None:
        """Write back what was changed in the sandbox; the last one to do so wins, as on Modal."""
        for path, stamp in self._stamps().items():
            if self._before.get(path) != stamp:
                target = self._committed / path
                target.parent.mkdir(parents=True, exist_ok=True)
                shutil.copy2(self.place / path, target)

    def _stamps(self) -> dict[Path, tuple[int, int]]:
        files = [path for path in self.place.rglob("*") if path.is_file()]
        return {path.relative_to(self.place): (path.stat().st_mtime_ns, path.stat().st_size) for path in files}
