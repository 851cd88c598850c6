"""The two examples of the README, as they stand there, on both backends: what machines did Modal have to bring?"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import modal
import pytest
from click.testing import CliRunner

from bridge.cli import main
from bridge.flow_run.open_run import load_snapshot, load_stack
from bridge.plan import Mode
from tests import servers
from tests.contract.modal_lab import TOO_OLD_FOR_V2
from tests.integration.lab import IMAGE, Lab, Ran

FOLDER = servers.ROOT / "examples" / "gpu"
V1, V2 = 1, 1 if TOO_OLD_FOR_V2 else 2


@pytest.fixture(scope="module")
def example(lab: Lab) -> Iterator[ModuleType]:
    """The example as `python pipeline.py` in its folder sees it."""
    from zenml.utils import source_utils

    known = sys.modules.pop("pipeline", None)
    sys.path.insert(0, str(FOLDER))
    source_utils.set_custom_source_root(str(FOLDER))
    yield importlib.import_module("pipeline")
    sys.path.remove(str(FOLDER))
    del sys.modules["pipeline"]
    if known is not None:
        sys.modules["pipeline"] = known


def run(lab: Lab, pipeline: Any, folder: Path) -> Ran:
    from zenml.config import DockerSettings
    from zenml.utils import source_utils

    lab.activate(lab.stack("modal"))
    source_utils.set_custom_source_root(str(FOLDER))  # after the lab, which sets its own once
    docker = DockerSettings(parent_image=IMAGE, skip_build=True)
    prepared = pipeline.with_options(settings={"docker": docker}, enable_cache=False)
    made = prepared()
    ran = lab.read(Ran(folder), made.id)
    assert (ran.status, ran.flow_run.state.name) == ("completed", "Completed")
    return ran


def machine(box: Any) -> tuple[str, int, int, int]:
    return box.gpu_type, box.gpu_count, box.cpu_milli, box.memory_mib


def test_one_line_of_gpu_settings(lab: Lab, example: ModuleType, tmp_path: Path) -> None:
    ran = run(lab, example.one_line, tmp_path)
    (box,) = lab.sandboxes(ran)
    assert machine(box)[:2] == ("A100", 1)
    assert box.backend == V1, "the SDK makes GPU sandboxes on the V1 backend"
    assert ran.states == {"one_line": "Completed"}


def test_a_cpu_step_an_a100_step_and_a_t4_step(lab: Lab, example: ModuleType, tmp_path: Path) -> None:
    ran = run(lab, example.three_machines, tmp_path)
    boxes = {box.tags["zenml_step"]: box for box in lab.sandboxes(ran)}
    assert set(boxes) == {"on_cpu", "on_a100", "on_t4", "best"}
    assert machine(boxes["on_cpu"]) == ("", 0, 2000, 3815)  # 4 GB in MiB, rounded up
    assert machine(boxes["on_a100"]) == ("A100", 2, 8000, 30518)
    assert machine(boxes["on_t4"])[:2] == ("T4", 1)
    assert machine(boxes["best"])[:2] == ("", 0)
    assert {name: box.backend for name, box in boxes.items()} == {"on_cpu": V2, "on_a100": V1, "on_t4": V1, "best": V2}
    assert ran.inputs["best"] == {"on_cpu", "on_a100", "on_t4"}
    snapshot = load_snapshot(ran.run.snapshot.id)
    plan = load_stack(snapshot)[1].plan(snapshot)
    assert (plan.mode, plan.max_parallelism) == (Mode.PER_STEP, 3)

    # What Modal asks for such machines, before the next run makes them.
    before = len(lab.modal.sandboxes())
    shown = CliRunner().invoke(main, ["plan", str(snapshot.id)], catch_exceptions=False).output
    if hasattr(modal, "Workspace"):
        # 8 cores, 30518 MiB and two A100 of 40 GB, at the loopback's prices; it has none for a T4.
        assert f"cost:    at least ${8 * 0.1419 + 30518 / 1024 * 0.024 + 2 * 2.1:.4f} with A100 an hour" in shown
        assert "T4 (no price is known)" in shown
        assert "Prices are those that Modal's API tells of your workspace" in shown
    else:
        assert f"Prices: none, Modal's SDK {modal.__version__} can't ask for prices" in shown
    assert len(lab.modal.sandboxes()) == before, "a plan starts nothing"
