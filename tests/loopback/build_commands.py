"""The commands of an image's build, run as processes of this machine in a folder that stands for the image's root.

There is no chroot: a relative path means the image's working folder, an absolute one would mean this machine's.
Packages go into a virtual environment of the image's own, which sees those of the image below. What would change the
machine itself (apt-get, chown) is a stand-in that writes down how it was called.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

ROOT = Path(__file__).parents[2]
VENV = "opt/loopback-venv"
CALLS = "var/log/stand-ins"
"""In an image's root: the calls of stand-ins, a line each."""
SECONDS = 120
_STAND_INS = ("apt-get", "chown")
_PASSED_ON = ("PIP_", "SSL_", "REQUESTS_", "UV_", "HTTP_PROXY", "HTTPS_PROXY", "NO_PROXY", "https_proxy", "no_proxy")
"""How this machine reaches its package registries; what an image or a build sets comes on top."""


def joined(lines: Iterable[str]) -> Iterator[str]:
    """The instructions of a Dockerfile, without comments, those of several lines as one."""
    whole = ""
    for line in lines:
        text = line.strip()
        if not whole and (not text or text.startswith("#")):
            continue
        whole += text.removesuffix("\\")
        if not text.endswith("\\"):
            yield whole
            whole = ""
    if whole:
        yield whole


class Commands:
    """Runs them for all images of one server; ``folder`` is for the stand-ins."""

    def __init__(self, folder: Path) -> None:
        self._bin = folder
        folder.mkdir(parents=True)
        for name in _STAND_INS:
            script = folder / name
            script.write_text(f'#!/bin/sh\necho "{name} $*" | tee -a "$LOOPBACK_ROOT/{CALLS}"\n')
            script.chmod(0o755)
        places = (Path(sys.executable).parent, ROOT / ".venv" / "bin", os.environ.get("PATH", ""))
        uv = shutil.which("uv", path=os.pathsep.join(map(str, places)))
        if uv is not None:
            (folder / "uv").symlink_to(uv)

    def python(self, root: Path, below: Path) -> Path:
        """The interpreter of an image's own environment, made on top of ``below``'s where there is none yet."""
        venv = root / VENV
        own = venv / "bin" / "python"
        if not own.exists():
            subprocess.run([str(below), "-m", "venv", "--without-pip", str(venv)], check=True, timeout=SECONDS)
            where = "import sysconfig; print(sysconfig.get_path('purelib'))"
            seen, site = (
                subprocess.run([str(python), "-c", where], check=True, capture_output=True, text=True).stdout.strip()
                for python in (below, own)
            )
            (Path(site) / "loopback_parent.pth").write_text(f"{seen}\n")
        return own

    def run(
        self, command: str, root: Path, workdir: str, python: Path, variables: Mapping[str, str]
    ) -> subprocess.CompletedProcess[str]:
        """Run a command of a ``RUN``; its output is stdout and stderr together."""
        folder = root / workdir.lstrip("/")
        for path in (folder, (root / CALLS).parent, root / "root"):
            path.mkdir(parents=True, exist_ok=True)
        environment = {
            **{name: value for name, value in os.environ.items() if name.startswith(_PASSED_ON)},
            "PATH": f"{self._bin}:{python.parent}:/usr/bin:/bin",
            "HOME": str(root / "root"),
            "UV_CACHE_DIR": os.environ.get("UV_CACHE_DIR", str(Path.home() / ".cache" / "uv")),
            "LOOPBACK_ROOT": str(root),
            **variables,
        }
        return subprocess.run(
            ["sh", "-c", command],
            cwd=folder,
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            check=False,
            timeout=SECONDS,
        )
