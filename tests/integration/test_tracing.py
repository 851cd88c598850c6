"""A run as one OpenTelemetry trace: from its submission, through Prefect and the sandbox, to the code of a step."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from importlib.metadata import distribution
from pathlib import Path
from typing import Any
from uuid import UUID, uuid4

import pytest

from tests import servers
from tests.integration.lab import PROJECT, STACK_CODE, Lab
from tests.integration.workers import BIN, Worker, make_pool
from tests.loopback import LoopbackImage

SCRIPT = """
import json
import os
import sys

from opentelemetry import trace
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

exporter, provider = InMemorySpanExporter(), TracerProvider()
provider.add_span_processor(SimpleSpanProcessor(exporter))
trace.set_tracer_provider(provider)

import traced
from zenml.client import Client
from zenml.config import DockerSettings
from zenml.utils import source_utils

source_utils.set_custom_source_root(os.getcwd())  # not this script's folder: it is the code that sandboxes on Modal get
calls = {
    "per_step": (traced.untroubled, {"execution_mode": "per_step"}),
    "retried": (traced.traced, {"execution_mode": "per_step"}),
    "pipeline": (traced.untroubled, {"execution_mode": "pipeline"}),
    "dynamic": (traced.decided, {}),
    "pool": (traced.untroubled, {"synchronous": False}),
    "worker": (traced.untroubled, {"execution_mode": "per_step"}),
}
docker = {"docker": DockerSettings(parent_image=os.environ["IMAGE"], skip_build=True)} if "IMAGE" in os.environ else {}
for place in sys.argv[2:]:
    name, _, stack = place.partition("=")
    call, options = calls[name]
    Client().activate_stack(stack)
    inside = f"{sys.argv[1]}/{name}"
    exporter.clear()
    run = call.with_options(settings={"orchestrator": options, **docker})(inside)
    spans = [json.loads(span.to_json()) for span in exporter.get_finished_spans()]
    with open(f"{inside}/spans.json", "w") as file:
        json.dump({"run": str(run.id), "flow_run": run.orchestrator_run_id, "spans": spans}, file)
"""
CONSOLE = {"OTEL_TRACES_EXPORTER": "console"}
OURS = ("submit ", "run ", "attempt ", "sandbox", "step ")


class Trace:
    """What one run left: the spans of the process that submitted it, and what its steps saw."""

    def __init__(self, folder: Path) -> None:
        said = json.loads((folder / "spans.json").read_text())
        self.folder, self.run, self.flow_run = folder, said["run"], said["flow_run"]
        self.spans: list[dict[str, Any]] = said["spans"]
        (self.pipeline,) = {
            span["attributes"]["zenml.pipeline"] for span in self.spans if span["name"].startswith("submit")
        }

    def __getitem__(self, name: str) -> dict[str, Any]:
        (found,) = self.named(name)
        return found

    def named(self, name: str) -> list[dict[str, Any]]:
        return sorted((span for span in self.spans if span["name"] == name), key=lambda span: span["start_time"])

    def below(self, parent: dict[str, Any]) -> list[dict[str, Any]]:
        """Our spans below one of ours, in the order of their beginning: between them may be Prefect's own."""
        found = [span for span in self.spans if span["parent_id"] == parent["context"]["span_id"]]
        nearest = [[span] if span["name"].startswith(OURS) else self.below(span) for span in found]
        return sorted((span for spans in nearest for span in spans), key=lambda span: span["start_time"])

    def seen_by(self, step: str) -> dict[str, str]:
        found: dict[str, str] = json.loads((self.folder / f"{step}.json").read_text())
        return found


def plain(number: str) -> str:
    return number.removeprefix("0x")


def trace(folder: Path, image: str | None = None, **stacks: str) -> str:
    """Run what the script has under these names, on these stacks, in this image; return what it printed."""
    for name in stacks:
        (folder / name).mkdir()
    script = folder / "script.py"
    script.write_text(SCRIPT)
    environment = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join(map(str, (STACK_CODE, PROJECT, servers.ROOT))),
        **CONSOLE,  # in sandboxes that are local processes, which have this process's environment
        **({"IMAGE": image} if image else {}),
    }
    places = [f"{name}={stack}" for name, stack in stacks.items()]
    said = subprocess.run(
        [sys.executable, script, folder, *places], cwd=PROJECT, env=environment, capture_output=True, text=True
    )
    assert said.returncode == 0, said.stderr[-5000:]
    return said.stdout + said.stderr


