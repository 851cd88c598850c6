"""Pipelines as a user writes them, each twice: static and dynamic. They know of no orchestrator.

Where a static pipeline lets steps run side by side, the dynamic one submits them.
"""

from __future__ import annotations

import time

import numpy as np
from zenml import pipeline, step

GPU = {"orchestrator": {"gpu": "T4"}, "resources": {"gpu_count": 1}}
"""The second kind of resources; both orchestrators have a setting of that name."""


def burn(seconds: float) -> float:
    """Use that much processor time of this thread, whatever else the machine does. Numbers, as a fit would."""
    weights, end = np.ones(64), time.thread_time() + seconds
    inputs = np.random.default_rng(0).normal(size=(256, 64))
    while time.thread_time() < end:
        guesses = 1 / (1 + np.exp(-inputs @ weights))
        weights -= 0.01 * inputs.T @ (guesses - 0.5) / len(inputs)
        # A loop in Python, as most code between two calls of a library is.
        sum(number * number for number in range(2000))
    return float(np.abs(weights).sum())


@step
def begin() -> int:
    return 1


@step
def add(left: int, right: int = 0) -> int:
    return left + right


@step
def work(seconds: float, before: float = 0.0) -> float:
    return before + burn(seconds)


# Training: seven steps, 32 s of processor time, 22 s of them on the longest way through.


@step
def ingest() -> np.ndarray:
    burn(3)
    return np.random.default_rng(1).normal(size=(2000, 16))


@step
def features(rows: np.ndarray, power: int) -> np.ndarray:
    burn(4)
    return rows**power


@step(settings=GPU)
def train(left: np.ndarray, right: np.ndarray, seconds: float) -> np.ndarray:
    burn(seconds)
    return (left + right).mean(axis=0)


@step
def evaluate(small: np.ndarray, large: np.ndarray) -> float:
    burn(3)
    return float(np.abs(small - large).max())


@step
def report(score: float) -> str:
    burn(2)
    return f"{score:.3f}"


@pipeline
def training() -> None:
    rows = ingest()
    plain, square = features(rows, 1, id="plain"), features(rows, 2, id="square")
    small = train(plain, square, 6.0, id="small")
    large = train(plain, square, 10.0, id="large")
    report(evaluate(small, large))


@pipeline
def chain(length: int) -> None:
    value = begin()
    for number in range(1, length):
        value = add(value, id=f"add_{number}")


@pipeline
def diamond() -> None:
    top = begin()
    add(add(top, id="left"), add(top, id="right"), id="bottom")


@pipeline
def fan_out(width: int) -> None:
    top = begin()
    for number in range(width):
        add(top, number, id=f"wide_{number}")


@pipeline
def branches(seconds: float) -> None:
    top = work(0.0, id="top")
    work(seconds, top, id="left")
    work(seconds, top, id="right")


@pipeline(dynamic=True)
def dynamic_training() -> None:
    rows = ingest()
    plain, square = features.submit(rows, 1), features.submit(rows, 2)
    small, large = train.submit(plain, square, 6.0), train.submit(plain, square, 10.0)
    report(evaluate(small, large))


@pipeline(dynamic=True)
def dynamic_chain(length: int) -> None:
    value = begin()
    for _ in range(1, length):
        value = add(value)


@pipeline(dynamic=True)
def dynamic_diamond() -> None:
    top = begin()
    left, right = add.submit(top), add.submit(top)
    add(left, right)


@pipeline(dynamic=True)
def dynamic_fan_out(width: int) -> None:
    top = begin()
    for made in [add.submit(top, number) for number in range(width)]:
        made.wait()


@pipeline(dynamic=True)
def dynamic_branches(seconds: float) -> None:
    top = work(0.0)
    for made in [work.submit(seconds, top), work.submit(seconds, top)]:
        made.wait()
