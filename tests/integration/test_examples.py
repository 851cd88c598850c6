"""The examples, run as they stand in their folders; the sandboxes are local processes."""

from __future__ import annotations

import ast
import importlib
import re
import sys
from collections.abc import Callable, Iterator
from importlib.metadata import packages_distributions
from pathlib import Path
from types import ModuleType
from typing import Any
from uuid import uuid4

import pytest

from tests import servers
from tests.integration.lab import IMAGE, Lab, Ran
from tests.integration.workers import make_pool

EXAMPLES = servers.ROOT / "examples"


@pytest.fixture
def example(lab: Lab) -> Iterator[Callable[[str], ModuleType]]:
    """Import an example as `python <name>.py` in its folder does."""
    from zenml.utils import source_utils

    imported: list[str] = []
    known = sys.modules.pop("pipeline", None)  # a name that several examples have

    def load(name: str) -> ModuleType:
        folder = str(EXAMPLES / name)
        sys.path.insert(0, folder)
        source_utils.set_custom_source_root(folder)
        imported.append(name)
        (file,) = [file for file in (EXAMPLES / name).glob("*.py") if file.stem != "demo"]
        return importlib.import_module(file.stem)

    yield load
    for name in imported:
        sys.path.remove(str(EXAMPLES / name))
    sys.modules.pop("pipeline", None)
    if known is not None:
        sys.modules["pipeline"] = known


def run(lab: Lab, pipeline: Any, tmp_path: Path, stack: str, **arguments: Any) -> Ran:
    lab.activate(stack)
    ran = lab.read(Ran(tmp_path), pipeline.with_options(enable_cache=False)(**arguments).id)
    assert (ran.status, ran.flow_run.state.name) == ("completed", "Completed")
    return ran


def value(ran: Ran, step: str) -> Any:
    (artifact,) = next(iter(ran.run.steps[step].outputs.values()))
    return artifact.load()


@pytest.mark.slow  # test_demo.py has it as `make demo` runs it
@pytest.mark.parametrize("place", ["modal-v2", "modal-v1"], indirect=True)
def test_the_quickstart_on_modal(lab: Lab, example: Callable[[str], ModuleType], tmp_path: Path, place: str) -> None:
    """The same code: the stack is another one."""
    from zenml.config import DockerSettings

    stack = lab.stack(place, execution_mode="per_step")
    quickstart = example("quickstart")
    docker = DockerSettings(parent_image=IMAGE, skip_build=True)
    ran = run(lab, quickstart.digits.with_options(settings={"docker": docker}), tmp_path, stack)
    trained = {f"train_{kind.replace(' ', '_')}" for kind in quickstart.MODELS}
    assert ran.inputs["evaluate"] == {"split", *trained}
    scores = value(ran, "evaluate")
    assert set(scores) == set(quickstart.MODELS)
    assert all(score["accuracy"] > 0.9 for score in scores.values())
    assert value(ran, "pick") == max(scores, key=lambda kind: scores[kind]["accuracy"])
    assert {box.app for box in lab.sandboxes(ran)} == {"zenml-digits"}


def test_hyperparameter_search(lab: Lab, example: Callable[[str], ModuleType], tmp_path: Path) -> None:
    ran = run(lab, example("search").search, tmp_path, lab.stack("process"), c=[0.1, 10.0], gamma=[0.001], rows=200)
    assert len(ran.task_runs) == 3
    assert ran.inputs["best"] == {"trial_0", "trial_1"}
    assert value(ran, "best") == (10.0, 0.001)


def test_a_search_that_decides_as_it_goes(lab: Lab, example: Callable[[str], ModuleType], tmp_path: Path) -> None:
    stack = lab.stack("process")  # the first one registers the flavours, which moves the source root
    ran = run(lab, example("dynamic").tune, tmp_path, stack, rows=100, good=0.5, rounds=1, trials=2)
    assert set(ran.states) == {"tune", *(f"map:trial:{number}" for number in range(2))}
    (best,) = ran.run.outputs.values()
    assert best.load() == 0.001


def test_batch_inference_once_and_on_a_schedule(lab: Lab, example: Callable[[str], ModuleType], tmp_path: Path) -> None:
    from prefect.client.orchestration import get_client
    from zenml.client import Client
    from zenml.config.schedule import Schedule

    nightly = example("batch").nightly
    ran = run(lab, nightly, tmp_path, lab.stack("process"), rows=50)
    assert len(value(ran, "predict")) == 50

    pool, name = f"pool-{uuid4().hex[:6]}", f"nightly-{uuid4().hex[:6]}"
    make_pool(pool)
    lab.activate(lab.stack("process", work_pool=pool))
    nightly.with_options(schedule=Schedule(name=name, cron_expression="0 2 * * *"))()
    schedule = Client().get_schedule(name)
    try:
        with get_client(sync_client=True) as client:
            (deployment,) = [one for one in client.read_deployments() if one.work_pool_name == pool]
            (made,) = client.read_deployment_schedules(deployment.id)
        assert (made.schedule.cron, made.active) == ("0 2 * * *", True)
    finally:
        Client().delete_schedule(schedule.id)


