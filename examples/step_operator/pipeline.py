"""A pipeline on ZenML's local orchestrator, one step of which runs on a GPU on Modal.

`python pipeline.py` runs it on the active stack, which needs a step operator of flavour `modal-prefect`.
"""

from __future__ import annotations

import numpy as np
from sklearn.datasets import load_diabetes
from sklearn.linear_model import Ridge
from sklearn.model_selection import cross_val_score
from zenml import pipeline, step
from zenml.config import DockerSettings, ResourceSettings

from bridge import ModalPrefectStepOperatorSettings


@step
def load(rows: int = 400) -> np.ndarray:
    """Ten features a row, and what they are to tell."""
    return np.column_stack(load_diabetes(return_X_y=True))[:rows]


@step
def report(score: float) -> None:
    print(f"mean score {score:.2f}")


# This step alone leaves the machine: an A100, or an H100 where no A100 is free.
@step(
    step_operator=True,
    settings={
        "step_operator": ModalPrefectStepOperatorSettings(gpu=["A100", "H100"], timeout=3600),
        "resources": ResourceSettings(cpu_count=4, memory="8GB"),
    },
)
def train(data: np.ndarray) -> float:
    return float(cross_val_score(Ridge(alpha=0.1), data[:, :-1], data[:, -1]).mean())


# What it imports is in its image.
@pipeline(settings={"docker": DockerSettings(requirements=["numpy", "scikit-learn"])})
def one_step_on_modal(rows: int = 400) -> None:
    report(train(load(rows)))


if __name__ == "__main__":
    one_step_on_modal()
