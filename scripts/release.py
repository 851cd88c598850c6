"""Builds sdist and wheel twice, from two folders, and keeps them in `dist/` if they are the same byte for byte.

What is built is what the present commit has: files that aren't committed don't get in. `python -m scripts.release`.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
import tarfile
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
UV = Path(sys.executable).parent / "uv"


def build(commit: str, into: Path) -> dict[str, str]:
    """Build that commit; return the SHA-256 of each file. The clock is the commit's own time."""
    with tempfile.TemporaryDirectory() as folder:
        archive = Path(folder) / "source.tar"
        subprocess.run(["git", "archive", "--output", archive, commit], cwd=ROOT, check=True)
        source = Path(folder) / "source"
        with tarfile.open(archive) as tar:
            tar.extractall(source, filter="data")
        clock = subprocess.run(
            ["git", "show", "--no-patch", "--format=%ct", commit], cwd=ROOT, check=True, capture_output=True, text=True
        ).stdout.strip()
        environment = {**os.environ, "SOURCE_DATE_EPOCH": clock}
        command = [UV, "build", "--quiet", "--out-dir", into, source]
        subprocess.run(command, check=True, env=environment)
    return {file.name: hashlib.sha256(file.read_bytes()).hexdigest() for file in sorted(into.glob("*.*"))}


def main(commit: str = "HEAD", dist: Path = ROOT / "dist") -> int:
    """Build twice and compare."""
    with tempfile.TemporaryDirectory() as first, tempfile.TemporaryDirectory() as second:
        once, again = build(commit, Path(first)), build(commit, Path(second))
        if once != again:
            print(f"Two builds of {commit} differ: {once} and {again}", file=sys.stderr)
            return 1
        dist.mkdir(exist_ok=True)
        for name, digest in once.items():
            shutil.copy(Path(first) / name, dist / name)
            print(f"{digest}  {dist.name}/{name}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
