"""Home Assistant's protocol, spoken by its own client library."""

import asyncio
import re
import signal
import subprocess
import sys
from collections.abc import Coroutine, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
import soxr
from wyoming.asr import Transcribe, Transcript, TranscriptChunk, TranscriptStop
from wyoming.audio import AudioChunk, AudioStart, AudioStop
from wyoming.client import AsyncTcpClient
from wyoming.error import Error
from wyoming.event import Event
from wyoming.info import Describe, Info
from wyoming.ping import Ping, Pong

from service.audio.pcm import PcmFormat
from service.cli.main import main
from service.errors import StartError
from service.http.app import Engine
from service.settings import Settings
from service.wyoming.hearing import Hearing
from service.wyoming.server import check_exposure
from tests.service.wyoming.conftest import Opened, Port
from tests.support import serving, synthetic
from tests.support.processes import server_process
from tests.support.serving import engine_for, ready, settings_for
from tests.support.spoken import JFK, likeness


@pytest.fixture(scope="module")
def speech(tiny_en: Path) -> Iterator[Engine]:
    """tiny.en, loaded; with silence left out, as by default."""
    with engine_for(settings_for(tiny_en, vad="skip")) as engine:
        yield ready(engine)


@pytest.fixture(scope="module")
def quick(folder: Path) -> Iterator[Engine]:
    """A model that always says the same, within small limits."""
    with engine_for(settings_for(folder, live_sessions=4, live_step_s=0.5)) as engine:
        yield ready(engine)


@pytest.fixture(scope="module")
def jfk(shared: Path) -> np.ndarray[Any, Any]:
    samples, rate = soundfile.read(shared / "speech" / "jfk.wav", dtype="float32")
    assert rate == 16_000
    return samples  # type: ignore[no-any-return]


def pcm(samples: np.ndarray[Any, Any], rate: int = 16_000, width: int = 2, channels: int = 1) -> bytes:
    """Mono f32 of 16 kHz in another format."""
    resampled = soxr.resample(samples, 16_000, rate) if rate != 16_000 else samples
    frames = np.repeat(np.clip(resampled, -0.99, 0.99)[:, None], channels, axis=1)
    if width == 1:
        return bytes((frames * 127 + 128).astype(np.uint8).tobytes())
    whole = (frames * 2 ** (8 * width - 1)).astype("<i4")
    return bytes(whole.view(np.uint8).reshape(-1, 4)[:, :width].tobytes())


def run(work: Coroutine[Any, Any, Any]) -> Any:
    return asyncio.run(asyncio.wait_for(work, 240))


async def say(
    client: AsyncTcpClient,
    data: bytes,
    *,
    rate: int = 16_000,
    width: int = 2,
    channels: int = 1,
    size: int = 2048,
    pace: float = 0.0,
    stops: bool = True,
    **asked: Any,
) -> None:
    """Send audio as Home Assistant does."""
    await client.write_event(Transcribe(**asked).event())
    await client.write_event(AudioStart(rate, width, channels).event())
    for at in range(0, len(data), size):
        await client.write_event(AudioChunk(rate, width, channels, data[at : at + size]).event())
        await asyncio.sleep(size / (rate * width * channels) * pace)
    if stops:
        await client.write_event(AudioStop().event())


async def heard(client: AsyncTcpClient, last: Any = TranscriptStop) -> list[Event]:
    """The events up to one of that type."""
    events: list[Event] = []
    while True:
        event = await client.read_event()
        assert event is not None, events
        events.append(event)
        if last.is_type(event.type):
            return events


def transcript_of(events: list[Event]) -> Transcript:
    """Checks the order: start, chunks, the whole, stop; the chunks joined are the whole."""
    kinds = [event.type for event in events]
    n_chunks = kinds.count("transcript-chunk")
    assert kinds == ["transcript-start", *["transcript-chunk"] * n_chunks, "transcript", "transcript-stop"]
    transcript = Transcript.from_event(events[-2])
    assert "".join(TranscriptChunk.from_event(event).text for event in events[1:-2]).strip() == transcript.text
    return transcript


