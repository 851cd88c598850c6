"""`make demo`: the pipeline beside this file, through Prefect, every step a process of its own in a sandbox.

The sandboxes are local processes (`runner="process"`): no account, no container, nothing leaves the machine.
Everything that the demo writes is in the folder `.demo` of the clone.
"""

import os
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
HOME = ROOT / ".demo"
HERE = Path(__file__).resolve().parent

# Before ZenML and Prefect are imported: both read their configuration at import time.
for variable in [name for name in os.environ if name.startswith(("ZENML_", "PREFECT_", "MODAL_"))]:
    del os.environ[variable]
(HOME / "tmp").mkdir(parents=True, exist_ok=True)
os.environ |= {
    "ZENML_CONFIG_PATH": str(HOME / "zenml"),
    "ZENML_ANALYTICS_OPT_IN": "false",
    "PREFECT_HOME": str(HOME / "prefect"),
    "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
    "PREFECT_PROFILES_PATH": str(HOME / "prefect" / "profiles.toml"),
    "PREFECT_MEMO_STORE_PATH": str(HOME / "prefect" / "memo_store.toml"),
    "DO_NOT_TRACK": "1",
    "TMPDIR": str(HOME / "tmp"),
    "UV_CACHE_DIR": str(HOME / "uv"),  # ZenML asks uv, where there is one, for what is installed
    "OMP_NUM_THREADS": "1",  # models are trained side by side: with threads for all cores each waits for the others
}
os.chdir(HERE)
sys.path.insert(0, str(HERE))

from pipeline import digits  # noqa: E402
from zenml.client import Client  # noqa: E402
from zenml.enums import StackComponentType  # noqa: E402

STACK = "modal-prefect-local"


def register_stack() -> None:
    """What `zenml orchestrator flavor register`, `zenml orchestrator register` and `zenml stack register` do."""
    client = Client()
    if client.list_stacks(name=STACK).total:
        client.activate_stack(STACK)
        return
    client.create_flavor("bridge.flavors.ModalPrefectOrchestratorFlavor", StackComponentType.ORCHESTRATOR)
    client.create_stack_component(
        name=STACK,
        flavor="modal-prefect",
        component_type=StackComponentType.ORCHESTRATOR,
        configuration={"runner": "process", "execution_mode": "per_step"},
    )
    store = client.active_stack_model.components[StackComponentType.ARTIFACT_STORE][0]
    client.create_stack(
        STACK,
        components={StackComponentType.ORCHESTRATOR: STACK, StackComponentType.ARTIFACT_STORE: store.id},
    )
    client.activate_stack(STACK)


def show(run_id: str) -> None:
    """Read the result back from ZenML's artifacts and say where the run can be looked at."""
    run = Client().get_pipeline_run(run_id)
    scores = run.steps["evaluate"].outputs["scores"][0].load()
    best = run.steps["pick"].outputs["best"][0].load()
    print(f"\nRun {run.name}: {run.status.value}. From ZenML's artifacts:\n")
    print(f"  {'model':20} {'accuracy':>8} {'f1':>8} {'errors':>8}")
    for kind, score in sorted(scores.items(), key=lambda item: -item[1]["accuracy"]):
        print(f"  {kind:20} {score['accuracy']:8.3f} {score['f1']:8.3f} {score['errors']:8.0f}")
    print(f"\nThe best model is: {best}\n\nLook at this very run:")
    print("  Prefect:  make prefect-ui   then open")
    print(f"            http://127.0.0.1:4200/runs/flow-run/{run.orchestrator_run_id}")
    print("  ZenML:    make zenml-ui     then open (user `default`, no password)")
    print(f"            http://127.0.0.1:8237/projects/default/runs/{run.id}")


if __name__ == "__main__":
    register_stack()
    finished = digits()
    show(str(finished.id))
