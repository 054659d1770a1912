"""OpenTelemetry traces of requests and their transcriptions; needs the optional extra [otel].

OpenTelemetry's own variables configure the exporter: OTEL_EXPORTER_OTLP_ENDPOINT, OTEL_SERVICE_NAME and others.
"""

import os
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from starlette.routing import BaseRoute
from starlette.types import ASGIApp, Scope

from service.errors import StartError
from service.http.request_log import request_id
from service.http.route_table import route_of
from service.transcription.run import Run

if TYPE_CHECKING:
    from opentelemetry.sdk.trace import TracerProvider

MISSING = (
    "WISP_TRACING=otlp needs the optional extra [otel], which is not installed here: "
    "in the clone, .venv/bin/pip install -e '.[otel]'."
)


class Tracing:
    """One server's spans: a request's contains its upload's and its transcription's, which contains its stages'."""

    def __init__(self, provider: "TracerProvider") -> None:
        self._provider, self._tracer = provider, provider.get_tracer("wisp")

    def upload_ended(self, seconds: float) -> None:
        """A body is complete. Called within its request."""
        now = time.time_ns()
        self._tracer.start_span("upload", start_time=now - int(seconds * 1e9)).end(now)

    def run_ended(self, run: Run) -> None:
        """A transcription has ended. Called in the context of its request."""
        from opentelemetry import trace

        span = self._tracer.start_span("transcription", start_time=run.submitted_ns)
        span.set_attributes(
            {
                "wisp.model": run.model,
                "wisp.outcome": run.outcome,
                "wisp.audio_seconds": run.audio_s,
                "wisp.tokens": run.n_tokens,
                "wisp.worked_seconds": run.worked_s,
            }
        )
        within = trace.set_span_in_context(span)
        for stage in run.spans:
            self._tracer.start_span(stage.stage, within, start_time=stage.start_ns).end(stage.end_ns)
        span.end(run.ended_ns)

    def middleware(self, app: ASGIApp, routes: Sequence[BaseRoute]) -> ASGIApp:
        """OpenTelemetry's ASGI middleware, its spans named by route: no path or query of the client's own is kept."""
        from opentelemetry.instrumentation.asgi import OpenTelemetryMiddleware

        def details(scope: Scope) -> tuple[str, dict[str, Any]]:
            route = getattr(route_of(scope, routes), "path", "")
            known = {"http.route": route} if route else {}
            return (
                f"{scope.get('method', 'GET')} {route}" if route else "request",
                {"wisp.request_id": request_id.get(), "url.path": route, "url.query": "", **known},
            )

        os.environ.setdefault("OTEL_SEMCONV_STABILITY_OPT_IN", "http")  # today's names; without it those before 2024
        return OpenTelemetryMiddleware(
            app, default_span_details=details, tracer_provider=self._provider, exclude_spans=["receive", "send"]
        )

    def close(self) -> None:
        """Send the remaining spans."""
        self._provider.shutdown()


def open_tracing(environment: Any = os.environ) -> Tracing:
    """Spans sent by OTLP over HTTP, in batches, from their own thread. Raises StartError without the extra."""
    try:
        import opentelemetry.instrumentation.asgi  # noqa: F401  # needed later, missed now
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
        from opentelemetry.sdk.resources import Resource
        from opentelemetry.sdk.trace import TracerProvider
        from opentelemetry.sdk.trace.export import BatchSpanProcessor
    except ImportError:
        raise StartError(MISSING) from None
    named = "OTEL_SERVICE_NAME" in environment or "service.name=" in environment.get("OTEL_RESOURCE_ATTRIBUTES", "")
    provider = TracerProvider(resource=Resource.create({} if named else {"service.name": "wisp"}))
    provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter()))
    return Tracing(provider)
