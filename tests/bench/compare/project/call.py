"""A fresh process that calls one pipeline: ``python call.py ASKED``, a file of JSON.

It is the user's process: it knows ZenML and the pipelines, and neither this benchmark nor the orchestrator.
``ASKED`` has a name for the pipeline that ZenML hasn't seen, the pipeline, its arguments and settings, and an image
where there is one. For each line on stdin it calls the pipeline, and answers on stdout with a line of JSON: what came
of it, and what it cost this process. Times are seconds of ``time.time()``.
"""

from __future__ import annotations

import json
import os
import resource
import sys
import time
from pathlib import Path
from typing import Any

import pipelines
from sampling import Samples
from zenml import pipeline
from zenml.client import Client
from zenml.config import DockerSettings


def cpu() -> float:
    """Seconds of processor time that this process has used so far."""
    used = resource.getrusage(resource.RUSAGE_SELF)
    return used.ru_utime + used.ru_stime


def call(called: Any, arguments: dict[str, Any], *, sample: bool) -> dict[str, Any]:
    """Call it once."""
    before = cpu()
    begin = time.time()
    with Samples(sample) as samples:
        run = called(**arguments)
    end = time.time()
    found = Client().get_pipeline_run(run.id)
    return {
        "begin": begin,
        "wall_s": end - begin,
        "client_cpu_s": cpu() - before,
        "client_peak_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
        "status": found.status.value,
        "steps": {name: step.status.value for name, step in found.steps.items()},
        "step_starts": sorted(step.start_time.timestamp() for step in found.steps.values() if step.start_time),
        "samples": samples.taken,
    }


def main() -> None:
    """Call it as often as asked."""
    # ZenML and Prefect print on stdout as they like: that goes to stderr, and answers go where stdout went.
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)
    asked = json.loads(Path(sys.argv[1]).read_text())
    chosen = getattr(pipelines, asked["pipeline"])
    settings = {"orchestrator": asked["settings"]}
    if asked["image"]:
        settings["docker"] = DockerSettings(parent_image=asked["image"], skip_build=True)
    # A name of its own, so that the first call is the first: what a pipeline's steps took last time is used by ours.
    named = pipeline(name=asked["name"], dynamic=chosen.is_dynamic)
    called = named(chosen.entrypoint).with_options(settings=settings, enable_cache=False)
    Client()  # logged in before, as somebody who has run pipelines is
    for _ in sys.stdin:
        answers.write(json.dumps(call(called, asked["arguments"], sample=asked["sample"])) + "\n")


if __name__ == "__main__":
    main()
