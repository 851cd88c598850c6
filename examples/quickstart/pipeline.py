"""A small but real ML pipeline: which classifier reads handwritten digits best?

Nothing here knows of Prefect or Modal: it is a ZenML pipeline like any other. What runs where is said by the
stack and, if need be, by settings.
"""

from typing import Annotated

import numpy as np
from sklearn.base import BaseEstimator
from sklearn.datasets import load_digits
from sklearn.ensemble import RandomForestClassifier
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import accuracy_score, f1_score
from sklearn.model_selection import train_test_split
from sklearn.neighbors import KNeighborsClassifier
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.svm import SVC
from zenml import pipeline, step
from zenml.config import DockerSettings

MODELS = {
    "logistic regression": lambda: make_pipeline(StandardScaler(), LogisticRegression(max_iter=500)),
    "random forest": lambda: RandomForestClassifier(n_estimators=100, random_state=0),
    "support vectors": lambda: make_pipeline(StandardScaler(), SVC()),
    "nearest neighbours": lambda: KNeighborsClassifier(5),
}


@step
def load() -> tuple[Annotated[np.ndarray, "images"], Annotated[np.ndarray, "digits"]]:
    """1,797 digits of 8 x 8 pixels; the data set ships with scikit-learn."""
    images, digits = load_digits(return_X_y=True)
    print(f"{len(digits)} images of {len(set(digits))} digits")
    return images, digits


@step
def split(
    images: np.ndarray, digits: np.ndarray
) -> tuple[
    Annotated[np.ndarray, "train_images"],
    Annotated[np.ndarray, "test_images"],
    Annotated[np.ndarray, "train_digits"],
    Annotated[np.ndarray, "test_digits"],
]:
    """A quarter of the digits is kept back for the evaluation."""
    train_images, test_images, train_digits, test_digits = train_test_split(
        images, digits, test_size=0.25, random_state=0, stratify=digits
    )
    print(f"{len(train_digits)} to learn from, {len(test_digits)} to be tested on")
    return train_images, test_images, train_digits, test_digits


@step
def train(images: np.ndarray, digits: np.ndarray, kind: str) -> Annotated[BaseEstimator, "model"]:
    """Fit one kind of model."""
    model = MODELS[kind]().fit(images, digits)
    print(f"{kind} is trained")
    return model


@step
def evaluate(
    images: np.ndarray, digits: np.ndarray, models: list[BaseEstimator], kinds: list[str]
) -> Annotated[dict[str, dict[str, float]], "scores"]:
    """Score every model on digits that it hasn't seen."""
    scores = {}
    for kind, model in zip(kinds, models):
        guesses = model.predict(images)
        scores[kind] = {
            "accuracy": float(accuracy_score(digits, guesses)),
            "f1": float(f1_score(digits, guesses, average="macro")),
            "errors": float(np.sum(digits != guesses)),
        }
    return scores


@step
def pick(scores: dict[str, dict[str, float]]) -> Annotated[str, "best"]:
    """The most accurate model."""
    best = max(scores, key=lambda kind: scores[kind]["accuracy"])
    print(f"The best model is: {best}")
    return best


@pipeline(enable_cache=False, settings={"docker": DockerSettings(requirements=["numpy", "scikit-learn"])})
def digits() -> None:
    """Load, split, train four models side by side, evaluate, pick the best."""
    train_images, test_images, train_digits, test_digits = split(*load())
    models = [train(train_images, train_digits, kind=kind, id=f"train_{kind.replace(' ', '_')}") for kind in MODELS]
    pick(evaluate(test_images, test_digits, models, kinds=list(MODELS)))
