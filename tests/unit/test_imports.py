"""Who may import whom: read from the source, and seen in a fresh interpreter."""

from __future__ import annotations

import ast
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).parents[2]
BRIDGE = REPOSITORY / "bridge"
MODULES = sorted(path.relative_to(BRIDGE).as_posix() for path in BRIDGE.rglob("*.py"))
PURE = [
    *(
        "plan.py",
        "flow_run/outcome.py",
        "names.py",
        "errors.py",
        "flow_run/ready.py",
        "warming/kinds.py",
        "__init__.py",
    ),
    *("awaiting.py", "said_once.py", "watching/step_told.py"),
    *(
        "cleanup/ownership.py",
        "cleanup/lease.py",
        "flow_run/whereabouts.py",
        "warming/pool.py",
        "watching/board.py",
        "planning/header_value.py",
        "flow_run/last_words.py",
    ),
    *("own_loop.py", "daemon_threads.py", "watching/output.py", "doctor/finding.py", "host/__init__.py"),
    *("host/wire.py", "host/attempt.py", "host/journal.py", "host/pipes.py", "host/ends.py", "host/passed_on.py"),
    *("host/lifeline.py", "host/client.py", "runners/supervisor.py"),
]
NO_PREFECT = [
    *(
        "plan.py",
        "planning/translate.py",
        "planning/layers.py",
        "planning/resources.py",
        "planning/checks.py",
        "flavors.py",
        "settings.py",
    ),
    *("flow_run/outcome.py", "names.py", "errors.py", "flow_run/ready.py", "zenml_side/step_runs.py"),
    # What the orchestration of a dynamic pipeline needs in its sandbox.
    *("dynamic_pipelines/isolated.py", "dynamic_pipelines/asks.py"),
    # What a step operator needs where it is called from.
    *(
        "step_operator.py",
        "step_operators/operated.py",
        "step_operators/operating.py",
        "flow_run/step.py",
        "flow_run/run.py",
        "warming/warm.py",
        "warming/warm_step.py",
    ),
    *(
        "flow_run/open_run.py",
        "zenml_side/zenml_calls.py",
        "zenml_side/step_records.py",
        "zenml_side/cache_lookup.py",
        "planning/one_sandbox.py",
    ),
]
LAZY = [
    "bridge",
    "bridge.plan",
    "bridge.flow_run.outcome",
    "bridge.names",
    "bridge.errors",
    "bridge.flow_run.ready",
    "bridge.cleanup.ownership",
]


def imported(module: str) -> Iterator[tuple[str, bool]]:
    """Each imported module, and whether a type checker alone imports it."""
    tree = ast.parse((BRIDGE / module).read_text(encoding="utf-8"))
    for_types = {
        node
        for block in ast.walk(tree)
        if isinstance(block, ast.If) and ast.unparse(block.test) == "TYPE_CHECKING"
        for statement in block.body
        for node in ast.walk(statement)
    }
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield alias.name, node in for_types
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{module} imports relatively"
            yield node.module or "", node in for_types


def tops(module: str) -> set[str]:
    return {name.partition(".")[0] for name, _ in imported(module)}


def may_import_modal(module: str) -> bool:
    return module == "upstream_modal.py" or module.startswith("runners/modal")


def test_modules_are_found() -> None:
    assert set(PURE + NO_PREFECT) <= set(MODULES)


@pytest.mark.parametrize("module", MODULES)
def test_modal_in_its_runner_only(module: str) -> None:
    assert may_import_modal(module) or not tops(module) & {"modal", "modal_proto", "grpclib"}


@pytest.mark.parametrize("module", MODULES)
def test_prefect_not_where_steps_are_planned_and_run(module: str) -> None:
    if module in NO_PREFECT or module.startswith(("runners/", "host/")):
        assert "prefect" not in tops(module)


@pytest.mark.parametrize("module", MODULES)
def test_the_package_needs_nothing_of_the_repository(module: str) -> None:
    assert not tops(module) & {"flows", "tests", "deployments", "examples"}