def test_what_it_is(speech: Engine, opened: Opened) -> None:
    async def work() -> Info:
        async with opened(speech) as port, port.client() as client:
            await client.write_event(Describe().event())
            (event,) = await heard(client, Info)
            return Info.from_event(event)

    info = run(work())
    (program,) = info.asr
    assert (program.name, program.installed, program.supports_transcript_streaming) == ("Wisp", True, True)
    assert program.version and program.attribution.url and not (info.tts or info.wake or info.intent)
    model = program.models[0]
    assert (model.name, model.languages, model.installed) == ("tiny_en", ["en"], True)
    assert len({model.name for model in program.models}) == len(program.models)


def test_the_languages_are_known_before_the_model_is_loaded(folder: Path, opened: Opened) -> None:
    async def work(engine: Engine) -> Info:
        async with opened(engine) as port, port.client() as client:
            await client.write_event(Describe().event())
            return Info.from_event((await heard(client, Info))[0])

    with engine_for(settings_for(folder)) as engine:
        assert run(work(engine)).asr[0].models[0].languages == ["en"]
        assert not engine.loaded.done()


def test_the_languages_of_a_loaded_model_are_read_from_no_file(tmp_path: Path, opened: Opened) -> None:
    """Nor does a damaged file change which model is the default."""
    many = synthetic.save_synthetic(tmp_path / "many", multilingual=True)

    async def work(engine: Engine) -> Info:
        async with opened(engine) as port, port.client() as client:
            await client.write_event(Describe().event())
            return Info.from_event((await heard(client, Info))[0])

    with engine_for(settings_for(many)) as engine:
        ready(engine)
        spec = engine.spec
        for file in many.iterdir():
            file.write_bytes(b"damaged")
        assert "de" in run(work(engine)).asr[0].models[0].languages
        assert engine.spec is spec


def test_ping(quick: Engine, opened: Opened) -> None:
    async def work() -> list[Any]:
        async with opened(quick) as port, port.client() as client:
            for text in ("are you there", None):
                await client.write_event(Ping(text).event())
            return [Pong.from_event((await heard(client, Pong))[0]).text for _ in range(2)]

    assert run(work()) == ["are you there", None]


def test_words_come_while_you_speak(speech: Engine, opened: Opened, jfk: np.ndarray[Any, Any]) -> None:
    """In real time, as a microphone does. Some words are settled before the speaker has finished."""

    async def work() -> tuple[list[Event], list[Event]]:
        async with opened(speech) as port, port.client() as client:
            speaking = asyncio.create_task(say(client, pcm(jfk), pace=1.0, stops=False, language="en"))
            before: list[Event] = []
            while not speaking.done():
                reading = asyncio.create_task(client.read_event())
                await asyncio.wait({reading, speaking}, return_when=asyncio.FIRST_COMPLETED)
                if reading.done():
                    event = reading.result()
                    assert event is not None
                    before.append(event)
                else:
                    await client.write_event(AudioStop().event())
                    event = await reading
                    assert event is not None
                    after = [event]
            return before, after + ([] if TranscriptStop.is_type(after[-1].type) else await heard(client))

    before, after = run(work())
    assert [event.type for event in before[:2]] == ["transcript-start", "transcript-chunk"]
    transcript = transcript_of([*before, *after])
    assert likeness(transcript.text) > 0.85 and transcript.language == "en"


@pytest.mark.parametrize(
    ("rate", "width", "channels", "size"),
    [(16_000, 2, 1, 1024), (8_000, 2, 1, 777), (44_100, 2, 2, 5000), (48_000, 3, 2, 100_000), (22_050, 4, 1, 10**7)],
)
def test_any_format_is_heard(
    speech: Engine, opened: Opened, jfk: np.ndarray[Any, Any], rate: int, width: int, channels: int, size: int
) -> None:
    async def work() -> Transcript:
        async with opened(speech) as port, port.client() as client:
            data = pcm(jfk, rate, width, channels)
            await say(client, data, rate=rate, width=width, channels=channels, size=size)
            return transcript_of(await heard(client))

    assert likeness(run(work()).text) > 0.85


def test_one_connection_may_ask_again_and_two_clients_at_once(
    speech: Engine, opened: Opened, jfk: np.ndarray[Any, Any]
) -> None:
    async def one(port: Port, part: np.ndarray[Any, Any]) -> list[str]:
        async with port.client() as client:
            texts: list[str] = []
            for _ in range(2):
                await say(client, pcm(part), name="tiny.en", language="en-US")
                texts.append(transcript_of(await heard(client)).text)
            return texts

    async def work() -> Any:
        async with opened(speech) as port:
            return await asyncio.gather(one(port, jfk[: 16_000 * 3]), one(port, jfk[-16_000 * 3 :]))

    first, second = run(work())
    for text in first:
        assert likeness(text, "and so my fellow americans") > 0.7
    for text in second:
        assert likeness(text, "what you can do for your country") > 0.7


