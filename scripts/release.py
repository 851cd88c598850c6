"""Builds sdist and wheel twice, from two folders, and keeps them in `dist/` if they are the same byte for byte.

What is built is the tag `v<version>` of the version that `pyproject.toml` has; there is no release without that tag
and without the version's section in CHANGELOG.md. `python -m scripts.release`.
"""

from __future__ import annotations

import hashlib
import os
import re
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


def tag_of(root: Path = ROOT) -> str:
    """The tag of the version to be released. Raises ``LookupError`` where it or the changelog's section is missing."""
    found = re.search(r'^version = "([^"]+)"$', (root / "pyproject.toml").read_text(), re.MULTILINE)
    if found is None:
        raise LookupError("pyproject.toml names no version")
    tag = f"v{found[1]}"
    if not _git(root, "tag", "--list", tag):
        raise LookupError(
            f"There is no tag {tag}. `git tag {tag}` makes it, once the commit is the one to be released."
        )
    if f'version = "{found[1]}"' not in _git(root, "show", f"{tag}:pyproject.toml"):
        raise LookupError(f"The tag {tag} is on a commit whose pyproject.toml has another version. Move it.")
    if not re.search(rf"^## \[?{re.escape(found[1])}\b", _git(root, "show", f"{tag}:CHANGELOG.md"), re.MULTILINE):
        raise LookupError(
            f"CHANGELOG.md of {tag} has no section `## {found[1]}`. Name the unreleased one so, with its date."
        )
    return tag


def _git(root: Path, *arguments: str) -> str:
    return subprocess.run(["git", *arguments], cwd=root, check=True, capture_output=True, text=True).stdout.strip()


def release() -> int:
    """Build the tag of this version, or say why not."""
    try:
        return main(tag_of())
    except LookupError as error:
        print(error, file=sys.stderr)
        return 1


def main(commit: str, dist: Path = ROOT / "dist") -> int:
    """Build twice and compare."""
    commit = _git(ROOT, "rev-parse", f"{commit}^{{commit}}")  # what HEAD means may change between the two
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
    sys.exit(release())
