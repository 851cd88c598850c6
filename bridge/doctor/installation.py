"""This machine and its packages."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet

import bridge
from bridge import names
from bridge.doctor.finding import Finding, Grade

_IMPORT_SECONDS = 60


def system(where: str = sys.platform, python: str | None = None) -> Iterator[Finding]:
    """The operating system and Python."""
    check, python = "system", python or platform.python_version()
    wanted = importlib.metadata.metadata(names.DISTRIBUTION)["Requires-Python"]
    if where.startswith("win"):
        fix = "Use Linux or macOS, or the Linux of WSL (`wsl --install`)"
        yield Finding(check, Grade.PROBLEM, f"{names.DISTRIBUTION} doesn't run on Windows", fix)
    elif not SpecifierSet(wanted).contains(python, prereleases=True):
        fix = f"Make an environment with a Python {wanted}, and install {names.DISTRIBUTION} there"
        yield Finding(check, Grade.PROBLEM, f"Python {python} isn't supported, {wanted} is", fix)
    else:
        yield Finding(check, Grade.OK, f"Python {python} on {platform.system()}")


def versions() -> Iterator[Finding]:
    """Whether what this package needs is there, in versions that it knows."""
    distribution = importlib.metadata.distribution(names.DISTRIBUTION)
    bad = unfit(distribution.requires or [])
    yield from bad
    if not bad:
        shown = ", ".join(f"{name} {importlib.metadata.version(name)}" for name in ("zenml", "prefect", "modal"))
        yield Finding("versions", Grade.OK, f"{names.DISTRIBUTION} {distribution.version} with {shown}")


def unfit(requirements: Sequence[str], check: str = "versions") -> list[Finding]:
    """The findings about requirements that aren't met here; those of extras don't count."""
    found = []
    for text in requirements:
        requirement = Requirement(text)
        if requirement.marker is not None and not requirement.marker.evaluate({"extra": ""}):
            continue
        fix = f"pip install '{requirement.name}{requirement.specifier}'"
        try:
            there = importlib.metadata.version(requirement.name)
        except importlib.metadata.PackageNotFoundError:
            found.append(Finding(check, Grade.PROBLEM, f"{requirement.name} isn't installed", fix))
            continue
        if not requirement.specifier.contains(there, prereleases=True):
            what = f"{requirement.name} {there} is installed, and {requirement.specifier} is needed"
            found.append(Finding(check, Grade.PROBLEM, what, fix))
    return found


def import_name(folder: Path | None = None) -> Iterator[Finding]:
    """Whether ``import bridge`` means this package, for a program that is started in ``folder`` (here)."""
    check, own = "import name", Path(bridge.__file__).parent
    owners = set(importlib.metadata.packages_distributions().get("bridge", [])) - {names.DISTRIBUTION}
    for owner in sorted(owners):
        yield Finding(
            check,
            Grade.PROBLEM,
            f"the distribution {owner} has installed a package `bridge` too, over or under this one",
            f"pip uninstall {owner} && pip install --force-reinstall --no-deps {names.DISTRIBUTION}; keep the two in "
            "environments of their own",
        )
    found = _meant_by_import(folder or Path.cwd())
    if found is None:
        what = f"a program started in {folder or Path.cwd()} can't import `bridge`"
        yield Finding(
            check, Grade.PROBLEM, what, f"Install {names.DISTRIBUTION} in the environment of {sys.executable}"
        )
    elif found != own:
        yield Finding(
            check,
            Grade.PROBLEM,
            f"for a program started in {folder or Path.cwd()}, `import bridge` means {found}, not {own}",
            f"Rename {found}, or start programs from another folder; if it is on PYTHONPATH, take it off",
        )
    elif not owners:
        yield Finding(check, Grade.OK, f"`bridge` is {own}")


def _meant_by_import(folder: Path) -> Path | None:
    """The folder that a fresh interpreter in ``folder`` imports as `bridge`, as a user's script there would."""
    script = (
        "import importlib.util, sys; spec = importlib.util.find_spec('bridge'); "
        "print((spec.origin or [*spec.submodule_search_locations][0]) if spec else '')"
    )
    ran = subprocess.run(
        [sys.executable, "-c", script],
        cwd=folder,
        env=dict(os.environ),
        capture_output=True,
        text=True,
        check=False,
        timeout=_IMPORT_SECONDS,
    )
    lines = ran.stdout.strip().splitlines()
    if ran.returncode != 0 or not lines:
        return None
    path = (folder / lines[-1]).resolve()
    return path.parent if path.name == "__init__.py" else path