def test_the_next_utterance_may_be_sent_before_the_last_is_answered(quick: Engine, opened: Opened) -> None:
    async def work() -> list[str]:
        async with opened(quick) as port, port.client() as client:
            for _ in range(3):
                await say(client, pcm(serving.tone(1.0)))
            return [transcript_of(await heard(client)).text for _ in range(3)]

    assert run(work()) == [synthetic.SENTENCE] * 3


@pytest.mark.parametrize("seconds", [0.0, 0.05])
def test_no_words_are_an_empty_transcript(quick: Engine, opened: Opened, seconds: float) -> None:
    async def work() -> Transcript:
        async with opened(quick) as port, port.client() as client:
            await say(client, pcm(np.zeros(int(seconds * 16_000), np.float32)))
            return transcript_of(await heard(client))

    assert run(work()).text == ""


def test_silence_has_no_words(speech: Engine, opened: Opened) -> None:
    async def work() -> Transcript:
        async with opened(speech) as port, port.client() as client:
            await say(client, bytes(2 * 16_000 * 75), size=1 << 16)
            return transcript_of(await heard(client))

    assert run(work()).text == ""


async def last_error(client: AsyncTcpClient) -> Error:
    """The error, after which the connection ends."""
    error = Error.from_event((await heard(client, Error))[-1])
    assert await client.read_event() is None
    return error


@pytest.mark.parametrize(
    ("asked", "code", "says"),
    [
        ({"name": "large-v9"}, "model_not_found", "large-v9"),
        ({"language": "klingon"}, "invalid_value", "klingon"),
        ({"language": "de", "name": "synthetic"}, "unsupported_value", "German"),
    ],
)
def test_what_cannot_be_done_is_an_error_and_the_end(
    quick: Engine, opened: Opened, asked: dict[str, Any], code: str, says: str
) -> None:
    """Home Assistant sends all audio before it reads: the error must not be lost by then."""

    async def work() -> Error:
        async with opened(quick) as port, port.client() as client:
            await say(client, pcm(serving.tone(2.0)), **asked)
            return await last_error(client)

    error = run(work())
    assert error.code == code and says in error.text


@pytest.mark.parametrize("seconds", [1.0, 31.0])
def test_a_failure_is_an_error_and_the_end(folder: Path, opened: Opened, seconds: float) -> None:
    """A long utterance's is known before it ends."""

    async def work(engine: Engine) -> Error:
        async with opened(engine) as port, port.client() as client:
            sound = pcm(serving.tone(seconds))
            await say(client, sound, stops=seconds < 30, transcript_names=[serving.TRAP])
            speaking = asyncio.create_task(say(client, bytes(3200) * 600, size=3200, pace=1.0, stops=False))
            try:
                return await last_error(client)
            finally:
                speaking.cancel()
                with suppress(asyncio.CancelledError, OSError):
                    await speaking

    with engine_for(settings_for(folder), guest=serving.HOSTILE_GUEST) as engine:
        error = run(work(ready(engine)))
    assert error.code == "internal_error" and "Traceback" not in error.text


def test_a_new_question_ends_the_last_one(tmp_path: Path, opened: Opened) -> None:
    """Without its audio-stop; the language of the new one counts."""
    many = synthetic.save_synthetic(tmp_path / "many", multilingual=True)

    async def work(engine: Engine) -> list[str | None]:
        async with opened(engine) as port, port.client() as client:
            await say(client, pcm(serving.tone(1.0)), language="de", stops=False)
            await say(client, pcm(serving.tone(1.0)), language="en")
            return [transcript_of(await heard(client)).language for _ in range(2)]

    with engine_for(settings_for(many)) as engine:
        assert run(work(ready(engine))) == ["de", "en"]


