"""OpenTelemetry traces of requests and their transcriptions; needs the optional extra [otel].

OpenTelemetry's own variables configure the exporter: OTEL_EXPORTER_OTLP_ENDPOINT, OTEL_SERVICE_NAME and others.
"""

import os
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from starlette.routing import BaseRoute
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from service.errors import StartError
from service.http.request_log import request_id
from service.http.route_table import route_of
from service.transcription.run import Run

if TYPE_CHECKING:
    from opentelemetry.sdk.trace import TracerProvider

SERVER_ERROR = 500
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
        """ASGI middleware: a span for every request, in the trace of its `traceparent`, if any."""
        from opentelemetry import propagate, trace

        async def traced(scope: Scope, receive: Receive, send: Send) -> None:
            if scope["type"] != "http":
                await app(scope, receive, send)
                return
            route = getattr(route_of(scope, routes), "path", "")
            headers = {name.decode("latin-1"): value.decode("latin-1") for name, value in scope["headers"]}
            with self._tracer.start_as_current_span(
                f"{scope['method']} {route}".strip() if route else "request",
                propagate.extract(headers),
                kind=trace.SpanKind.SERVER,
                attributes={"http.request.method": scope["method"], "wisp.request_id": request_id.get()},
            ) as span:
                if route:
                    span.set_attribute("http.route", route)

                async def send_and_note(message: Message) -> None:
                    if message["type"] == "http.response.start":
                        span.set_attribute("http.response.status_code", message["status"])
                        if message["status"] >= SERVER_ERROR:
                            span.set_status(trace.StatusCode.ERROR)
                    await send(message)

                await app(scope, receive, send_and_note)

        return traced

    def close(self) -> None:
        """Send the remaining spans."""
        self._provider.shutdown()


def open_tracing(environment: Any = os.environ) -> Tracing:
    """Spans sent by OTLP over HTTP, in batches, from their own thread. Raises StartError without the extra."""
    try:
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
