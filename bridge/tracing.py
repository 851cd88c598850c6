"""Spans of OpenTelemetry over the way of a run, where somebody traces this process: else nothing happens here.

That somebody does is known by a tracer provider that is set: by ``opentelemetry-instrument``, or by the user's code.
Nothing of OpenTelemetry is imported before. A trace goes on in another process by two variables of its environment,
which hold ids alone: ``TRACEPARENT`` and ``TRACESTATE`` (opentelemetry.io/docs/specs/otel/context/env-carriers).

:mod:`bridge.host.tracing` is the sandbox's side.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from types import ModuleType
from typing import TYPE_CHECKING

from bridge import names

if TYPE_CHECKING:
    from opentelemetry.context import Context
    from opentelemetry.trace import Span


@dataclass(frozen=True)
class Noted:
    """The span that is under way, or nothing."""

    _span: Span | None = None

    def note(self, attributes: Mapping[str, str | int]) -> None:
        """Add attributes."""
        if self._span is not None:
            self._span.set_attributes(dict(attributes))

    def failed(self, why: str) -> None:
        """What it stands for failed."""
        if self._span is not None:
            from opentelemetry.trace import StatusCode

            self._span.set_status(StatusCode.ERROR, why)


@contextmanager
def span(name: str, attributes: Mapping[str, str | int]) -> Iterator[Noted]:
    """Open a span, child of the one under way, else of the one that this process's environment names.

    An exception marks it as failed with the exception's type alone: what an exception says may be long.
    """
    trace = _in_use()
    if trace is None:
        yield Noted()
        return
    tracer = trace.get_tracer(names.DISTRIBUTION)
    opened = tracer.start_as_current_span(
        name,
        context=_parent(trace),
        attributes=dict(attributes),
        record_exception=False,
        set_status_on_exception=False,
    )
    with opened as found:
        try:
            yield Noted(found)
        except BaseException as error:
            Noted(found).failed(type(error).__name__)
            raise


@contextmanager
def following(carrier: Mapping[str, str]) -> Iterator[None]:
    """Go on, in this context, with the trace that :func:`environment` said before."""
    trace = _in_use()
    if trace is None or not carrier:
        yield
        return
    from opentelemetry.context import attach, detach

    token = attach(_extracted(carrier))
    try:
        yield
    finally:
        detach(token)


def note(attributes: Mapping[str, str | int]) -> None:
    """Add attributes to the span under way, if there is one."""
    trace = _in_use()
    if trace is not None:
        Noted(trace.get_current_span()).note(attributes)


def environment() -> dict[str, str]:
    """The variables by which another process goes on with the trace; none where nobody traces this one."""
    if _in_use() is None:
        return {}
    from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

    carrier: dict[str, str] = {}
    TraceContextTextMapPropagator().inject(carrier)
    return {key.upper(): value for key, value in carrier.items()}


def _in_use() -> ModuleType | None:
    """OpenTelemetry's API, if a tracer provider is set in this process."""
    trace = sys.modules.get("opentelemetry.trace")
    if trace is None or isinstance(trace.get_tracer_provider(), trace.ProxyTracerProvider):
        return None
    return trace


def _parent(trace: ModuleType) -> Context | None:
    """The context to begin a span in: None, which is the present one, wherever a span is under way."""
    if trace.get_current_span().get_span_context().is_valid:
        return None
    return _extracted(os.environ)


def _extracted(variables: Mapping[str, str]) -> Context:
    from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

    carrier = {name.lower(): variables[name] for name in names.ENV_TRACE if name in variables}
    return TraceContextTextMapPropagator().extract(carrier)
