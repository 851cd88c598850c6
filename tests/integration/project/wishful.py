"""Pipelines that ask local processes for what those can't honour."""

from __future__ import annotations

from zenml import pipeline, step, unmapped
from zenml.config.resource_settings import ResourceSettings

ELSEWHERE = {"orchestrator": {"cloud": "aws"}, "resources": ResourceSettings(memory="1GB")}


@step(enable_cache=False)
def seeds(folder: str) -> list[int]:
    return [1, 2]


@step(enable_cache=False, runtime="isolated", settings=ELSEWHERE)
def work(folder: str, seed: int) -> int:
    return seed


@pipeline
def wishes(folder: str) -> None:
    for seed in (1, 2):
        work.with_options(runtime=None)(folder, seed)


@pipeline(dynamic=True)
def dynamic_wishes(folder: str) -> None:
    work.map(unmapped(folder), seeds(folder))
