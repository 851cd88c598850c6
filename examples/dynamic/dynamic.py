"""A search that decides as it goes: trials in sandboxes of their own, as many rounds as it takes.

`python dynamic.py` runs it on the active stack. How many trials there are, and of what, nobody knows when it starts: a
dynamic pipeline is a function that runs while the pipeline does. A trial asks for a machine, so it has a sandbox of its
own; the rest runs where the function does.
"""

from __future__ import annotations

from typing import Annotated

import numpy
from sklearn.datasets import load_digits
from sklearn.model_selection import cross_val_score
from sklearn.svm import SVC
from zenml import pipeline, step, unmapped
from zenml.config import DockerSettings, ResourceSettings


@step(settings={"resources": ResourceSettings(cpu_count=1, memory="1GB")})
def trial(gamma: float, rows: int) -> Annotated[float, "accuracy"]:
    """Score one value of gamma."""
    images, digits = load_digits(return_X_y=True)
    accuracy = float(cross_val_score(SVC(gamma=gamma), images[:rows], digits[:rows], cv=3).mean())
    print(f"gamma={gamma:g}: {accuracy:.3f}")
    return accuracy


@step
def around(gamma: float, factor: float, trials: int) -> Annotated[list[float], "gammas"]:
    """The values to try next."""
    return [float(value) for value in numpy.geomspace(gamma / factor, gamma * factor, trials)]


@step
def best(gammas: list[float], scores: list[float]) -> Annotated[float, "gamma"]:
    """The value with the highest score."""
    score, gamma = max(zip(scores, gammas))
    print(f"Best: gamma={gamma:g} with {score:.3f}")
    return gamma


@pipeline(dynamic=True, settings={"docker": DockerSettings(requirements=["numpy", "scikit-learn"])})
def tune(rows: int = 600, good: float = 0.95, rounds: int = 3, trials: int = 3) -> Annotated[float, "gamma"]:
    """Look around the best value so far, more closely each time, until it is good enough."""
    gamma, factor = 0.1, 100.0
    for _ in range(rounds):
        gammas = around(gamma, factor, trials)
        scores = trial.map(gammas, unmapped(rows)).load()
        chosen = best(gammas, scores)
        gamma, factor = chosen.load(), factor**0.5
        if max(scores) >= good:
            break
    return chosen


if __name__ == "__main__":
    tune()
