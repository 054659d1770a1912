"""Wisp on a local Ray: the service under Ray Serve, and the Ray Data job. Run by `make ray-test`, which brings Ray."""

import json
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest
from openai import BadRequestError, OpenAI

from service.audio.decode import decode
from service.http.app import Engine
from service.settings import Settings
from service.transcription.transcriber import Options
from tests.support.serving import wav

ray = pytest.importorskip("ray", reason="Ray is not installed: make ray-test brings it")
serve = pytest.importorskip("ray.serve")
parquet = pytest.importorskip("pyarrow.parquet")

from deploy.ray.service import app  # noqa: E402 (only where Ray is)
from deploy.ray.transcribe_folder import transcribe_folder  # noqa: E402

pytestmark = pytest.mark.filterwarnings("default")  # Ray's own warnings aren't ours to fix


@pytest.fixture(scope="module")
def cluster() -> Iterator[None]:
    """A Ray of this machine alone, whose actors take the embedded model and the CPU."""
    environment = {"WISP_MODEL": "embedded", "WISP_TARGET": "cpu", "PYTHONPATH": str(Path.cwd())}
    ray.init(num_cpus=4, include_dashboard=False, logging_level="warning", runtime_env={"env_vars": environment})
    yield
    ray.shutdown()


@pytest.fixture(scope="module")
def recordings(shared: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[Path, str]:
    """Files in one folder → the text that Wisp itself gives."""
    folder = tmp_path_factory.mktemp("recordings")
    (folder / "speech.wav").write_bytes((shared / "speech/jfk.wav").read_bytes())
    (folder / "tone.wav").write_bytes(wav(1.0))
    engine = Engine(Settings(model="embedded", target="cpu"))
    transcriber = engine.load()
    texts = {}
    for path in sorted(folder.iterdir()):
        with path.open("rb") as file:
            texts[path] = transcriber.transcribe(decode(file), Options()).text
    engine.close()
    return texts


@pytest.fixture(scope="module")
def client(cluster: None) -> Iterator[OpenAI]:
    """OpenAI's client of a Wisp under Ray Serve."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    serve.start(http_options={"host": "127.0.0.1", "port": port})
    serve.run(app, name="wisp", route_prefix="/")
    yield OpenAI(base_url=f"http://127.0.0.1:{port}/v1", api_key="none")
    serve.shutdown()


def test_ray_serve_answers_as_wisp_does(client: OpenAI, recordings: dict[Path, str]) -> None:
    for path, text in recordings.items():
        verbose = client.audio.transcriptions.create(model="whisper-1", file=path, response_format="verbose_json")
        assert verbose.text == text
        with path.open("rb") as file:
            events = list(client.audio.transcriptions.create(model="whisper-1", file=file, stream=True))
        assert events[-1].type == "transcript.text.done" and events[-1].text == text


def test_a_bad_file_is_the_clients_fault_under_ray_too(client: OpenAI) -> None:
    with pytest.raises(BadRequestError) as refused:
        client.audio.transcriptions.create(model="whisper-1", file=("words.wav", b"not sound"))
    assert refused.value.param == "file"


def test_a_folder_becomes_parquet(cluster: None, recordings: dict[Path, str], tmp_path: Path) -> None:
    folder = next(iter(recordings)).parent
    (folder / "words.txt").write_text("not sound")
    transcribe_folder(str(folder), str(tmp_path / "out"), concurrency=1, cpus=1, may_be_embedded=True)
    rows = {Path(row["path"]).name: row for row in parquet.read_table(tmp_path / "out").to_pylist()}
    assert set(rows) == {path.name for path in folder.iterdir()}
    for path, text in recordings.items():
        row = rows[path.name]
        assert (row["text"], row["error"]) == (text, None)
        assert "".join(segment["text"] for segment in json.loads(row["segments"])).strip() == text
    assert rows["speech.wav"]["duration"] == pytest.approx(11.0) and rows["speech.wav"]["language"] == "en"
    assert rows["words.txt"]["text"] is None and "format is not known" in rows["words.txt"]["error"]


def test_a_job_refuses_the_embedded_model_by_itself(cluster: None, recordings: dict[Path, str], tmp_path: Path) -> None:
    folder = next(iter(recordings)).parent
    with pytest.raises(Exception, match=r"small embedded model.*--embedded"):
        transcribe_folder(str(folder), str(tmp_path / "out"), concurrency=1, cpus=1)
