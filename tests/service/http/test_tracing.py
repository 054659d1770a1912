"""OpenTelemetry's spans: a request, its upload, its transcription and the stages of that, in the caller's trace."""

import http.server
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from queue import Queue

import pytest
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import SpanKind
from starlette.testclient import TestClient

from service.errors import ClientGone, StartError
from service.http.app import create_app, serve
from service.http.tracing import Tracing, open_tracing
from service.settings import Settings
from service.transcription.run import STAGES, Run
from tests.support import synthetic
from tests.support.serving import PATH, engine_for, ready, settings_for, wav

TRACE = "0af7651916cd43dd8448eb211c80319c"
CALLER = "b7ad6b7169203331"


def test_a_request_is_traced_from_its_upload_to_its_tokens(tmp_path: Path) -> None:
    folder = synthetic.save_synthetic(tmp_path / "synthetic")
    exporter = InMemorySpanExporter()
    provider = TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    with engine_for(settings_for(folder)) as engine:
        client = TestClient(create_app(ready(engine), Tracing(provider)))
        ended = threading.Event()
        engine.shared.observers.append(lambda run: ended.set())  # after tracing's own
        headers = {"traceparent": f"00-{TRACE}-{CALLER}-01", "x-request-id": "r-1"}
        files = {"file": ("secret.wav", wav(7.0))}
        assert client.post(PATH, headers=headers, data={"prompt": "secret"}, files=files).status_code == 200
        assert ended.wait(60)
        client.get("/secret-path?secret=1")
    spans: dict[str, list[ReadableSpan]] = {}
    for span in exporter.get_finished_spans():
        spans.setdefault(span.name, []).append(span)
    [request], [upload], [work] = spans[f"POST {PATH}"], spans["upload"], spans["transcription"]
    assert request.context and request.parent and work.context
    assert (f"{request.context.trace_id:032x}", f"{request.parent.span_id:016x}") == (TRACE, CALLER)
    assert request.kind is SpanKind.SERVER
    assert (
        dict(request.attributes or {}).items()
        >= {
            "http.request.method": "POST",
            "http.route": PATH,
            "http.response.status_code": 200,
            "wisp.request_id": "r-1",
        }.items()
    )
    assert all(span.parent and span.parent.span_id == request.context.span_id for span in (upload, work))
    assert (
        work.attributes and work.attributes["wisp.outcome"] == "done" and work.attributes["wisp.audio_seconds"] == 7.0
    )
    for stage in STAGES:
        assert all(span.parent and span.parent.span_id == work.context.span_id for span in spans[stage]), stage
    assert len(spans["encode"]) == 3, "one for each window of 3 s"
    assert spans["request"], "a path that is no route's has no name of its own"
    assert "secret" not in "".join(span.to_json() for group in spans.values() for span in group)


def test_a_live_session_is_a_span_without_its_key(tmp_path: Path) -> None:
    exporter = InMemorySpanExporter()
    provider = TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    with engine_for(settings_for(synthetic.save_synthetic(tmp_path / "synthetic"), api_keys="sk-secret")) as engine:
        client = TestClient(create_app(ready(engine), Tracing(provider)))
        offered = ["realtime", "openai-insecure-api-key.sk-secret"]
        with client.websocket_connect("/v1/realtime?model=whisper-1", subprotocols=offered) as socket:
            assert socket.receive_json()["type"] == "session.created"
    [span] = [span for span in exporter.get_finished_spans() if span.name == "GET /v1/realtime"]
    assert span.attributes and span.attributes["http.route"] == "/v1/realtime"
    assert "secret" not in "".join(span.to_json() for span in exporter.get_finished_spans())


@pytest.fixture
def collector() -> Iterator[tuple[str, "Queue[tuple[str, bytes]]"]]:
    """A local OTLP collector: its address, and the requests it receives as (path, body)."""
    received: Queue[tuple[str, bytes]] = Queue()

    class Collector(http.server.BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            received.put((self.path, self.rfile.read(int(self.headers["Content-Length"]))))
            self.send_response(200)
            self.end_headers()

        def log_message(self, format: str, *arguments: object) -> None:
            """No line for each request on the tests' stderr."""

    with http.server.HTTPServer(("127.0.0.1", 0), Collector) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        yield f"http://127.0.0.1:{server.server_address[1]}", received
        server.shutdown()
        thread.join()


def test_spans_go_where_opentelemetrys_variables_say(
    collector: tuple[str, "Queue[tuple[str, bytes]]"], monkeypatch: pytest.MonkeyPatch
) -> None:
    address, received = collector
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", address)
    tracing = open_tracing()
    run = Run()
    run.future.set_exception(ClientGone())
    tracing.run_ended(run)
    tracing.close()
    path, body = received.get(timeout=60)
    assert path == "/v1/traces" and b"transcription" in body and b"service.name" in body and b"wisp" in body


def test_without_the_extra_the_start_is_refused_by_its_name(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "opentelemetry.sdk.trace", None)
    with pytest.raises(StartError, match=r"\[otel\]") as raised:
        serve(Settings(tracing="otlp"))
    assert "WISP_TRACING" in str(raised.value)
