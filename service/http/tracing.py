"""OpenTelemetry's traces of requests and of what their transcriptions did; the optional extra [otel].

Where they go is said by OpenTelemetry's own variables: OTEL_EXPORTER_OTLP_ENDPOINT, OTEL_SERVICE_NAME and the like.
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
from service.transcription.work import Work

if TYPE_CHECKING:
    from opentelemetry.sdk.trace import TracerProvider

MISSING = (
    "WISP_TRACING=otlp needs the optional extra [otel], which is not installed here: "
    "in the clone, .venv/bin/pip install -e '.[otel]'."
)


class Tracing:
    """Spans of one server: a request's, in it its upload's and its transcription's, in that those of its stages."""

    def __init__(self, provider: "TracerProvider") -> None:
        self._provider, self._tracer = provider, provider.get_tracer("wisp")

    def upload_ended(self, seconds: float) -> None:
        """A body has come whole. Called within its request."""
        now = time.time_ns()
        self._tracer.start_span("upload", start_time=now - int(seconds * 1e9)).end(now)

    def work_ended(self, work: Work) -> None:
        """A transcription has ended. Called in the context of its request."""
        from opentelemetry import trace

        span = self._tracer.start_span("transcription", start_time=work.submitted_ns)
        span.set_attributes(
            {
                "wisp.outcome": work.outcome,
                "wisp.audio_seconds": work.audio_s,
                "wisp.tokens": work.n_tokens,
                "wisp.worked_seconds": work.worked_s,
            }
        )
        within = trace.set_span_in_context(span)
        for stage in work.spans:
            self._tracer.start_span(stage.stage, within, start_time=stage.start_ns).end(stage.end_ns)
        span.end(work.ended_ns)

    def middleware(self, app: ASGIApp, routes: Sequence[BaseRoute]) -> ASGIApp:
        """OpenTelemetry's ASGI middleware, its spans named by route: no path or query of the client's own is kept."""
        from opentelemetry.instrumentation.asgi import OpenTelemetryMiddleware

        def details(scope: Scope) -> tuple[str, dict[str, Any]]:
            route = getattr(route_of(scope, routes), "path", "")
            known = {"http.route": route} if route else {}
            return (
                f"{scope['method']} {route}" if route else "request",
                {"wisp.request_id": request_id.get(), "url.path": route, "url.query": "", **known},
            )

        os.environ.setdefault("OTEL_SEMCONV_STABILITY_OPT_IN", "http")  # today's names; without it those before 2024
        return OpenTelemetryMiddleware(
            app, default_span_details=details, tracer_provider=self._provider, exclude_spans=["receive", "send"]
        )

    def close(self) -> None:
        """Send what has not been sent yet."""
        self._provider.shutdown()


def open_tracing(environment: Any = os.environ) -> Tracing:
    """Spans sent by OTLP over HTTP, in batches, by a thread of their own. Raises StartError without the extra."""
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
