"""Two pipelines with GPUs on Modal. `python pipeline.py` runs both on the active stack.

The models are small, so that the sandboxes' machines are what there is to see here: put your own training in.
"""

from __future__ import annotations

from sklearn.datasets import load_diabetes
from sklearn.linear_model import Ridge
from sklearn.model_selection import cross_val_score
from zenml import pipeline, step
from zenml.config import DockerSettings, ResourceSettings

from bridge import ModalPrefectOrchestratorSettings


def score(rows: int, alpha: float) -> float:
    features, target = load_diabetes(return_X_y=True)
    return float(cross_val_score(Ridge(alpha=alpha), features[:rows], target[:rows]).mean())


# What the steps import is in their image.
DOCKER = DockerSettings(requirements=["scikit-learn"])


# One line of settings: the whole pipeline runs in one sandbox, and that has an A100.
@step(settings={"orchestrator": ModalPrefectOrchestratorSettings(gpu="A100")})
def train(rows: int = 400) -> float:
    return score(rows, alpha=0.1)


@pipeline(settings={"docker": DOCKER})
def one_line() -> None:
    train()


# Each step in a sandbox of its own: a CPU, an A100 and a T4 side by side, never more than three at once.
@step(settings={"resources": ResourceSettings(cpu_count=2, memory="4GB")})
def on_cpu(rows: int) -> float:
    return score(rows, alpha=10.0)


@step(
    settings={
        "orchestrator": ModalPrefectOrchestratorSettings(gpu="A100"),
        "resources": ResourceSettings(gpu_count=2, cpu_count=8, memory="32GB"),
    }
)
def on_a100(rows: int) -> float:
    return score(rows, alpha=0.1)


@step(settings={"orchestrator": ModalPrefectOrchestratorSettings(gpu="T4")})
def on_t4(rows: int) -> float:
    return score(rows, alpha=1.0)


@step
def best(scores: list[float]) -> float:
    return max(scores)


@pipeline(
    settings={
        "docker": DOCKER,
        "orchestrator": ModalPrefectOrchestratorSettings(execution_mode="per_step", max_parallelism=3),
    }
)
def three_machines(rows: int = 400) -> None:
    best([on_cpu(rows), on_a100(rows), on_t4(rows)])


if __name__ == "__main__":
    one_line()
    three_machines()