@pytest.mark.slow
def test_a_run_is_one_trace(lab: Lab, tmp_path: Path) -> None:
    pool = f"pool-{uuid4().hex[:6]}"
    make_pool(pool)  # nobody works there: what counts is what a worker would be given
    said = trace(tmp_path, per_step=lab.stack("process"), pool=lab.stack("process", work_pool=pool))

    per_step = Trace(tmp_path / "per_step")
    submit, flow = per_step["submit untroubled"], per_step["run untroubled"]
    assert submit["parent_id"] is None
    assert per_step.below(submit) == [flow]
    ids = {"zenml.run.id": per_step.run, "prefect.flow_run.id": per_step.flow_run}
    assert ids.items() <= submit["attributes"].items()
    assert ids.items() <= flow["attributes"].items()
    (attempt,) = per_step.below(flow)
    assert attempt["name"] == "attempt show"
    check_step(per_step, attempt, "show-1", said)

    pooled = Trace(tmp_path / "pool")
    (submit,) = pooled.spans
    flow_run, _ = lab.read_flow_run(pooled.flow_run, begun=False)
    parent = flow_run.job_variables["env"]["TRACEPARENT"]
    assert parent.split("-")[1:3] == [plain(submit["context"][key]) for key in ("trace_id", "span_id")]


def exported(said: str, span: str) -> str:
    """A span as the sandbox's own exporter wrote it to its output, which the run in this terminal shows."""
    texts = said.split('"name": ')[1:]
    (found,) = [text for text in texts if f'"span_id": "0x{plain(span)}"' in text.partition('"parent_id"')[0]]
    return found


def parent_of(text: str) -> str:
    """The id of the span above an exported one."""
    return text.partition('"parent_id": "')[2].partition('"')[0]


def check_step(seen: Trace, attempt: dict[str, Any], step: str, said: str) -> None:
    """The step's code saw the trace, below the sandbox of this attempt."""
    (sandbox,) = seen.below(attempt)
    assert sandbox["name"] == "sandbox"
    assert sandbox["context"]["trace_id"] == seen["submit " + seen.pipeline]["context"]["trace_id"]
    inside = seen.seen_by(step)
    assert inside["trace"] == plain(sandbox["context"]["trace_id"])
    mine = exported(said, inside["span"])
    assert mine.startswith(f'"step {step.partition("-")[0]}"')
    assert f'"parent_id": "{sandbox["context"]["span_id"]}"' in mine
    assert f'"modal.sandbox.id": "{sandbox["attributes"]["modal.sandbox.id"]}"' in mine
    assert f'"prefect.task_run.id": "{attempt["attributes"]["prefect.task_run.id"]}"' in mine


@pytest.fixture
def traced_image(lab: Lab, tmp_path: Path) -> str:
    """An image that has opentelemetry-distro, and names an exporter."""
    distro, inside = distribution("opentelemetry-distro"), tmp_path / "otel"
    for file in distro.files or ():
        if ".." not in file.parts:  # a script, which is elsewhere
            (inside / file).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(file.locate(), inside / file)
    python = servers.ROOT / ".venv-sandbox" / "bin" / "python"
    files = {"/opt/stack-code": STACK_CODE, "/opt/otel": inside}
    name = f"registry.example.com/traced:{uuid4().hex[:8]}"
    env = {"PYTHONPATH": "/opt/stack-code:/opt/otel", **CONSOLE}
    lab.modal.image_changes(name, LoopbackImage(python, files=files, env=env))
    return name