@pytest.mark.parametrize("module", MODULES)
def test_private_upstream_names_in_one_file_per_upstream(module: str) -> None:
    private = {
        name
        for name, _ in imported(module)
        if name.startswith(("modal.", "prefect.", "zenml.")) and any(part.startswith("_") for part in name.split("."))
    }
    assert not private or module in ("upstream_modal.py", "upstream_prefect.py", "upstream_zenml.py")


def owner(node: ast.expr) -> str:
    """The name at whose attribute, or attribute's attribute, this is."""
    while not isinstance(node, ast.Name):
        if isinstance(node, ast.Call):
            node = node.func
        elif isinstance(node, (ast.Attribute, ast.Subscript)):
            node = node.value
        else:
            return ""
    return node.id


def parts(target: ast.expr) -> list[ast.expr]:
    """What an assignment writes to: several, where it unpacks."""
    if isinstance(target, (ast.Tuple, ast.List)):
        return [part for element in target.elts for part in parts(element)]
    return [target]


def patches(source: str) -> list[str]:
    """The statements that set or delete something of what a module imports from ZenML, Prefect or Modal."""
    upstream: set[str] = set()
    written: list[tuple[ast.expr, ast.AST]] = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, (ast.Import, ast.ImportFrom)):
            whole = isinstance(node, ast.Import)
            for alias in node.names:
                module = alias.name if whole else str(node.module)
                if module.partition(".")[0] in ("modal", "prefect", "zenml"):
                    upstream.add(alias.asname or (alias.name.partition(".")[0] if whole else alias.name))
        elif isinstance(node, (ast.Assign, ast.Delete)):
            written += [(part, node) for target in node.targets for part in parts(target)]
        elif isinstance(node, (ast.AnnAssign, ast.AugAssign)):
            written.append((node.target, node))
        elif isinstance(node, ast.Call) and owner(node.func) in ("setattr", "delattr"):
            written.append((ast.Attribute(node.args[0], "any"), node))
    return [
        ast.unparse(statement)
        for target, statement in written
        if isinstance(target, (ast.Attribute, ast.Subscript)) and owner(target) in upstream
    ]


@pytest.mark.parametrize("module", MODULES)
def test_nothing_upstream_is_patched(module: str) -> None:
    assert not patches((BRIDGE / module).read_text(encoding="utf-8"))


def test_a_patch_is_seen() -> None:
    source = """
import zenml.client, prefect as p
from modal import Sandbox
zenml.client.Client.get = None
p.x, other = 1, 2
Sandbox.create.y += 1
del Sandbox.z
setattr(Sandbox, "create", None)
Sandbox.registry["a"] = 1
mine.Sandbox = Sandbox.create
"""
    assert len(patches(source)) == 6


@pytest.mark.parametrize("module", PURE)
def test_standard_library_only(module: str) -> None:
    outside = {
        name
        for name, for_types in imported(module)
        if not for_types and name.partition(".")[0] not in {*sys.stdlib_module_names, "bridge"}
    }
    own = {name for name, for_types in imported(module) if not for_types and name.startswith("bridge.")}
    assert not outside
    dotted = {pure.removesuffix(".py").removesuffix("/__init__").replace("/", ".") for pure in PURE}
    assert own <= {f"bridge.{pure}" for pure in dotted}


def loaded_by(module: str) -> set[str]:
    script = f"import sys, {module}; print(*(name.partition('.')[0] for name in sys.modules))"
    result = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True, cwd=REPOSITORY, timeout=120
    )
    return set(result.stdout.split())


@pytest.mark.parametrize("module", LAZY)
def test_pure_modules_load_fast(module: str) -> None:
    """A sandbox that needs one of them mustn't wait for ZenML."""
    loaded = loaded_by(module)
    assert not loaded & {"zenml", "pydantic", "prefect", "modal", "tenacity"}


@pytest.mark.parametrize("flow", ["bridge.flow", "bridge.sweep_flow"])
def test_a_flow_loads_prefect_alone(flow: str) -> None:
    """Who deploys it imports it, and would be shown each request that is made: ZenML shows INFO of all libraries."""
    loaded = loaded_by(flow)
    assert "prefect" in loaded
    assert not loaded & {"zenml", "modal"}


