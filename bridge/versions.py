"""Whether the program that submitted a run and the one that carries it out are of one kind."""

from __future__ import annotations

import re
from importlib.metadata import version

import zenml
from zenml.models import PipelineSnapshotResponse

from bridge import names
from bridge.errors import RunNotPossible

_OURS = re.compile(r"\d+\.\d+\.\d+([abrc.+-].*)?")
"""What our versions look like: a deployment of the user's own may say a commit or nothing."""


def check_zenml(snapshot: PipelineSnapshotResponse, here: str = zenml.__version__) -> None:
    """Raise ``RunNotPossible`` if another release series of ZenML made the snapshot: its data may mean other things."""
    there = snapshot.client_version
    if there is None or series(there) == series(here):
        return
    raise RunNotPossible(
        f"snapshot_id={snapshot.id}: ZenML {there} made this snapshot, and ZenML {here} is installed where the flow "
        f'runs. Install the same on both sides: `pip install "zenml=={there}"` on the worker, or run the pipeline '
        f"again with ZenML {here}."
    )


def series(release: str) -> str:
    """Return the release series of a version of ZenML: 0.98 of 0.98.1."""
    return ".".join(release.split(".")[:2])


def other_bridge(deployment_version: str | None, here: str | None = None) -> str | None:
    """Return a warning if another release of this package than ``here``, the installed one, deployed the flow."""
    here = here or version(names.DISTRIBUTION)
    if deployment_version is None or deployment_version == here or not _OURS.fullmatch(deployment_version):
        return None
    return (
        f"{names.DISTRIBUTION} {deployment_version} submitted this run, and {here} is installed where the flow runs. "
        f"It goes on; if something is odd, `pip install {names.DISTRIBUTION}=={deployment_version}` on the worker, or "
        f"run the pipeline from an environment that has {here}."
    )
