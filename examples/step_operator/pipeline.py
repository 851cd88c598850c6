"""A pipeline on ZenML's local orchestrator, one step of which runs on a GPU on Modal.

`python pipeline.py` runs it on the active stack, which needs a step operator of flavour `modal-prefect`.
"""

from __future__ import annotations

import pandas as pd
from sklearn.datasets import load_diabetes
from sklearn.linear_model import Ridge
from sklearn.model_selection import cross_val_score
from zenml import pipeline, step
from zenml.config import ResourceSettings

from bridge import ModalPrefectStepOperatorSettings


@step
def load(rows: int = 400) -> pd.DataFrame:
    return load_diabetes(as_frame=True).frame.head(rows)


# This step alone leaves the machine: an A100, or an H100 where no A100 is free.
@step(
    step_operator=True,
    settings={
        "step_operator": ModalPrefectStepOperatorSettings(gpu=["A100", "H100"], timeout=3600),
        "resources": ResourceSettings(cpu_count=4, memory="8GB"),
    },
)
def train(data: pd.DataFrame) -> float:
    features = data.drop(columns="target")
    return float(cross_val_score(Ridge(alpha=0.1), features, data["target"]).mean())


@step
def report(score: float) -> None:
    print(f"mean score {score:.2f}")


@pipeline
def one_step_on_modal(rows: int = 400) -> None:
    report(train(load(rows)))


if __name__ == "__main__":
    one_step_on_modal()
