"""OpenTelemetry: a span for each request, sent to a collector where an endpoint is told of one.

A span is made when the request is over, so it costs the request nothing; it belongs to the caller's
trace where the request says which (`traceparent`).

    Traces.to("http://collector:4318/v1/traces")
"""

import time
from collections.abc import Mapping
from typing import Any

from cluster.errors import BerthaError


class TracesError(BerthaError):
    """What sends spans is not installed."""


class Traces:
    """Makes spans. tracer: of OpenTelemetry."""

    def __init__(self, tracer: Any) -> None:
        from opentelemetry.trace import SpanKind
        from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

        self._tracer, self._kind = tracer, SpanKind.SERVER
        self._propagator = TraceContextTextMapPropagator()

    @classmethod
    def to(cls, url: str) -> "Traces":
        """Send spans to the collector at `url`, over HTTP, in a thread. Raises TracesError."""
        try:
            from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
            from opentelemetry.sdk.resources import Resource
            from opentelemetry.sdk.trace import TracerProvider
            from opentelemetry.sdk.trace.export import BatchSpanProcessor
        except ImportError as error:
            raise TracesError(f'--traces: {error}; pip install "bertha[traces]"') from None
        provider = TracerProvider(resource=Resource.create({"service.name": "bertha"}))
        provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter(endpoint=url)))
        return cls(provider.get_tracer("bertha"))

    def record(
        self, headers: Mapping[str, str], route: str, seconds: float, attributes: dict[str, Any]
    ) -> None:
        """The span of a request that took `seconds` and ended now; never with its text."""
        now = time.time_ns()
        context = self._propagator.extract(dict(headers))
        span = self._tracer.start_span(
            route, context, self._kind, attributes, start_time=now - int(seconds * 1e9)
        )
        span.end(now)
