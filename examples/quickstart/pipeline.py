"""A small but real ML pipeline: which classifier reads handwritten digits best?

Nothing here knows of Prefect or Modal: it is a ZenML pipeline like any other. What runs where is said by the
stack and, if need be, by settings.
"""

from typing import Annotated

import numpy as np
import pandas as pd
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

MODELS = {
    "logistic regression": lambda: make_pipeline(StandardScaler(), LogisticRegression(max_iter=500)),
    "random forest": lambda: RandomForestClassifier(n_estimators=100, random_state=0),
    "support vectors": lambda: make_pipeline(StandardScaler(), SVC()),
    "nearest neighbours": lambda: KNeighborsClassifier(5),
}


@step
def load() -> Annotated[pd.DataFrame, "digits"]:
    """1,797 digits of 8 x 8 pixels; the data set ships with scikit-learn."""
    digits = load_digits(as_frame=True).frame
    print(f"{len(digits)} digits, {digits['target'].nunique()} classes")
    return digits


@step
def split(digits: pd.DataFrame) -> tuple[Annotated[pd.DataFrame, "train"], Annotated[pd.DataFrame, "test"]]:
    """A quarter of the digits is kept back for the evaluation."""
    train, test = train_test_split(digits, test_size=0.25, random_state=0, stratify=digits["target"])
    print(f"{len(train)} to learn from, {len(test)} to be tested on")
    return train, test


@step
def train(data: pd.DataFrame, kind: str) -> Annotated[BaseEstimator, "model"]:
    """Fit one kind of model."""
    model = MODELS[kind]().fit(data.drop(columns="target"), data["target"])
    print(f"{kind} is trained")
    return model


@step
def evaluate(test: pd.DataFrame, models: list[BaseEstimator], kinds: list[str]) -> Annotated[pd.DataFrame, "scores"]:
    """Score every model on digits that it hasn't seen."""
    rows = []
    for kind, model in zip(kinds, models, strict=True):
        guesses = model.predict(test.drop(columns="target"))
        rows.append(
            {
                "model": kind,
                "accuracy": float(accuracy_score(test["target"], guesses)),
                "f1": float(f1_score(test["target"], guesses, average="macro")),
                "errors": int(np.sum(guesses != test["target"])),
            }
        )
    return pd.DataFrame(rows).sort_values("accuracy", ascending=False, ignore_index=True)


@step
def pick(scores: pd.DataFrame) -> Annotated[str, "best"]:
    """The most accurate model."""
    best = str(scores.loc[0, "model"])
    print(f"The best model is: {best}")
    return best


@pipeline(enable_cache=False)
def digits() -> None:
    """Load, split, train four models side by side, evaluate, pick the best."""
    train_set, test_set = split(load())
    models = [train(train_set, kind=kind, id=f"train_{kind.replace(' ', '_')}") for kind in MODELS]
    pick(evaluate(test_set, models, kinds=list(MODELS)))