def test_a_language_goes_to_a_model_that_speaks_it(tmp_path: Path, opened: Opened) -> None:
    english = synthetic.save_synthetic(tmp_path / "models" / "english")
    synthetic.save_synthetic(tmp_path / "models" / "many", multilingual=True)

    async def work(engine: Engine) -> tuple[Info, str]:
        async with opened(engine) as port, port.client() as client:
            await client.write_event(Describe().event())
            info = Info.from_event((await heard(client, Info))[0])
            await say(client, pcm(serving.tone(1.0)), language="de")
            return info, transcript_of(await heard(client)).text

    with engine_for(settings_for(english, models_dir=str(tmp_path / "models"))) as engine:
        info, text = run(work(ready(engine)))
        assert [transcriber.model.name for transcriber in engine.served.transcribers()] == ["english", "many"]
    assert "de" in next(model for model in info.asr[0].models if model.name == "many").languages
    assert text == synthetic.SENTENCE


HOSTILE = {
    "not JSON": b"GET / HTTP/1.1\r\n\r\n",
    "not an object": b"[1]\n",
    "no type": b'{"data": {}}\n',
    "deep": b'{"type": ' + b"[" * 50_000 + b"\n",
    "not UTF-8": b'{"type": "\xff"}\n',
    "an endless line": b'{"type": "' + b"x" * 200_000,
    "much data": b'{"type": "describe", "data_length": 1000000000}\n',
    "negative data": b'{"type": "describe", "data_length": -1}\n',
    "a payload without end": b'{"type": "audio-chunk", "payload_length": 1e308}\n',
    "data of another kind": b'{"type": "transcribe", "data_length": 2}\n[]',
    "a name that is none": b'{"type": "transcribe", "data": {"name": 5}}\n',
    "names that are none": b'{"type": "transcribe", "data": {"transcript_names": "x"}}\n',
    "a rate that is none": b'{"type": "audio-start", "data": {"rate": 0, "width": 2, "channels": 1}}\n',
    "no rate": b'{"type": "audio-chunk", "payload_length": 4}\nabcd',
    "many channels": b'{"type": "audio-start", "data": {"rate": 16000, "width": 2, "channels": 1000000}}\n',
}


