"""A ZenML client in a process of its own, driven by JSON lines: pytest's process stays free of ZenML.

Commands: ``submit`` (make a snapshot and a run of a pipeline), ``read`` (a run and all its step runs),
``set_run_status``, ``call`` (a function of a module beside this one).
"""

from __future__ import annotations

import importlib
import json
import os
import sys
import traceback
from uuid import UUID, uuid4

REPLIES = os.fdopen(os.dup(1), "w")
os.dup2(2, 1)

from zenml.client import Client  # noqa: E402
from zenml.config.global_config import GlobalConfiguration  # noqa: E402
from zenml.enums import StackComponentType  # noqa: E402
from zenml.utils import source_utils  # noqa: E402

PROJECT = os.environ["HOST_TEST_PROJECT"]
sys.path.insert(0, PROJECT)
source_utils.set_custom_source_root(PROJECT)


def setup(artifacts: str) -> dict:
    client = Client()
    client.create_flavor("host_test_flavor.HostTestFlavor", StackComponentType.ORCHESTRATOR)
    client.create_stack_component(
        "host-test", "host-test", StackComponentType.ORCHESTRATOR, {"runner": "process", "gpu": "T4"}
    )
    client.create_stack_component("host-test", "local", StackComponentType.ARTIFACT_STORE, {"path": artifacts})
    stack = client.create_stack(
        "host-test",
        {StackComponentType.ORCHESTRATOR: "host-test", StackComponentType.ARTIFACT_STORE: "host-test"},
    )
    client.activate_stack("host-test")
    store = client.zen_store
    return {
        "url": store.url,
        # With a local artifact store the id of the configuration is part of every cache key.
        "ZENML_USER_ID": str(GlobalConfiguration().user_id),
        "ZENML_ACTIVE_STACK_ID": str(stack.id),
        "ZENML_ACTIVE_PROJECT_ID": str(client.active_project.id),
    }


def submit(module: str, pipeline: str, options: dict, arguments: dict) -> dict:
    made = getattr(importlib.import_module(module), pipeline).with_options(run_name=f"{pipeline}-{uuid4()}", **options)
    run = made(**arguments)
    run = Client().get_pipeline_run(run.id)
    return {"run": str(run.id), "snapshot": str(run.snapshot.id), "flow": run.orchestrator_run_id}


def read(run: str) -> dict:
    found = Client().get_pipeline_run(run)
    steps = []
    for step in Client().list_run_steps(pipeline_run_id=run, size=1000, hydrate=True).items:
        info = step.exception_info
        steps.append(
            {
                "id": str(step.id),
                "name": step.name,
                "version": step.version,
                "status": step.status.value,
                "retriable": step.is_retriable,
                "exception": (info.message or info.traceback) if info else None,
                "start": step.start_time.timestamp() if step.start_time else None,
                "end": step.end_time.timestamp() if step.end_time else None,
                "outputs": {name: [a.load() for a in out] for name, out in step.outputs.items()},
            }
        )
    return {"status": found.status.value, "steps": steps}


def set_run_status(run: str, status: str) -> dict:
    from zenml.enums import ExecutionStatus
    from zenml.orchestrators.publish_utils import publish_pipeline_run_status_update

    return {"status": publish_pipeline_run_status_update(UUID(run), ExecutionStatus(status)).status.value}


def call(module: str, function: str, arguments: dict) -> object:
    return getattr(importlib.import_module(module), function)(**arguments)


def serve() -> None:
    commands = {
        "setup": setup,
        "submit": submit,
        "read": read,
        "call": call,
        "set_run_status": set_run_status,
    }
    for line in sys.stdin:
        request = json.loads(line)
        try:
            reply = {"result": commands[request.pop("command")](**request)}
        except BaseException:
            reply = {"error": traceback.format_exc()}
        REPLIES.write(json.dumps(reply) + "\n")
        REPLIES.flush()


serve()