@pytest.mark.slow
def test_a_run_through_a_worker_on_modal_is_one_trace(lab: Lab, tmp_path: Path, traced_image: str) -> None:
    """From this machine to the worker's flow, to the sandbox, to the step: three processes, each of which exports."""
    pool = f"pool-{uuid4().hex[:6]}"
    make_pool(pool)
    command = ("opentelemetry-instrument", str(BIN / "prefect"), "worker", "start")
    traces_alone = {**CONSOLE, "OTEL_METRICS_EXPORTER": "none", "OTEL_LOGS_EXPORTER": "none"}
    worker = Worker(pool, tmp_path / "elsewhere", dict(traces_alone), command).start()
    try:
        trace(tmp_path, traced_image, worker=lab.stack("modal", work_pool=pool))
    finally:
        worker.stop()
    seen = Trace(tmp_path / "worker")
    (submit,) = [span for span in seen.spans if span["name"].startswith(OURS)]
    trace_id = submit["context"]["trace_id"]
    ids = {"zenml.run.id": seen.run, "prefect.flow_run.id": seen.flow_run}
    assert ids.items() <= submit["attributes"].items()

    exported = spans_in(worker.log.read_text())
    flow = {span["name"]: span for span in exported if span["name"].startswith(OURS)}
    run, attempt, sandbox = (flow[name] for name in ("run untroubled", "attempt show", "sandbox"))
    assert {span["context"]["trace_id"] for span in flow.values()} == {trace_id}
    (between,) = [span for span in exported if span["context"]["span_id"] == run["parent_id"]]
    assert between["attributes"]["prefect.run.id"] == seen.flow_run, "Prefect's own span of the flow run"
    assert between["parent_id"] == submit["context"]["span_id"]
    assert ids.items() <= run["attributes"].items()
    (box,) = [box for box in lab.modal.sandboxes() if box.tags.get("zenml_run_id") == seen.run]
    assert sandbox["attributes"]["modal.sandbox.id"] == box.id

    _, task_runs = lab.read_flow_run(UUID(seen.flow_run), expected=1)
    said = spans_in("\n".join(lab.logs(task_runs["show"])))
    (step,) = [span for span in said if span["name"] == "step show"]
    assert (step["context"]["trace_id"], step["parent_id"]) == (trace_id, sandbox["context"]["span_id"])
    task_run = {"prefect.task_run.id": str(task_runs["show"].id)}
    assert task_run.items() <= attempt["attributes"].items()
    assert (ids | task_run | {"zenml.step": "show", "modal.sandbox.id": box.id}).items() <= step["attributes"].items()
    assert seen.seen_by("show-1") == {"trace": plain(trace_id), "span": plain(step["context"]["span_id"])}


def spans_in(text: str) -> list[dict[str, Any]]:
    """The spans that a console exporter wrote between other lines."""
    decoder, found = json.JSONDecoder(), []
    for begin in re.finditer(r"^\{$", text, re.MULTILINE):
        span, _ = decoder.raw_decode(text, begin.start())
        found.append(span)
    return found


@pytest.mark.slow
def test_each_attempt_is_a_span(lab: Lab, tmp_path: Path) -> None:
    said = trace(tmp_path, retried=lab.stack("process"))
    retried = Trace(tmp_path / "retried")
    first, second = retried.named("attempt flaky")
    below = retried.below(retried["run traced"])
    assert [span["name"] for span in below] == ["attempt show", "attempt flaky", "attempt flaky"]
    assert [span["attributes"]["zenml.step.attempt"] for span in (first, second)] == [1, 2]
    assert [span["status"]["status_code"] for span in (first, second)] == ["ERROR", "UNSET"]
    assert "as told" in first["status"]["description"]
    for attempt, step in zip(below, ("show-1", "flaky-1", "flaky-2"), strict=True):
        check_step(retried, attempt, step, said)


@pytest.mark.slow
def test_a_whole_pipeline_in_one_sandbox_is_one_trace(lab: Lab, tmp_path: Path) -> None:
    trace(tmp_path, pipeline=lab.stack("process"))
    whole = Trace(tmp_path / "pipeline")
    (sandbox,) = whole.below(whole["run untroubled"])
    assert sandbox["name"] == "sandbox"
    assert whole.seen_by("show-1")["trace"] == plain(sandbox["context"]["trace_id"])


@pytest.mark.slow
def test_a_dynamic_pipeline_is_one_trace(lab: Lab, tmp_path: Path) -> None:
    said = trace(tmp_path, dynamic=lab.stack("process"))
    dynamic = Trace(tmp_path / "dynamic")
    sandbox, attempt = dynamic.below(dynamic["run decided"])
    assert (sandbox["name"], attempt["name"]) == ("sandbox", "attempt apart")
    check_step(dynamic, attempt, "apart-1", said)

    inline = {
        name: exported(said, dynamic.seen_by(name)["span"]) for name in ("show-1", "later-1", "flaky-1", "flaky-2")
    }
    for name, text in inline.items():
        assert dynamic.seen_by(name)["trace"] == plain(sandbox["context"]["trace_id"])
        assert text.startswith(f'"step {name.partition("-")[0]}"')
        assert f'"modal.sandbox.id": "{sandbox["attributes"]["modal.sandbox.id"]}"' in text
        assert f'"status_code": "{"ERROR" if name == "flaky-1" else "UNSET"}"' in text
    # One called inside a span of the function's own is below that.
    function, between = (exported(said, parent_of(inline[name])) for name in ("later-1", "show-1"))
    assert (function.partition(",")[0], between.partition(",")[0]) == ('"function decided"', '"round"')
    assert (
        parent_of(between)
        == parent_of(inline["flaky-1"])
        == parent_of(inline["flaky-2"])
        == parent_of(inline["later-1"])
    )
    assert parent_of(function) == sandbox["context"]["span_id"]
