"""Bugs planted into a copy of the package: the driver has to find each of them, or it finds nothing.

Each patch begins with the sentences of the model that tell its bug, as a regular expression. A case in which the model
says one of them counts only if the package as it is passes the same case.

``python -m tests.chaos.planted_bugs [NAME …]``; `make chaos-planted` calls it.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

from tests import servers

PATCHES = Path(__file__).parent / "planted"
NAMES = tuple(sorted(path.stem for path in PATCHES.glob("*.patch")))
WITHIN = 50
"""Cases within which each has to be found."""
_SAYS = "The model says: "

Run = Callable[[int, int, bool], str]
"""Runs cases from a seed on, so many at most, with the bug or without, up to the first that shows something wrong.

Returns what was printed."""


def plant(name: str, folder: Path) -> None:
    """Make a copy of the package in ``folder`` and apply a patch to it. Raises ``CalledProcessError``."""
    shutil.copytree(servers.ROOT / "bridge", folder / "bridge", ignore=shutil.ignore_patterns("__pycache__"))
    command = ["git", "apply", "-C1", str(PATCHES / f"{name}.patch")]
    subprocess.run(command, cwd=folder, check=True, capture_output=True, text=True)


def sentences(name: str) -> re.Pattern[str]:
    """What the model says where the bug strikes."""
    first = (PATCHES / f"{name}.patch").read_text().splitlines()[0]
    assert first.startswith(_SAYS), first
    return re.compile(first[len(_SAYS) :])


def look_for(name: str, *, seed: int = 1, count: int = WITHIN, say: Callable[[str], object] = print) -> int | None:
    """Return the seed of the first case that shows a planted bug, None if none does; ``say`` hears what was printed."""
    with tempfile.TemporaryDirectory(prefix=f"planted-{name}-") as folder:
        plant(name, Path(folder))

        def run(seed: int, count: int, planted: bool) -> str:
            return _run(folder if planted else str(servers.ROOT), seed, count)

        return first_hit(sentences(name), run, seed, count, say)


def first_hit(expected: re.Pattern[str], run: Run, seed: int, count: int, say: Callable[[str], object]) -> int | None:
    """Return the seed of the first case of which the model says what is expected, and nothing without the bug."""
    end = seed + count
    while seed < end:
        printed = run(seed, end - seed, True)
        say(printed)
        wrong = _wrong(printed)
        if not wrong:
            return None
        hit = int(re.findall(r"^seed (\d+):", printed, re.MULTILINE)[-1])
        if any(expected.search(sentence) for sentence in wrong):
            without = run(hit, 1, False)
            say(without)
            if not _wrong(without):
                return hit
        seed = hit + 1
    return None


def _wrong(printed: str) -> list[str]:
    return re.findall(r"^ *WRONG (.*)$", printed, re.MULTILINE)


def _run(folder: str, seed: int, count: int) -> str:
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
    # Else it broke, which finds nothing and passes nothing.
    assert f"seed {seed}:" in done.stdout, done.stdout[-3000:]
    assert done.returncode == 0 or _wrong(done.stdout) or "never struck" in done.stdout, done.stdout[-3000:]
    return done.stdout


def main(names: list[str]) -> int:
    """Look for each; return 1 if one wasn't found."""
    missed = []
    for name in names or NAMES:
        printed: list[str] = []
        hit = look_for(name, say=printed.append)
        what = [sentence for text in printed for sentence in _wrong(text) if sentences(name).search(sentence)]
        shown = f"found in case {hit}; {what[-1:]}" if hit is not None else f"NOT FOUND; {what}"
        print(f"{name}: {shown}", flush=True)
        if hit is None:
            missed.append(name)
    return 1 if missed else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
