"""The model that comes with Wisp, through the product: what it hears, where it hears nothing, what it says it is."""

import difflib
import io
import json
import logging
import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import soundfile
from starlette.testclient import TestClient
from tokenizers import Tokenizer

from kernels.checkpoints.load import load_checkpoint
from service.audio.decode import SAMPLE_RATE
from service.http.app import Engine, create_app
from service.models.places import EMBEDDED_NAME
from service.settings import Settings
from tests.conftest import ROOT
from tests.support.serving import PATH

EMBEDDED = ROOT / "assets" / "embedded"
MAX_BYTES = 24_000_000

SENTENCE = "The train leaves at nine o'clock."
TALK = (
    "We came home late last night, because the road was closed.",
    "My brother made some tea, and we sat down in the kitchen.",
    "The letter on the table was from an old friend of my father.",
    "She said that the summer had been very warm.",
    "There were more people in the town than ever before.",
    "The children went to the river every morning to swim.",
    "After dinner we walked along the street to the station.",
    "Nobody knew when the next train would come.",
    "A man with a black dog told us to wait for another hour.",
    "So we looked at the stars, and talked about the old days.",
    "In the end the train arrived, and everybody was happy.",
    "Tomorrow we will write to her, and tell her the whole story.",
)


@pytest.fixture(scope="module")
def client(tmp_path_factory: pytest.TempPathFactory) -> Iterator[TestClient]:
    """A server of a machine where no model is installed or named."""
    settings = Settings(model="embedded", models_dir=str(tmp_path_factory.mktemp("models")), target="cpu")
    with TestClient(create_app(Engine(settings))) as client:
        yield client


def wav_of(samples: "np.ndarray[tuple[int], np.dtype[np.float32]]") -> bytes:
    """16 kHz mono sound as a 16-bit WAV file."""
    buffer = io.BytesIO()
    soundfile.write(buffer, samples, SAMPLE_RATE, format="WAV", subtype="PCM_16")
    return buffer.getvalue()


def text_of(client: TestClient, sound: bytes, **fields: str) -> str:
    """What the server hears."""
    answer = client.post(PATH, files={"file": ("sound.wav", sound)}, data={"model": "whisper-1", **fields})
    assert answer.status_code == 200, answer.text
    return str(answer.json()["text"])


def test_a_sentence_that_is_spoken_to_a_fresh_server_comes_back(client: TestClient, tmp_path: Path) -> None:
    if shutil.which("espeak-ng") is None:
        pytest.skip("espeak-ng is not installed: nobody speaks the sentence")
    spoken = tmp_path / "spoken.wav"
    subprocess.run(["espeak-ng", "-v", "en-us", "-s", "150", "-w", str(spoken), SENTENCE], check=True)
    assert text_of(client, spoken.read_bytes()).rstrip(".").lower() == SENTENCE.rstrip(".").lower()


def test_a_minute_of_speech_is_heard_to_its_end(client: TestClient, tmp_path: Path) -> None:
    if shutil.which("espeak-ng") is None:
        pytest.skip("espeak-ng is not installed: nobody speaks the sentences")
    spoken = tmp_path / "spoken.wav"
    subprocess.run(["espeak-ng", "-v", "en-us", "-s", "140", "-w", str(spoken), " ".join(TALK)], check=True)
    assert soundfile.info(spoken).duration > 40
    said, heard = (
        re.findall("[a-z']+", text.lower()) for text in (" ".join(TALK), text_of(client, spoken.read_bytes()))
    )
    right = sum(
        block.size for block in difflib.SequenceMatcher(None, said, heard, autojunk=False).get_matching_blocks()
    )
    assert right > 0.8 * len(said), f"{right} of {len(said)} words in {heard}"
    assert len(heard) < 1.1 * len(said)


def quiet_sounds() -> "dict[str, np.ndarray[tuple[int], np.dtype[np.float32]]]":
    """Sounds in which nobody speaks."""
    rng = np.random.default_rng(5)
    at = np.arange(8 * SAMPLE_RATE) / SAMPLE_RATE
    white = rng.normal(size=len(at))
    brown = np.cumsum(white) - np.linspace(0.0, float(white.sum()), len(at))
    hum = sum(np.sin(2 * np.pi * 50 * times * at) / times for times in (1, 2, 3, 5))
    sounds = {
        "silence": np.zeros(len(at)),
        "long silence": np.zeros(30 * SAMPLE_RATE),
        "faint hiss": 0.0005 * white,
        "hiss": 0.02 * white,
        "rumble": 0.1 * brown / np.abs(brown).max(),
        "hum": 0.05 * hum,
        "hum and hiss": 0.03 * hum + 0.005 * white,
        "waves": 0.03 * white * (1 + np.sin(2 * np.pi * 0.2 * at)),
        "a short hiss": 0.02 * white[: SAMPLE_RATE // 2],
    }
    return {name: sound.astype(np.float32) for name, sound in sounds.items()}


@pytest.mark.parametrize("name", quiet_sounds())
def test_where_nobody_speaks_the_text_is_empty(client: TestClient, name: str) -> None:
    assert text_of(client, wav_of(quiet_sounds()[name])) == ""


def test_the_model_list_says_what_it_is_and_how_to_get_a_better_one(client: TestClient) -> None:
    model, *aliases = client.get("/v1/models").json()["data"]
    assert model["id"] == EMBEDDED_NAME and "whisper-1" in [alias["id"] for alias in aliases]
    assert "wisp models pull tiny.en" in model["description"]
    assert client.get("/v1/models/embedded").json() == model


def test_the_log_says_which_model_serves_and_how_to_get_a_better_one(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    engine = Engine(Settings(model="embedded", models_dir=str(tmp_path), target="cpu"))
    try:
        with caplog.at_level(logging.INFO, "wisp"):
            engine.load()
    finally:
        engine.close()
    assert "model embedded on the cpu target" in caplog.text
    assert "wisp models pull tiny.en" in caplog.text


def test_the_committed_model_is_small_and_laid_out_as_whispers() -> None:
    assert sum(path.stat().st_size for path in EMBEDDED.iterdir()) <= MAX_BYTES
    config, generation = (
        json.loads((EMBEDDED / name).read_text()) for name in ("config.json", "generation_config.json")
    )
    tokenizer = Tokenizer.from_file(str(EMBEDDED / "tokenizer.json"))
    dims = load_checkpoint(EMBEDDED).dims
    ids = tokenizer.get_vocab()
    first, last = (ids[f"<|{seconds:.2f}|>"] for seconds in (0, config["max_source_positions"] / 50))
    assert dims.n_audio_ctx == config["max_source_positions"] == last - first
    assert dims.n_vocab == config["vocab_size"] == len(ids) == last + 1
    assert generation["no_timestamps_token_id"] == first - 1
    assert generation["decoder_start_token_id"] == ids["<|startoftranscript|>"]
    assert generation["is_multilingual"] is False
