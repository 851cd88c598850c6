"""Hyperparameter search by fan-out: a trial for each point of a grid, four at once, each on a machine of its own.

`python search.py` runs it on the active stack. Trials that ask for the same machine take turns in warm sandboxes, so
six trials don't pay for six cold starts; a trial that was computed before comes from ZenML's cache.
"""

from __future__ import annotations

import itertools
from typing import Annotated

from sklearn.datasets import load_digits
from sklearn.model_selection import cross_val_score
from sklearn.svm import SVC
from zenml import pipeline, step
from zenml.config import DockerSettings, ResourceSettings

from bridge import ModalPrefectOrchestratorSettings

C = [0.1, 1.0, 10.0]
GAMMA = [0.0001, 0.001]


@step(settings={"resources": ResourceSettings(cpu_count=2, memory="2GB")})
def trial(c: float, gamma: float, rows: int) -> Annotated[float, "accuracy"]:
    """Score one point of the grid."""
    images, digits = load_digits(return_X_y=True)
    accuracy = float(cross_val_score(SVC(C=c, gamma=gamma), images[:rows], digits[:rows], cv=3).mean())
    print(f"C={c} gamma={gamma}: {accuracy:.3f}")
    return accuracy


@step
def best(scores: list[float], points: list[tuple[float, float]]) -> Annotated[tuple[float, float], "point"]:
    """The point with the highest score."""
    score, point = max(zip(scores, points))
    print(f"Best: C={point[0]} gamma={point[1]} with {score:.3f}")
    return point


@pipeline(
    settings={
        "docker": DockerSettings(requirements=["scikit-learn"]),
        "orchestrator": ModalPrefectOrchestratorSettings(execution_mode="per_step", max_parallelism=4),
    }
)
def search(c: list[float] = C, gamma: list[float] = GAMMA, rows: int = 600) -> None:
    """Fan out over the grid, and in again."""
    points = list(itertools.product(c, gamma))
    scores = [trial(*point, rows, id=f"trial_{number}") for number, point in enumerate(points)]
    best(scores, points)


if __name__ == "__main__":
    search()
