"""Where nobody traces, nothing happens; where somebody does, the trace goes on in another process."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PARENT = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"


def run(code: str, **environment: str) -> dict[str, object]:
    """What a fresh interpreter prints: a tracer provider is set once for a whole process."""
    said = subprocess.run(
        [sys.executable, "-c", code],
        env={**{name: value for name, value in os.environ.items() if name != "TRACEPARENT"}, **environment},
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    assert said.returncode == 0, said.stderr
    found: dict[str, object] = json.loads(said.stdout)
    return found


def test_where_nobody_traces_nothing_is_imported() -> None:
    code = """
import json, sys
from bridge import tracing
from bridge.host.tracing import span_of_step
with tracing.span("run", {}) as noted, tracing.following({"TRACEPARENT": "x"}), span_of_step("s"):
    noted.failed("no")
    tracing.note({"a": 1})
    print(json.dumps([tracing.environment(), [name for name in sys.modules if name.startswith("opentelemetry")]]))
"""
    assert run(code) == [{}, []]


SDK = """
import json
from opentelemetry import trace
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
exporter, provider = InMemorySpanExporter(), TracerProvider()
provider.add_span_processor(SimpleSpanProcessor(exporter))
trace.set_tracer_provider(provider)
from bridge import tracing
"""


def test_the_environment_s_trace_goes_on_and_goes_further() -> None:
    code = """
with tracing.span("run", {"a": 1}):
    given = tracing.environment()
    with tracing.following({"TRACEPARENT": "00-" + "1" * 32 + "-" + "2" * 16 + "-01"}), tracing.span("other", {}):
        pass
other, run = [json.loads(span.to_json()) for span in exporter.get_finished_spans()]
print(json.dumps([given, run, other]))
"""
    given, inner, other = run(SDK + code, TRACEPARENT=PARENT, TRACESTATE="vendor=x")  # type: ignore[misc]
    assert inner["parent_id"] == "0xb7ad6b7169203331"
    assert inner["context"]["trace_id"] == "0x0af7651916cd43dd8448eb211c80319c"
    assert given == {
        "TRACEPARENT": f"00-0af7651916cd43dd8448eb211c80319c-{inner['context']['span_id'][2:]}-01",
        "TRACESTATE": "vendor=x",
    }
    assert other["context"]["trace_id"] == "0x" + "1" * 32


@pytest.mark.parametrize("exporter", ["otlp", "console,otlp", "zipkin"])
def test_an_exporter_that_is_not_there_costs_the_trace_and_not_the_step(exporter: str) -> None:
    """As under `opentelemetry-instrument`: the image has the distribution, and not this exporter."""
    code = """
import json, logging
said = []
logging.getLogger("bridge.host.tracing").addFilter(lambda record: said.append(record.getMessage()))
from bridge.host.tracing import span_of_step
with span_of_step("train"):
    print(json.dumps(["it runs", said]))
"""
    ran, said = run(code, TRACEPARENT=PARENT, OTEL_TRACES_EXPORTER=exporter)
    assert ran == "it runs"
    assert re.fullmatch(
        r"This process isn't traced: OpenTelemetry can't be set up as OTEL_TRACES_EXPORTER=\S+ asks \(RuntimeError: "
        r"Requested component '(otlp|zipkin)\S*' not found.*\)\. Install .* into the image, .*",
        said[0],
    ), said


def test_an_exception_fails_the_span_without_a_word_of_it() -> None:
    code = """
try:
    with tracing.span("run", {}):
        raise KeyError("secret")
except KeyError:
    pass
(span,) = exporter.get_finished_spans()
print(span.to_json())
"""
    span = run(SDK + code)
    assert span["status"] == {"status_code": "ERROR", "description": "KeyError"}
    assert "secret" not in json.dumps(span)
