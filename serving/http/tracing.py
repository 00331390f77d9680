"""OpenTelemetry: one span a request, sent to a collector.

A span is created after the response, so it costs the request nothing; it continues the caller's
trace if the request carries `traceparent`.

    RequestTracer.export_to("http://collector:4318/v1/traces")
"""

import time
from collections.abc import Mapping
from typing import Any

from cluster.errors import BerthaError


class TracingError(BerthaError):
    """The packages that export spans are not installed."""


class RequestTracer:
    """Records a span for each request with an OpenTelemetry `tracer`."""

    def __init__(self, tracer: Any) -> None:
        from opentelemetry.trace import SpanKind
        from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

        self._tracer, self._kind = tracer, SpanKind.SERVER
        self._propagator = TraceContextTextMapPropagator()

    @classmethod
    def export_to(cls, url: str) -> "RequestTracer":
        """Send spans to the collector at `url` over HTTP, in a thread. Raises TracingError."""
        try:
            from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
            from opentelemetry.sdk.resources import Resource
            from opentelemetry.sdk.trace import TracerProvider
            from opentelemetry.sdk.trace.export import BatchSpanProcessor
        except ImportError as error:
            raise TracingError(f'--traces: {error}; pip install "bertha-ray[traces]"') from None
        provider = TracerProvider(resource=Resource.create({"service.name": "bertha"}))
        provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter(endpoint=url)))
        return cls(provider.get_tracer("bertha"))

    def record_span(
        self, headers: Mapping[str, str], route: str, seconds: float, attributes: dict[str, Any]
    ) -> None:
        """Record a request that took `seconds` and ended now; never its text."""
        now = time.time_ns()
        context = self._propagator.extract(dict(headers))
        span = self._tracer.start_span(
            route, context, self._kind, attributes, start_time=now - int(seconds * 1e9)
        )
        span.end(now)
