"""Bugs planted into a copy of the package: the driver has to find each of them, or it finds nothing.

``python -m tests.chaos.planted_bugs [NAME …]``; `make chaos-planted` calls it.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from tests import servers

PATCHES = Path(__file__).parent / "planted"
NAMES = tuple(sorted(path.stem for path in PATCHES.glob("*.patch")))
WITHIN = 50
"""Cases within which each has to be found."""


def plant(name: str, folder: Path) -> None:
    """Make a copy of the package in ``folder`` and apply a patch to it. Raises ``CalledProcessError``."""
    shutil.copytree(servers.ROOT / "bridge", folder / "bridge", ignore=shutil.ignore_patterns("__pycache__"))
    command = ["git", "apply", "-C1", str(PATCHES / f"{name}.patch")]
    subprocess.run(command, cwd=folder, check=True, capture_output=True, text=True)


def look_for(name: str, *, seed: int = 1, count: int = WITHIN) -> tuple[bool, str]:
    """Run cases with a planted bug until one shows something wrong; return whether one did, and what was printed."""
    with tempfile.TemporaryDirectory(prefix=f"planted-{name}-") as folder:
        plant(name, Path(folder))
        # The working directory comes first on the path of `-m`, so the copy is what is imported.
        done = subprocess.run(
            [sys.executable, "-m", "tests.chaos", "--stop", "--seed", str(seed), "--count", str(count)],
            cwd=folder,
            env={**os.environ, "PYTHONPATH": str(servers.ROOT)},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
    assert f"bridge: {folder}/bridge" in done.stdout, done.stdout[-3000:]
    return done.returncode == 1 and "WRONG" in done.stdout, done.stdout


def main(names: list[str]) -> int:
    """Look for each; return 1 if one wasn't found."""
    missed = []
    for name in names or NAMES:
        found, printed = look_for(name)
        cases = printed.count("\nseed ")
        what = [line.strip() for line in printed.splitlines() if "WRONG" in line]
        print(f"{name}: {'found' if found else 'NOT FOUND'} in case {cases}; {what[:1]}", flush=True)
        if not found:
            missed.append(name)
    return 1 if missed else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
