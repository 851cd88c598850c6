"""A run as one OpenTelemetry trace: from its submission, through Prefect and the sandbox, to the code of a step."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest

from tests import servers
from tests.integration.lab import PROJECT, STACK_CODE, Lab
from tests.integration.workers import make_pool

SCRIPT = """
import json
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

calls = {
    "per_step": (traced.untroubled, {"execution_mode": "per_step"}),
    "retried": (traced.traced, {"execution_mode": "per_step"}),
    "pipeline": (traced.untroubled, {"execution_mode": "pipeline"}),
    "dynamic": (traced.decided, {}),
    "pool": (traced.untroubled, {"synchronous": False}),
}
for place in sys.argv[2:]:
    name, _, stack = place.partition("=")
    call, options = calls[name]
    Client().activate_stack(stack)
    inside = f"{sys.argv[1]}/{name}"
    exporter.clear()
    run = call.with_options(settings={"orchestrator": options})(inside)
    spans = [json.loads(span.to_json()) for span in exporter.get_finished_spans()]
    with open(f"{inside}/spans.json", "w") as file:
        json.dump({"run": str(run.id), "flow_run": run.orchestrator_run_id, "spans": spans}, file)
"""
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


def trace(folder: Path, **stacks: str) -> str:
    """Run what the script has under these names, on these stacks; return what it printed."""
    for name in stacks:
        (folder / name).mkdir()
    script = folder / "script.py"
    script.write_text(SCRIPT)
    environment = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join(map(str, (STACK_CODE, PROJECT, servers.ROOT))),
        "OTEL_TRACES_EXPORTER": "console",  # in the sandboxes, which have this process's environment
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
