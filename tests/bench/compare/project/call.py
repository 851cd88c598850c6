"""A fresh process that calls one pipeline: ``python call.py ASKED ANSWER``, two files of JSON.

It is the user's process: it knows ZenML and the pipelines, and neither this benchmark nor the orchestrator.
``ASKED`` has the pipeline's name, its arguments and settings, and an image where there is one; ``ANSWER`` what came
of it, and what it cost this process. Times are seconds of ``time.time()``.
"""

from __future__ import annotations

import json
import resource
import sys
import time
from pathlib import Path

import pipelines
from sampling import Samples
from zenml.client import Client
from zenml.config import DockerSettings


def cpu(who: int) -> float:
    """Seconds of processor time used so far."""
    used = resource.getrusage(who)
    return used.ru_utime + used.ru_stime


def main() -> None:
    """Call it."""
    asked = json.loads(Path(sys.argv[1]).read_text())
    chosen = getattr(pipelines, asked["pipeline"])
    settings = {"orchestrator": asked["settings"]}
    if asked["image"]:
        settings["docker"] = DockerSettings(parent_image=asked["image"], skip_build=True)
    called = chosen.with_options(settings=settings, enable_cache=False)
    Client()  # logged in before, as somebody who has run pipelines is
    before = cpu(resource.RUSAGE_SELF)
    begin = time.time()
    with Samples(asked["sample"]) as samples:
        run = called(**asked["arguments"])
    end = time.time()
    found = Client().get_pipeline_run(run.id)
    answer = {
        "begin": begin,
        "wall_s": end - begin,
        "client_cpu_s": cpu(resource.RUSAGE_SELF) - before,
        "children_cpu_s": cpu(resource.RUSAGE_CHILDREN),
        "client_peak_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
        "status": found.status.value,
        "steps": {name: step.status.value for name, step in found.steps.items()},
        "step_starts": sorted(step.start_time.timestamp() for step in found.steps.values() if step.start_time),
        "samples": samples.taken,
    }
    Path(sys.argv[2]).write_text(json.dumps(answer))


if __name__ == "__main__":
    main()