@pytest.mark.parametrize("sent", HOSTILE.values(), ids=HOSTILE)
def test_garbage_is_an_error_and_the_end(
    quick: Engine, opened: Opened, sent: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    async def work() -> tuple[Error, int]:
        async with opened(quick) as port:
            async with port.client() as client:
                assert client._writer is not None
                client._writer.write(sent)
                error = await last_error(client)
            await gone(port)
            async with port.client() as client:  # the next client is served
                await client.write_event(Ping().event())
                await heard(client, Pong)
            return error, port.service.live.n_open()

    error, _ = run(work())
    assert error.text.endswith(".") and error.code
    assert not [record for record in caplog.records if record.levelname == "ERROR"], caplog.text


async def gone(port: Port) -> None:
    """Wait until all connections are, with what they held."""
    for _ in range(2000):
        if not (port.tasks or port.service.live.n_open()):
            return
        await asyncio.sleep(0.01)
    raise AssertionError("connections are left")


def n_under_way(port: Port) -> int:
    return sum(transcriber.n_under_way for transcriber in port.service.engine.served.transcribers())


@pytest.mark.parametrize("when", ["at once", "in a line", "in a payload", "in the middle", "before the answer"])
def test_a_client_that_leaves_frees_all(quick: Engine, opened: Opened, when: str) -> None:
    async def work() -> int:
        async with opened(quick) as port:
            for abruptly in (False, True):
                async with port.client() as client:
                    assert client._writer is not None
                    if when == "in a line":
                        client._writer.write(b'{"type": "desc')
                    if when == "in a payload":
                        head = b'{"type": "audio-chunk", "data": {"rate": 16000, "width": 2, "channels": 1}, '
                        client._writer.write(head + b'"payload_length": 100000}\n' + bytes(500))
                    if when in ("in the middle", "before the answer"):
                        await say(client, pcm(serving.tone(2.0)), stops=when == "before the answer")
                    if abruptly:
                        client._writer.transport.abort()
                await gone(port)
            for _ in range(2000):  # a run ends at its guest's next call
                if not n_under_way(port):
                    return 0
                await asyncio.sleep(0.01)
            return n_under_way(port)

    assert run(work()) == 0


def test_a_silent_client_is_sent_away_and_what_it_said_is_answered(folder: Path, opened: Opened) -> None:
    async def work(engine: Engine) -> tuple[Transcript, Event | None]:
        async with opened(engine) as port:
            async with port.client() as client:
                await say(client, pcm(serving.tone(1.0)), stops=False)
                events = await heard(client)
                end = await client.read_event()
            async with port.client() as client:
                end = end or await client.read_event()
            await gone(port)
            return transcript_of(events), end

    with engine_for(settings_for(folder, live_idle_s=1.0)) as engine:
        transcript, end = run(work(ready(engine)))
    assert transcript.text == synthetic.SENTENCE and end is None


def test_a_session_has_an_end(folder: Path, opened: Opened) -> None:
    """Of a client that never stops to send."""

    async def work(engine: Engine) -> Transcript:
        async with opened(engine) as port, port.client() as client:
            speaking = asyncio.create_task(say(client, bytes(2 * 16_000 * 600), size=3200, pace=1.0, stops=False))
            try:
                return transcript_of(await heard(client))
            finally:
                speaking.cancel()
                with suppress(asyncio.CancelledError, OSError):
                    await speaking

    with engine_for(settings_for(folder, live_max_s=1.0)) as engine:
        assert synthetic.SENTENCE in run(work(ready(engine))).text


@pytest.mark.parametrize("ending", ["time", "stop"])
def test_a_client_that_never_pauses_does_not_delay_the_end(
    folder: Path, opened: Opened, monkeypatch: pytest.MonkeyPatch, ending: str
) -> None:
    """Its next event is always there."""
    n_heard, transcripts = 0, list[Transcript]()

    async def hear(hearing: Hearing, format: PcmFormat, data: bytes) -> None:
        nonlocal n_heard
        n_heard += 1
        await asyncio.sleep(0.02)

    async def work(engine: Engine) -> None:
        async with opened(engine) as port:
            with suppress(ConnectionError):  # closing a connection that the server has reset
                async with port.client() as client:
                    speaking = asyncio.create_task(say(client, bytes(3200 * 1000), size=3200, stops=False))
                    if ending == "stop":
                        await asyncio.sleep(0.5)
                        port.service.live.stop()
                    transcripts.append(transcript_of(await heard(client)))
                    speaking.cancel()
                    with suppress(asyncio.CancelledError, OSError):
                        await speaking

    monkeypatch.setattr(Hearing, "hear", hear)
    with engine_for(settings_for(folder, live_max_s=1.0 if ending == "time" else 60.0)) as engine:
        run(work(ready(engine)))
    assert [transcript.text for transcript in transcripts] == [""] and 0 < n_heard < 500


def test_one_connection_too_many(quick: Engine, opened: Opened) -> None:
    async def work() -> Error:
        async with opened(quick) as port:
            clients = [port.client() for _ in range(4)]
            for client in clients:
                await client.connect()
                await client.write_event(Ping().event())
                await heard(client, Pong)
            async with port.client() as client:
                error = await last_error(client)
            for client in clients:
                await client.disconnect()
            await gone(port)
            async with port.client() as client:
                await client.write_event(Ping().event())
                await heard(client, Pong)
            return error

    assert run(work()).code == "live_sessions_full"


def test_a_client_that_reads_nothing_is_cut_off(quick: Engine, opened: Opened) -> None:
    async def work() -> None:
        async with opened(quick) as port:
            with suppress(ConnectionError):
                async with port.client() as client:
                    while True:
                        await client.write_event(Ping("x" * 30_000).event())
            await gone(port)

    run(work())


def test_faster_than_real_time_nothing_is_lost(speech: Engine, opened: Opened, shared: Path) -> None:
    """Nor held: the client waits while half a minute of its audio does."""
    waiting: list[float] = []
    folder = shared / "speech" / "librispeech"
    lines = (line.split("\t") for line in (folder / "transcripts.tsv").read_text().splitlines())
    said = {name: text for name, *_, text in lines if name.startswith("1688-142285-")}
    clips = [soundfile.read(folder / f"{name}.flac", dtype="float32")[0] for name in said]
    assert sum(map(len, clips)) > 60 * 16_000

    async def work() -> str:
        async with opened(speech) as port, port.client() as client:
            await say(client, pcm(np.concatenate(clips)), size=1 << 16)
            return transcript_of(await heard(client)).text

    with pytest.MonkeyPatch.context() as patch:
        hear = Hearing.hear

        async def watched(hearing: Hearing, format: PcmFormat, data: bytes) -> None:
            await hear(hearing, format, data)
            waiting.append(hearing._listener.buffered_s)

        patch.setattr(Hearing, "hear", watched)
        text = run(work())
    assert likeness(text, " ".join(said.values())) > 0.75
    assert 0 < max(waiting) < 35


def test_a_stopping_server_sends_the_last_words(folder: Path, tmp_path: Path) -> None:
    number = free_port()

    async def work() -> tuple[Transcript, Event | None]:
        async with (
            AsyncTcpClient("127.0.0.1", number, read_timeout=60) as client,
            AsyncTcpClient("127.0.0.1", number) as idle,
        ):
            await say(client, pcm(serving.tone(1.5)), stops=False)
            await idle.write_event(Ping().event())
            await heard(idle, Pong)
            server.signal(signal.SIGTERM)
            transcript = transcript_of(await heard(client))
            assert await idle.read_event() is None
            return transcript, await client.read_event()

    with server_process(folder, tmp_path, wyoming=number) as server:
        assert f"listening for Home Assistant (Wyoming) on port {number}" in server.log
        transcript, end = run(work())
        server.end()
    assert transcript.text == synthetic.SENTENCE and end is None
    assert server.log.rstrip().endswith("stopped") and "Traceback" not in server.log, server.log


def test_wyoming_bench_is_content(tiny_en: Path, shared: Path, tmp_path: Path) -> None:
    corpus, number = tmp_path / "corpus", free_port()
    corpus.mkdir()
    (corpus / "jfk.wav").write_bytes((shared / "speech" / "jfk.wav").read_bytes())
    (corpus / "jfk.txt").write_text(JFK)
    with server_process(tiny_en, tmp_path, wyoming=number):
        bench = [sys.executable, "-c", "from wyoming_bench.cli import main; main()", "stt", f"127.0.0.1:{number}"]
        ended = subprocess.run(
            [*bench, "--corpus", str(corpus), "--rounds", "1", "--warmup", "0", "--timeout", "120"],
            capture_output=True,
            text=True,
        )
    assert ended.returncode == 0, ended.stderr
    for mode in ("non_streaming", "streaming"):
        assert f"[{mode}] ok=1 fail=0" in ended.stdout
    assert all(float(rate) < 20 for rate in re.findall(r"WER=([\d.]+)%", ended.stdout)), ended.stdout


def free_port() -> int:
    from service.http.app import listen

    with listen("127.0.0.1", 0) as listener:
        return int(listener.getsockname()[1])


@pytest.mark.parametrize(
    ("changes", "is_refused"),
    [
        ({}, False),
        ({"host": "::1"}, False),
        ({"host": "0.0.0.0"}, True),
        ({"host": "0.0.0.0", "api_keys": "k"}, True),
        ({"host": "0.0.0.0", "allow_public_without_key": "yes"}, False),
        ({"host": "0.0.0.0", "published": "127.0.0.1:8080"}, True),
        ({"host": "0.0.0.0", "wyoming_published": "127.0.0.1:10300"}, False),
        ({"host": "0.0.0.0", "wyoming_published": "10300"}, True),
    ],
)
def test_others_reach_it_only_if_that_is_allowed(changes: dict[str, str], is_refused: bool) -> None:
    settings = Settings(wyoming=10300, **changes)  # type: ignore[arg-type]
    if is_refused:
        with pytest.raises(StartError, match="WISP_ALLOW_PUBLIC_WITHOUT_KEY=yes"):
            check_exposure(settings)
    else:
        check_exposure(settings)


def test_a_taken_port_is_a_sentence(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from service.http.app import listen

    with listen("127.0.0.1", 0) as taken:
        number = taken.getsockname()[1]
        assert main(["serve", "--model", str(folder), "--port", "0", "--wyoming", str(number)]) == 1
    said = capsys.readouterr().err
    assert f"port {number}" in said and "--wyoming" in said and "WISP_WYOMING" in said


def test_without_the_package_there_is_a_sentence(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in [
        name for name in sys.modules if name.partition(".")[0] == "wyoming" or name.startswith("service.wyoming")
    ]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "wyoming", None)
    assert main(["serve", "--model", str(folder), "--port", "0", "--wyoming", "10300"]) == 1
    assert "extra [wyoming]" in capsys.readouterr().err