def test_a_project_of_zenmls_own_modal_orchestrator(
    lab: Lab, example: Callable[[str], ModuleType], tmp_path: Path
) -> None:
    """Unchanged, and its settings mean what they meant."""
    from bridge.flow_run.open_run import load_snapshot, load_stack

    stack = lab.stack("process", execution_mode="per_step")
    ran = run(lab, example("migrated").training, tmp_path, stack)
    assert value(ran, "train") == 0.01
    snapshot = load_snapshot(ran.run.snapshot.id)
    train = load_stack(snapshot)[1].plan(snapshot).step("train")
    machine = train.sandbox
    assert (str(machine.resources.gpu), machine.timeout, machine.region) == ("1 x T4", 3600, ("us-east",))
    assert (machine.resources.cpu, train.retry.delays[0]) == (2.0, 5.0)


def test_one_step_elsewhere(lab: Lab, example: Callable[[str], ModuleType], tmp_path: Path) -> None:
    """On ZenML's local orchestrator, as the README has it; `test_step_operator.py` has it on Modal."""
    from zenml.client import Client
    from zenml.enums import StackComponentType as Kind

    lab.stack("process")  # which registers the flavours
    name = f"elsewhere-{uuid4().hex[:6]}"
    Client().create_stack_component(name, "modal-prefect", Kind.STEP_OPERATOR, {"runner": "process"})
    components = {Kind.ORCHESTRATOR: "default", Kind.ARTIFACT_STORE: "default", Kind.STEP_OPERATOR: [name]}
    Client().create_stack(name, components=components)
    pipeline = example("step_operator").one_step_on_modal
    lab.activate(name)
    run = pipeline.with_options(enable_cache=False)(rows=60)
    ran = Ran(tmp_path, Client().get_pipeline_run(run.id))
    assert ran.steps == dict.fromkeys(("load", "train", "report"), "completed")
    assert "modal_sandbox_id" in ran.run.steps["train"].run_metadata, "it ran in a sandbox"
    assert "modal_sandbox_id" not in ran.run.steps["load"].run_metadata


def test_each_example_is_run_by_make_test() -> None:
    """A folder's files are imported by a test that isn't slow."""
    run = {"quickstart"}  # by `make demo`, in test_demo.py
    for path in (Path(__file__), Path(__file__).with_name("test_gpu_examples.py")):
        tree = ast.parse(path.read_text())
        for test in tree.body:
            if not isinstance(test, ast.FunctionDef) or not test.name.startswith("test_"):
                continue
            text = ast.unparse(test)
            if "pytest.mark.slow" not in text:
                run |= set(re.findall(r"example\('(\w+)'\)", text))
                run |= {"gpu"} if re.search(r"\bexample\.\w", text) and path.stem == "test_gpu_examples" else set()
    folders = {file.parent.name: file for file in EXAMPLES.rglob("*.py")}
    assert run == set(folders)


def imported_packages(tree: ast.Module) -> set[str]:
    """The distributions of what a file imports that an image with ZenML hasn't, and that isn't Python's."""
    whose = packages_distributions()
    names = {name.name for node in ast.walk(tree) if isinstance(node, ast.Import) for name in node.names}
    names |= {node.module or "" for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}
    tops = {name.partition(".")[0] for name in names} - {"zenml", "bridge"} - sys.stdlib_module_names
    return {whose[top][0] for top in tops}


def requirements(tree: ast.Module) -> dict[str, set[str]]:
    """What each pipeline of a file has installed in its image, as its decorator says it."""
    variables = {
        node.targets[0].id: node.value
        for node in tree.body
        if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name)
    }
    found: dict[str, set[str]] = {}
    for function in [node for node in tree.body if isinstance(node, ast.FunctionDef)]:
        for decorator in function.decorator_list:
            call = decorator.func if isinstance(decorator, ast.Call) else decorator
            if not isinstance(call, ast.Name) or call.id != "pipeline":
                continue
            found[function.name] = set()
            for given in ast.walk(decorator):
                if not isinstance(given, ast.Dict):
                    continue
                settings = {ast.literal_eval(key): value for key, value in zip(given.keys, given.values) if key}
                docker = settings.get("docker")
                docker = variables[docker.id] if isinstance(docker, ast.Name) else docker
                if isinstance(docker, ast.Call):
                    fields = {keyword.arg: keyword.value for keyword in docker.keywords}
                    found[function.name] = set(ast.literal_eval(fields["requirements"]))
    return found


@pytest.mark.skipif(sys.version_info < (3, 11), reason="Python does not know there whose a module is")
@pytest.mark.parametrize(
    "file",
    # `demo.py` runs on a laptop, and `migrated` is as it was.
    [file for file in sorted(EXAMPLES.glob("*/*.py")) if file.stem != "demo" and file.parent.name != "migrated"],
    ids=lambda file: file.parent.name,
)
def test_what_an_example_imports_is_in_its_image(file: Path) -> None:
    """The sandboxes of the tests have scikit-learn; those of Modal have what the pipeline asks for."""
    tree = ast.parse(file.read_text())
    installed = requirements(tree)
    assert installed
    assert installed == dict.fromkeys(installed, imported_packages(tree))


def test_training_from_a_shared_volume(lab: Lab, example: Callable[[str], ModuleType], tmp_path: Path) -> None:
    ran = run(lab, example("volume").shared_volume, tmp_path, lab.stack("process"), folder=str(tmp_path))
    assert value(ran, "train_64") > 0.8
    assert ran.inputs["train_16"] == ran.inputs["train_64"] == {"fetch"}
