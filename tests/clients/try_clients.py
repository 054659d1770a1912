"""Real client packages, each with its own defaults, against the server at WISP_URL: `make clients`.

Every function below is one client's shortest way from the recording at WISP_SPEECH to text. Prints a line for each.
"""

import asyncio
import contextlib
import os
import re
import socket
import subprocess
import sys
import traceback
import wave
from collections.abc import Callable
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from realtime_clients import REALTIME

URL = os.environ["WISP_URL"].removesuffix("/")  # with /v1
SPEECH = Path(os.environ["WISP_SPEECH"])  # a WAV file, 16 bits, mono
SAID = os.environ["WISP_SAID"]  # words of it, in lower case
KEY = "none"

CLIENTS: dict[str, Callable[[], str]] = {}  # a package and a way to use it → the text


def client(name: str) -> Callable[[Callable[[], Any]], None]:
    """Register a function as the client of that name: its first word is its package."""

    def register(call: Callable[[], Any]) -> None:
        def run() -> str:
            found = call()
            return str(asyncio.run(found) if asyncio.iscoroutine(found) else found)

        CLIENTS[name] = run

    return register


@client("openai")
def _() -> str:
    import openai

    with SPEECH.open("rb") as file:
        return (
            openai.OpenAI(base_url=URL, api_key=KEY).audio.transcriptions.create(model="gpt-transcribe", file=file).text
        )


@client("openai Azure")
def _() -> str:
    import openai

    azure = openai.AzureOpenAI(
        azure_endpoint=URL.removesuffix("/v1"), api_key=KEY, api_version="2024-06-01", azure_deployment="whisper"
    )
    with SPEECH.open("rb") as file:
        return azure.audio.transcriptions.create(model="whisper", file=file).text


@client("groq")
def _() -> str:
    import groq

    with SPEECH.open("rb") as file:
        sent = ("speech.wav", file.read())
    return str(
        groq.Groq(base_url=URL.removesuffix("/v1"), api_key=KEY)
        .audio.transcriptions.create(model="whisper-large-v3", file=sent)
        .text
    )


@client("litellm")
def _() -> str:
    import litellm

    with SPEECH.open("rb") as file:
        return str(litellm.transcription(model="openai/whisper-1", file=file, api_base=URL, api_key=KEY).text)


@client("litellm stream")
def _() -> str:
    import litellm

    with SPEECH.open("rb") as file:
        answer = litellm.transcription(
            model="openai/gpt-4o-transcribe", file=file, api_base=URL, api_key=KEY, stream=True
        )
    return str(getattr(answer, "text", "") or "".join(getattr(event, "delta", "") for event in answer))


@client("langchain-community")
def _() -> str:
    import imageio_ffmpeg
    import pydub
    from langchain_community.document_loaders import Blob
    from langchain_community.document_loaders.parsers.audio import OpenAIWhisperParser

    pydub.AudioSegment.converter = imageio_ffmpeg.get_ffmpeg_exe()

    parser = OpenAIWhisperParser(api_key=KEY, base_url=URL)
    return " ".join(document.page_content for document in parser.lazy_parse(Blob.from_path(SPEECH)))


@client("SpeechRecognition")
def _() -> str:
    import speech_recognition

    os.environ |= {"OPENAI_API_KEY": KEY, "OPENAI_BASE_URL": URL}
    recognizer = speech_recognition.Recognizer()
    with speech_recognition.AudioFile(str(SPEECH)) as source:
        audio = recognizer.record(source)
    return str(recognizer.recognize_openai(audio))


@client("SpeechRecognition Groq")
def _() -> str:
    import speech_recognition

    os.environ |= {"GROQ_API_KEY": KEY, "GROQ_BASE_URL": URL.removesuffix("/v1")}
    recognizer = speech_recognition.Recognizer()
    with speech_recognition.AudioFile(str(SPEECH)) as source:
        audio = recognizer.record(source)
    return str(recognizer.recognize_groq(audio))


@client("livekit-plugins-openai")
async def _() -> str:
    from livekit import rtc
    from livekit.plugins import openai

    with wave.open(str(SPEECH)) as file:
        data, rate = file.readframes(file.getnframes()), file.getframerate()
    frame = rtc.AudioFrame(data=data, sample_rate=rate, num_channels=1, samples_per_channel=len(data) // 2)
    event = await openai.STT(base_url=URL, api_key=KEY).recognize(frame)
    return str(event.alternatives[0].text)


@client("pipecat-ai")
async def _() -> str:
    from pipecat.services.openai.stt import OpenAISTTService

    return await _pipecat(OpenAISTTService(base_url=URL, api_key=KEY))


@client("pipecat-ai Groq")
async def _() -> str:
    from pipecat.services.groq.stt import GroqSTTService

    return await _pipecat(GroqSTTService(base_url=URL, api_key=KEY))


async def _pipecat(service: Any) -> str:
    frames = [frame async for frame in service.run_stt(SPEECH.read_bytes())]
    return " ".join(frame.text for frame in frames if hasattr(frame, "text"))


@client("wyoming-openai")
async def _() -> str:
    from wyoming.asr import Transcribe, Transcript
    from wyoming.audio import wav_to_chunks
    from wyoming.client import AsyncTcpClient

    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "wyoming_openai", "--uri", f"tcp://127.0.0.1:{port}"]
    bridge = subprocess.Popen([*command, "--stt-openai-url", URL, "--stt-models", "whisper-1"], stdout=sys.stderr)
    try:
        while True:
            with contextlib.suppress(ConnectionRefusedError):
                async with AsyncTcpClient("127.0.0.1", port) as home, asyncio.timeout(60):
                    await home.write_event(Transcribe(language="en").event())
                    with wave.open(str(SPEECH)) as file:
                        for chunk in wav_to_chunks(file, 1024, start_event=True, stop_event=True):
                            await home.write_event(chunk.event())
                    while event := await home.read_event():
                        if Transcript.is_type(event.type):
                            return str(Transcript.from_event(event).text)
                    return ""
            assert bridge.poll() is None, "the bridge did not start"
            await asyncio.sleep(0.1)
    finally:
        bridge.kill()
        bridge.wait()


for name, call in REALTIME.items():
    client(name)(call)


def installed(package: str) -> str:
    """Its version, or an empty text."""
    try:
        return version(package)
    except PackageNotFoundError:
        return ""


def main() -> int:
    """Try the packages that the arguments name, or all installed ones; the exit status is the number that failed."""
    failed = 0
    for name, run in CLIENTS.items():
        package = name.split()[0]
        if (package not in sys.argv[1:]) if sys.argv[1:] else not installed(package):
            continue
        heard, reason = "", ""
        with contextlib.redirect_stdout(sys.stderr):
            try:
                heard = run()
            except Exception:
                reason = traceback.format_exc()
        is_right = SAID in " ".join(re.sub(r"[^\w\s]", "", heard.lower()).split())  # live speech is cut at its pauses
        failed += not is_right
        sys.stdout.write(f"{'ok  ' if is_right else 'FAIL'} {name} {installed(package)}: {heard!r}\n{reason}")
        sys.stdout.flush()
    return failed


if __name__ == "__main__":
    sys.exit(main())
