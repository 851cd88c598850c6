"""GPU training from a shared volume: data that is too big for artifacts is fetched once, and read by every trainer.

`modal volume create datasets`, then `python volume.py` on a stack for Modal. What `fetch` wrote is there for `train`:
a step that may write to a volume has a sandbox of its own, and steps that only read (`:ro`) share theirs, where the
volume is reloaded before each.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import numpy as np
from sklearn.datasets import load_digits
from sklearn.neural_network import MLPClassifier
from zenml import pipeline, step
from zenml.config import DockerSettings

from bridge import ModalPrefectOrchestratorSettings

SHARED = {"/data": "datasets"}
READ_ONLY = {"/data": "datasets:ro"}


@step(settings={"orchestrator": ModalPrefectOrchestratorSettings(volumes=SHARED)})
def fetch(folder: str) -> Annotated[str, "file"]:
    """Write the data to the volume, unless it is there."""
    file = Path(folder) / "digits.npz"
    if not file.exists():
        images, digits = load_digits(return_X_y=True)
        np.savez(file, images=images, digits=digits)
    return str(file)


@step(settings={"orchestrator": ModalPrefectOrchestratorSettings(volumes=READ_ONLY, gpu=["L4", "T4"], timeout=3600)})
def train(file: str, width: int) -> Annotated[float, "accuracy"]:
    """Train one model on the data of the volume."""
    data = np.load(file)
    model = MLPClassifier((width,), max_iter=60, random_state=0).fit(data["images"][:1000], data["digits"][:1000])
    return float(model.score(data["images"][1000:], data["digits"][1000:]))


@pipeline(
    settings={
        "docker": DockerSettings(requirements=["numpy", "scikit-learn"]),
        "orchestrator": ModalPrefectOrchestratorSettings(execution_mode="per_step"),
    }
)
def shared_volume(folder: str = "/data") -> None:
    """Fetch once, train twice, side by side."""
    file = fetch(folder)
    for width in (16, 64):
        train(file, width, id=f"train_{width}")


if __name__ == "__main__":
    shared_volume()
