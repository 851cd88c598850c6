"""The environment of a local sandbox: this process's, without what must not reach a step."""

from __future__ import annotations

import os
import re
import sysconfig
from collections.abc import Mapping
from pathlib import Path

from bridge import names

_CREDENTIAL = re.compile(
    r"MODAL_TOKEN_.*|PREFECT__.*|PREFECT_.*(API_KEY|AUTH_STRING|PASSWORD|SECRET|TOKEN|CONNECTION_URL).*"
)
"""Credentials of Modal and Prefect, and Prefect's context of the flow run that this process is in."""

_OWN = frozenset({names.ENV_ORCHESTRATES})
"""What a program says of itself alone: one that it starts, as a step operator does, is another one."""

_NEEDED = re.compile(r"PATH|HOME|USER|LOGNAME|SHELL|LANG|LC_.*|TZ|TMPDIR|TERM|SSL_CERT_.*|LD_LIBRARY_PATH|DYLD_.*")


def inherited(source: Mapping[str, str], *, everything: bool) -> dict[str, str]:
    """Return what a sandbox inherits of ``source``: everything but credentials, or only what programs need.

    Relative entries of PYTHONPATH become absolute: a sandbox works in a folder of its own.
    """
    kept = {
        name: value
        for name, value in source.items()
        if name not in _OWN and not _CREDENTIAL.fullmatch(name) and (everything or _NEEDED.fullmatch(name))
    }
    if kept.get("PYTHONPATH"):
        kept["PYTHONPATH"] = os.pathsep.join(map(os.path.abspath, kept["PYTHONPATH"].split(os.pathsep)))
    return kept


def with_package(variables: Mapping[str, str], parent: Path) -> dict[str, str]:
    """Return ``variables`` with ``parent`` last in PYTHONPATH, unless packages are installed there anyway."""
    if str(parent) in (sysconfig.get_path("purelib"), sysconfig.get_path("platlib")):
        return dict(variables)
    before = variables.get("PYTHONPATH", "")
    return {**variables, "PYTHONPATH": os.pathsep.join(filter(None, (before, str(parent))))}
