"""A project as it was written for ZenML's own Modal orchestrator. Not a line of it was changed.

What changed is the stack: docs/how-to/from-zenml-modal.md has the commands. Its settings keep their class and meaning.
"""

from __future__ import annotations

from typing import Annotated

from sklearn.datasets import load_diabetes
from sklearn.linear_model import Ridge
from zenml import pipeline, step
from zenml.config import ResourceSettings
from zenml.config.retry_config import StepRetryConfig
from zenml.integrations.modal.flavors.modal_orchestrator_flavor import ModalOrchestratorSettings


@step
def alphas() -> Annotated[list[float], "alphas"]:
    return [0.01, 0.1, 1.0]


@step(
    settings={
        "orchestrator": ModalOrchestratorSettings(gpu="T4", timeout=3600),
        "resources": ResourceSettings(cpu_count=2, memory="4GB"),
    },
    retry=StepRetryConfig(max_retries=2, delay=5),
)
def train(alphas: list[float]) -> Annotated[float, "best"]:
    features, target = load_diabetes(return_X_y=True)
    scores = {alpha: Ridge(alpha=alpha).fit(features, target).score(features, target) for alpha in alphas}
    return max(scores, key=lambda alpha: scores[alpha])


@pipeline(enable_cache=False, settings={"orchestrator": ModalOrchestratorSettings(region="us-east")})
def training() -> None:
    train(alphas())


if __name__ == "__main__":
    training()
