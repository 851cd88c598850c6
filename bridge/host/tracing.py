"""The span of a step in its own process, where the flow that started it is traced (:mod:`bridge.tracing`).

The step's own spans are its children, whoever sets up the provider. Where ``OTEL_TRACES_EXPORTER`` names an exporter,
and nobody has set up a provider, ``opentelemetry-distro`` does so, as under ``opentelemetry-instrument``: that can't
be put before the command of a sandbox.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.metadata import entry_points

from bridge import names

_EXPORTER = "OTEL_TRACES_EXPORTER"
_CONFIGURATORS = "opentelemetry_configurator"
"""The group in which distributions of OpenTelemetry register what sets them up (opentelemetry-instrumentation,
``auto_instrumentation/_load.py``)."""


@contextmanager
def span_of_step(step: str) -> Iterator[None]:
    """Run a step as a span of the trace that the environment names; without one, or without OpenTelemetry, just so."""
    carrier = {name.lower(): os.environ[name] for name in names.ENV_TRACE if name in os.environ}
    if not carrier:
        yield
        return
    try:
        from opentelemetry import trace
        from opentelemetry.context import attach, detach
        from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator
    except ModuleNotFoundError:
        yield
        return
    if isinstance(trace.get_tracer_provider(), trace.ProxyTracerProvider) and _exporter_is_named():
        for configurator in entry_points(group=_CONFIGURATORS):
            configurator.load()().configure()
    token = attach(TraceContextTextMapPropagator().extract(carrier))
    try:
        with trace.get_tracer(names.DISTRIBUTION).start_as_current_span(f"step {step}", attributes=_attributes(step)):
            yield
    finally:
        detach(token)


def _exporter_is_named() -> bool:
    return os.environ.get(_EXPORTER, "none") not in ("", "none")


def _attributes(step: str) -> dict[str, str]:
    variables = {
        names.SPAN_RUN_ID: names.ENV_RUN_ID,
        names.SPAN_FLOW_RUN_ID: names.ENV_FLOW_RUN_ID,
        names.SPAN_TASK_RUN_ID: names.ENV_TASK_RUN_ID,
        names.SPAN_SANDBOX_ID: names.ENV_MODAL_SANDBOX_ID,
    }
    found = {key: os.environ[variable] for key, variable in variables.items() if variable in os.environ}
    return {names.SPAN_STEP: step, **found}
