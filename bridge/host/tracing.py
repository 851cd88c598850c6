"""The span of a step in the process that runs it, where the flow that started it is traced (:mod:`bridge.tracing`).

The step's own spans are its children, whoever sets up the provider. Where ``OTEL_TRACES_EXPORTER`` names an exporter,
and nobody has set up a provider, ``opentelemetry-distro`` does so, as under ``opentelemetry-instrument``: that can't
be put before the command of a sandbox. If it can't, the process runs without being traced.
"""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.metadata import entry_points
from typing import TYPE_CHECKING
from uuid import UUID

from bridge import names

if TYPE_CHECKING:
    from opentelemetry.trace import Span

_logger = logging.getLogger(__name__)

_EXPORTER = "OTEL_TRACES_EXPORTER"
_FLUSH_MILLISECONDS = 5000
_CONFIGURATORS = "opentelemetry_configurator"
"""The group in which distributions of OpenTelemetry register what sets them up (opentelemetry-instrumentation,
``auto_instrumentation/_load.py``)."""


@contextmanager
def span_of_step(step: str) -> Iterator[None]:
    """Run a step as a span of the trace that the environment names; without one, or without OpenTelemetry, just so."""
    with _span(f"step {step}", _attributes(step)):
        yield


@contextmanager
def span_of_function(pipeline: str) -> Iterator[None]:
    """Run the function of a dynamic pipeline as such a span; its inline steps are spans below it."""
    with _span(f"function {pipeline}", {names.SPAN_PIPELINE: pipeline, **_ids()}):
        try:
            yield
        finally:
            _inline.abandon()


def flush() -> None:
    """Export the spans that have ended, where somebody set up a provider: for a process that ends all at once."""
    try:
        from opentelemetry import trace
    except ModuleNotFoundError:
        return
    # The SDK's providers have it, the API's don't.
    force_flush = getattr(trace.get_tracer_provider(), "force_flush", None)
    if force_flush is not None:
        force_flush(_FLUSH_MILLISECONDS)


def begin_inline(step: str, step_run_id: UUID) -> None:
    """An inline step of a dynamic pipeline begins, in this thread: :func:`end_inline` ends its span."""
    _inline.begin(step, step_run_id)


def end_inline(step_run_id: UUID, failed: bool) -> None:
    """It ended, in the same thread."""
    _inline.end(step_run_id, failed)


class _InlineSpans:
    """Spans that two calls of ZenML's open and close: there is nothing of ours around an inline step.

    Steps run in threads, each of which touches its own entry alone.
    """

    def __init__(self) -> None:
        self._open: dict[UUID, tuple[Span, object]] = {}

    def begin(self, step: str, step_run_id: UUID) -> None:
        trace = sys.modules.get("opentelemetry.trace")
        if trace is None or not trace.get_current_span().get_span_context().is_valid:
            return
        from opentelemetry.context import attach

        span = trace.get_tracer(names.DISTRIBUTION).start_span(f"step {step}", attributes=_attributes(step))
        self._open[step_run_id] = span, attach(trace.set_span_in_context(span))

    def end(self, step_run_id: UUID, failed: bool) -> None:
        if step_run_id not in self._open:
            return
        from opentelemetry.context import detach

        span, token = self._open.pop(step_run_id)
        if failed:
            self._fail(span)
        span.end()
        detach(token)  # type: ignore[arg-type]

    def abandon(self) -> None:
        """End what ZenML didn't: it doesn't tell of a step whose inputs couldn't be loaded."""
        while self._open:
            _, (span, _token) = self._open.popitem()
            self._fail(span)
            span.end()

    @staticmethod
    def _fail(span: Span) -> None:
        from opentelemetry.trace import StatusCode

        error = sys.exc_info()[1]
        if error is not None:
            span.record_exception(error)
        span.set_status(StatusCode.ERROR, type(error).__name__ if error is not None else None)


_inline = _InlineSpans()
"""Of this process: ZenML makes the component that hears of inline steps as often as it likes."""


@contextmanager
def _span(name: str, attributes: dict[str, str]) -> Iterator[None]:
    carrier = {variable.lower(): os.environ[variable] for variable in names.ENV_TRACE if variable in os.environ}
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
        _set_up()
    token = attach(TraceContextTextMapPropagator().extract(carrier))
    try:
        with trace.get_tracer(names.DISTRIBUTION).start_as_current_span(name, attributes=attributes) as opened:
            try:
                yield
            except BaseException as error:
                if not isinstance(error, Exception):  # else OpenTelemetry does so itself
                    opened.set_status(trace.StatusCode.ERROR, type(error).__name__)
                raise
    finally:
        detach(token)


def _set_up() -> None:
    try:
        for configurator in entry_points(group=_CONFIGURATORS):
            configurator.load()().configure()
    except Exception as error:
        # Whatever distributions raise: `opentelemetry-instrument` runs the program all the same.
        _logger.warning(
            "This process isn't traced: OpenTelemetry can't be set up as %s=%s asks (%s: %s). Install the exporter "
            "into the image, as opentelemetry-distro[otlp] brings its own, or name another.",
            _EXPORTER,
            os.environ[_EXPORTER],
            type(error).__name__,
            error,
        )


def _exporter_is_named() -> bool:
    return os.environ.get(_EXPORTER, "none") not in ("", "none")


def _attributes(step: str) -> dict[str, str]:
    return {names.SPAN_STEP: step, **_ids()}


def _ids() -> dict[str, str]:
    variables = {
        names.SPAN_RUN_ID: names.ENV_RUN_ID,
        names.SPAN_FLOW_RUN_ID: names.ENV_FLOW_RUN_ID,
        names.SPAN_TASK_RUN_ID: names.ENV_TASK_RUN_ID,
        names.SPAN_SANDBOX_ID: names.ENV_MODAL_SANDBOX_ID,
    }
    return {key: os.environ[variable] for key, variable in variables.items() if variable in os.environ}
