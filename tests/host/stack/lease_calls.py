"""``bridge.cleanup.signs_of_life`` and what becomes of a run without it; arguments and answers fit into JSON."""

from __future__ import annotations

from zenml.client import Client

from bridge.cleanup import signs_of_life


def renew(run: str) -> None:
    signs_of_life.renew(Client().get_pipeline_run(run))


def last_sign(run: str) -> str:
    return signs_of_life.last_sign(Client().get_pipeline_run(run))


def reason(run: str) -> str:
    info = Client().get_pipeline_run(run).exception_info
    return info.traceback if info else ""
