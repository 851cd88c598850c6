"""Batch inference on a schedule: every night a worker starts it, no process of yours has to be there.

`python batch.py` runs it once on the active stack; `python batch.py "0 2 * * *"` schedules it, which needs a
`work_pool` on the orchestrator (see docs/how-to/schedule.md).
"""

from __future__ import annotations

import sys
from typing import Annotated

import numpy as np
from sklearn.datasets import load_digits
from sklearn.linear_model import LogisticRegression
from zenml import pipeline, step
from zenml.config import DockerSettings
from zenml.config.schedule import Schedule


@step(enable_cache=False)
def todays_batch(rows: int) -> Annotated[np.ndarray, "batch"]:
    """What came in since the last time: here, some digits. Never from the cache: each time it is another batch."""
    images, _ = load_digits(return_X_y=True)
    return images[-rows:]


@step
def model() -> Annotated[LogisticRegression, "model"]:
    """The model of the day: from the cache as long as this step doesn't change."""
    images, digits = load_digits(return_X_y=True)
    return LogisticRegression(max_iter=2000).fit(images[:-200], digits[:-200])


@step
def predict(batch: np.ndarray, model: LogisticRegression) -> Annotated[np.ndarray, "predictions"]:
    """The predictions are an artifact, with all that led to them."""
    predictions = model.predict(batch)
    print(f"{len(predictions)} predictions, most of them a {np.bincount(predictions).argmax()}")
    return predictions


@pipeline(settings={"docker": DockerSettings(requirements=["numpy", "scikit-learn"])})
def nightly(rows: int = 100) -> None:
    """Load, predict."""
    predict(todays_batch(rows), model())


if __name__ == "__main__":
    if len(sys.argv) > 1:
        nightly.with_options(schedule=Schedule(name="nightly", cron_expression=sys.argv[1]))()
    else:
        nightly()
