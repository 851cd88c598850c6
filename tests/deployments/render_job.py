"""Print the job that prefect-kubernetes makes of our template, as JSON. Runs in `.venv-deployments`.

Arguments: the template, and job variables as JSON. Fails where prefect-kubernetes refuses the template.
"""

from __future__ import annotations

import asyncio
import json
import sys
from pathlib import Path
from uuid import UUID

from prefect.client.schemas.objects import FlowRun
from prefect_kubernetes.worker import KubernetesWorkerJobConfiguration, KubernetesWorkerVariables


async def render(template: dict[str, object], variables: dict[str, object]) -> dict[str, object]:
    configuration = await KubernetesWorkerJobConfiguration.from_template_and_values(template, variables)
    some = UUID(int=1)
    configuration.prepare_for_flow_run(FlowRun(id=some, flow_id=some, name="nightly"))
    return configuration.job_manifest


if __name__ == "__main__":
    template = json.loads(Path(sys.argv[1]).read_text())
    answer = {
        "manifest": asyncio.run(render(template, json.loads(sys.argv[2]))),
        "configuration": sorted(KubernetesWorkerJobConfiguration.model_fields),
        "variables": sorted(KubernetesWorkerVariables.model_fields),
    }
    json.dump(answer, sys.stdout)
