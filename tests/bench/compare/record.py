"""The measurements so far, a line of JSON each, so that a long run can be taken up where it was cut off."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections import defaultdict
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from tests import servers
from tests.bench.compare.scenarios import Cell, cells, way

Figures = Mapping[str, Any]


@dataclass(frozen=True)
class Record:
    """A file of measurements.

    Args:
        path: The file.
        bridge: What tells this state of the package from others: figures of ours count for it alone. What ZenML's
            own orchestrators took has nothing to do with it.
        processor: The processor's name: nothing counts that another one took, since a ratio of the two says nothing.
    """

    path: Path
    bridge: str
    processor: str

    def begin_with(self, published: Path) -> None:
        """Where nothing is measured yet, go on from what was published: a fresh clone has it."""
        if not self.path.exists() and published.exists():
            self.path.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(published, self.path)

    def add(self, cell: Cell, figures: Figures, machine: Figures) -> None:
        """Append one measurement."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        line = {"cell": asdict(cell), "bridge": self.bridge, "figures": dict(figures), "machine": dict(machine)}
        with self.path.open("a") as file:
            file.write(json.dumps(line) + "\n")

    def read(self) -> dict[Cell, list[dict[str, Any]]]:
        """The measurements of each cell that count, oldest first; each with its ``figures`` and its ``machine``."""
        return self._read(self._counts)

    def _counts(self, cell: Cell, line: Figures) -> bool:
        is_here = line["machine"]["cpu"] == self.processor
        return is_here and (not way(cell.way).ours or line["bridge"] == self.bridge)

    def read_all(self) -> dict[Cell, list[dict[str, Any]]]:
        """Those that count and those that don't: enough to know how long one will take."""
        return self._read(lambda cell, line: True)

    def _read(self, wanted: Callable[[Cell, Figures], bool]) -> dict[Cell, list[dict[str, Any]]]:
        found: dict[Cell, list[dict[str, Any]]] = defaultdict(list)
        if self.path.exists():
            for line in map(json.loads, self.path.read_text().splitlines()):
                cell = Cell(**line["cell"])
                if wanted(cell, line):
                    found[cell].append(line)
        return dict(found)

    def publish(self, path: Path) -> None:
        """Write what counts, row by row as the table has it: what each run took."""
        measured = self.read()
        lines = [json.dumps(line) for cell in sorted(measured, key=cells().index) for line in measured[cell]]
        path.write_text("".join(f"{line}\n" for line in lines))

    def forget(self) -> None:
        """Begin anew."""
        self.path.unlink(missing_ok=True)


def state_of_bridge() -> str:
    """A hash of the package as it lies here, changes that aren't committed included."""
    state = hashlib.sha256()
    for path in sorted((servers.ROOT / "bridge").rglob("*.py")):
        state.update(path.relative_to(servers.ROOT).as_posix().encode() + path.read_bytes())
    return state.hexdigest()[:16]