OF_THE_WORLD = {
    *("asyncio", "datetime", "getpass", "glob", "http", "httpx", "io", "modal", "os", "pathlib", "platform", "prefect"),
    *("random", "requests", "secrets", "shutil", "socket", "ssl", "subprocess", "sys", "tempfile", "threading", "time"),
    *("urllib.request", "zenml.client", "zenml.environment", "zenml.zen_stores", "zenml.utils.io_utils"),
}
"""Modules by which a plan could come to depend on anything but snapshot and settings."""


def needed_by(module: str) -> dict[str, set[str]]:
    """For each module of the package that one imports, itself included: what of other packages it imports."""
    found: dict[str, set[str]] = {}
    left = [module]
    while left:
        name = left.pop()
        if name in found:
            continue
        tree = ast.parse((BRIDGE / name).read_text(encoding="utf-8"))
        members = {
            f"{node.module}.{alias.name}"
            for node in ast.walk(tree)
            if isinstance(node, ast.ImportFrom)
            for alias in node.names
        }
        names = {name for name, for_types in imported(name) if not for_types} | members
        left += [f"{own[7:].replace('.', '/')}.py" for own in names if f"{own[7:].replace('.', '/')}.py" in MODULES]
        found[name] = {name for name in names if not name.startswith("bridge")}
    return found


def test_planning_has_no_clock_network_or_environment() -> None:
    needed = needed_by("planning/translate.py")
    planning = {f"planning/{name}.py" for name in ("layers", "resources", "checks")}
    assert planning | {"plan.py", "settings.py"} <= set(needed)
    worldly = {module: sorted(names & OF_THE_WORLD) for module, names in needed.items() if names & OF_THE_WORLD}
    assert not worldly


BESIDE_ZENML = ["bridge.flavors", "bridge.planning.translate", "bridge.step_operator", "bridge.step_operators.operated"]
CALLS = "bridge.step_operators.operating+bridge.runners.modal"


@pytest.fixture(scope="module")
def loaded_beside_zenml() -> dict[str, set[str]]:
    """For each module, the packages that are loaded once it is, in a process that had ZenML alone."""
    command = [sys.executable, str(REPOSITORY / "tests" / "forked.py"), str(REPOSITORY), "zenml", *BESIDE_ZENML, CALLS]
    ran = subprocess.run(command, capture_output=True, text=True, check=True, cwd=REPOSITORY, timeout=120)
    found = [json.loads(line) for line in ran.stdout.splitlines() if line.startswith('{"module"')]
    assert [one for one in found if one["error"]] == []
    return {one["module"]: set(one["loaded"]) for one in found}


@pytest.mark.parametrize("module", ["zenml", *BESIDE_ZENML])
def test_the_flavour_loads_neither_modal_nor_prefect(loaded_beside_zenml: dict[str, set[str]], module: str) -> None:
    """ZenML's server and every client import it wherever a stack is looked at."""
    loaded = loaded_beside_zenml[module]
    assert "zenml" in loaded
    assert not loaded & {"modal", "modal_proto", "prefect"}


def test_a_step_operator_is_called_without_prefect(loaded_beside_zenml: dict[str, set[str]]) -> None:
    """From a sandbox of any orchestrator, say."""
    loaded = loaded_beside_zenml[CALLS]
    assert "modal" in loaded
    assert "prefect" not in loaded


def test_a_step_operator_comes_as_far_as_saying_that_the_sdk_is_missing() -> None:
    """In an image without it; an error of Python's own would say less."""
    without = "import sys; sys.modules.update(dict.fromkeys(('modal', 'tenacity', 'prefect')))"
    ours = "step_operator, step_operators.operated, planning.resources, flow_run.run, zenml_side.step_runs"
    needed = "; ".join(f"import bridge.{module}" for module in ours.split(", "))
    subprocess.run([sys.executable, "-c", f"{without}; {needed}"], check=True, cwd=REPOSITORY)


def test_a_worker_comes_without_zenml() -> None:
    """Which would take Prefect's console handlers off, and cost each worker seconds and memory."""
    ours = "commands.worker, prefect_side.prefect_api, submitting.work_pool, submitting.worker"
    needed = "; ".join(f"import bridge.{module}" for module in ours.split(", "))
    command = [sys.executable, "-c", f"import sys; {needed}; sys.exit('zenml' in sys.modules)"]
    subprocess.run(command, check=True, cwd=REPOSITORY)
