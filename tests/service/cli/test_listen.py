"""wisp listen: live captions of sound on stdin, by a local model and by a server."""

import asyncio
import json
import os
import pty
import re
import signal
import subprocess
import sys
import termios
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from io import BytesIO, StringIO
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import soundfile
import soxr

from service.audio.pcm import PcmFormat
from service.cli.listen import command, local
from service.cli.listen.captions import JsonLines, Lines, Ordered, Terminal, cells, wrapped
from service.cli.listen.command import Wanted
from service.cli.listen.remote import websocket_url
from service.cli.listen.sources import Stdin
from service.cli.listen.wav_head import WavHead
from service.cli.main import main, printable
from service.errors import ClientGone, DeviceLost, StartError
from service.settings import Settings
from service.transcription.listener import Started, Stopped
from service.transcription.types import Options
from service.transcription.utterance import Heard
from tests.conftest import ROOT
from tests.support import synthetic
from tests.support.processes import server_process
from tests.support.serving import wav
from tests.support.spoken import likeness, words

CODE = "import sys; from service.cli.main import main; sys.exit(main())"


@pytest.fixture(scope="module")
def jfk(shared: Path) -> bytes:
    """11 s of speech: s16le, mono, 16 kHz."""
    samples, rate = soundfile.read(shared / "speech" / "jfk.wav", dtype="int16")
    assert rate == 16_000
    return bytes(samples.astype("<i2").tobytes())


@contextmanager
def listening(*arguments: str, **options: Any) -> Iterator["subprocess.Popen[bytes]"]:
    """wisp listen as a process, killed at the end if it has not ended."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("WISP_")}
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE, **options}
    with subprocess.Popen(
        [sys.executable, "-c", CODE, "listen", *arguments], env={**environment, "PYTHONPATH": str(ROOT)}, **pipes
    ) as process:
        try:
            yield process
        finally:
            process.kill()


def listened(sound: bytes, *arguments: str) -> tuple[str, str, int]:
    """What it writes about sound that comes at once: stdout, stderr, exit code."""
    with listening(*arguments, "-") as process:
        out, errors = process.communicate(sound, timeout=300)
    return out.decode(), errors.decode(), process.returncode


def test_each_utterance_is_a_line(tiny_en: Path, jfk: bytes) -> None:
    out, errors, code = listened(jfk, "--model", str(tiny_en), "--target", "cpu")
    assert (errors, code) == ("", 0)
    assert likeness(out) > 0.85 and len(out.splitlines()) > 1


def test_json_lines_add_up(tiny_en: Path, jfk: bytes) -> None:
    """Also: another rate, two channels, a WAV head that says so."""
    wide = soxr.resample(np.frombuffer(jfk, "<i2"), 16_000, 44_100)
    with soundfile.SoundFile(buffer := BytesIO(), "w", 44_100, 2, "PCM_16", format="WAV") as out:
        out.write(np.stack([wide, wide], axis=1))
    file = buffer.getvalue()
    text, errors, code = listened(file, "--model", str(tiny_en), "--target", "cpu", "--format", "json")
    assert (errors, code) == ("", 0)
    lines = [json.loads(line) for line in text.splitlines()]
    finals = [line for line in lines if line["type"] == "final"]
    assert likeness(" ".join(line["text"] for line in finals)) > 0.85
    assert [line["utterance"] for line in finals] == list(range(1, len(finals) + 1))
    for final in finals:
        own = [line for line in lines if line["utterance"] == final["utterance"]]
        assert "".join(line["text"] for line in own if line["type"] == "settled") == final["text"]
        assert own[-1] is final and final["language"] == "en"
        assert {line["start"] for line in own} == {final["start"]}
        assert 0 <= final["start"] < final["end"] <= 11.1
    assert all(one["end"] <= other["start"] for one, other in pairwise(finals))


@pytest.mark.parametrize(
    ("failure", "says"),
    [(RuntimeError("a mistake"), "from 1 to 2 s: "), (ClientGone(), "from 1 to 2 s: "), (DeviceLost(), "GPU")],
)
def test_an_utterance_that_fails_is_reported_and_the_next_one_shown(
    failure: Exception, says: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    class Spoken:
        def __init__(self, result: Heard | Exception) -> None:
            self.heard = result

        async def result(self) -> Heard:
            if isinstance(self.heard, Exception):
                raise self.heard
            return self.heard

    class Twice:
        """The first utterance fails, the second doesn't."""

        def __init__(self, *_: Any, **__: Any) -> None:
            self.buffered_s, self.found = 0.0, list[Any]()
            for at, result in ((1.0, failure), (3.0, Heard("Words.", "en", 1.0, ()))):
                spoken: Any = Spoken(result)
                self.found += [Started(spoken, at), Stopped(spoken, at + 1)]

        async def hear(self, _: Any) -> list[Any]:
            found, self.found = self.found, []
            return found

        def close(self) -> None:
            pass

    monkeypatch.setattr(local, "Listener", Twice)
    out, complaints = StringIO(), list[str]()

    async def run() -> None:
        transcriber: Any = SimpleNamespace(settings=Settings())
        captions = Ordered(Lines(out))
        async with local.local_ear(lambda: transcriber, Options(), captions, complaints.append, lambda: None) as ear:
            await ear.hear(PcmFormat(), bytes(3200))
            await ear.end()

    asyncio.run(run())
    assert out.getvalue() == "Words.\n"
    assert len(complaints) == 1 and says in complaints[0] and "a mistake" not in complaints[0]
    assert ("a mistake" in caplog.text) is isinstance(failure, RuntimeError)


def test_ctrl_c_writes_the_last_words(tiny_en: Path, jfk: bytes) -> None:
    with listening("--model", str(tiny_en), "--target", "cpu", "--format", "json", "-") as process:
        assert process.stdin is not None and process.stdout is not None and process.stderr is not None
        process.stdin.write(jfk[: 2 * 16_000 * 2])  # in the middle of the first sentence, and no end
        process.stdin.flush()
        first = json.loads(process.stdout.readline())
        assert first["type"] in ("rest", "settled")
        process.send_signal(signal.SIGINT)
        lines = [json.loads(line) for line in process.stdout.read().splitlines()]
        assert (process.wait(120), process.stderr.read()) == (0, b"")
    assert lines[-1]["type"] == "final" and words(lines[-1]["text"]).startswith("and so")


def test_a_second_ctrl_c_waits_for_nothing() -> None:
    class Silent:
        is_stopped = False

        def stop(self) -> None:
            self.is_stopped = True

    async def run() -> None:
        source = Silent()
        command._end_by_signals(source)  # type: ignore[arg-type]
        os.kill(os.getpid(), signal.SIGINT)
        await asyncio.sleep(0.01)
        assert source.is_stopped
        os.kill(os.getpid(), signal.SIGINT)
        await asyncio.sleep(60)

    with pytest.raises(asyncio.CancelledError):
        asyncio.run(run())


def test_a_reader_that_leaves_ends_it(tiny_en: Path, jfk: bytes) -> None:
    reader, writer = os.pipe()
    os.close(reader)
    with listening("--model", str(tiny_en), "--target", "cpu", "--format", "json", "-", stdout=writer) as process:
        os.close(writer)
        assert process.stdin is not None and process.stderr is not None
        with suppress(BrokenPipeError):
            process.stdin.write(jfk)
            process.stdin.flush()
        assert (process.wait(120), process.stderr.read()) == (1, b"")


def test_a_terminal_shows_what_may_change_in_dim(tiny_en: Path, jfk: bytes) -> None:
    ours, theirs = pty.openpty()
    termios.tcsetwinsize(ours, (24, 40))
    with listening("--model", str(tiny_en), "--target", "cpu", "-", stdout=theirs) as process:
        os.close(theirs)
        assert process.stdin is not None
        process.stdin.write(jfk)
        process.stdin.close()
        seen = b""
        with suppress(OSError):  # EIO: all has been read
            while chunk := os.read(ours, 65536):
                seen += chunk
        os.close(ours)
        assert process.wait(60) == 0
    text = seen.decode()
    assert Terminal.DIM in text
    assert likeness(" ".join(screen(text.replace("\r\n", "\n"), 40))) > 0.85


def screen(written: str, columns: int) -> list[str]:
    """The rows that a terminal shows, of what Terminal may write."""
    rows, y, x = [""], 0, 0
    for part in re.findall(r"\x1b\[\d*[a-zA-Z]|.", written, re.DOTALL):
        if part == "\r":
            x = 0
        elif part == "\n":
            y, x = y + 1, 0
            rows += [""] * (y + 1 - len(rows))
        elif part == Terminal.CLEAR_BELOW:
            rows[y:] = [rows[y][:x]]
        elif part.startswith("\x1b") and part.endswith("A"):
            y -= int(part[2:-1])
            assert y >= 0
        elif not part.startswith("\x1b"):
            if x == columns:
                y, x = y + 1, 0
                rows += [""] * (y + 1 - len(rows))
            rows[y] = rows[y][:x].ljust(x) + part + rows[y][x + 1 :]
            x += 1
    return [row.rstrip() for row in rows]


def test_captions_are_rewritten_in_place() -> None:
    out = StringIO()
    terminal = Terminal(out, printable, lambda: os.terminal_size((20, 6)))
    captions = Ordered(terminal)
    first = captions.start(0.0)
    captions.heard(first, "", " and so my fellow ameri")
    assert screen(out.getvalue(), 20) == ["and so my fellow", "ameri"]
    captions.heard(first, "And so my", " fellow Americans, ask not")
    assert screen(out.getvalue(), 20) == ["And so my fellow", "Americans, ask not"]
    assert out.getvalue().endswith(
        f"And so my{Terminal.DIM} fellow {Terminal.FIRM}\n{Terminal.DIM}Americans, ask not{Terminal.FIRM}"
    )
    second = captions.start(3.0)
    captions.heard(second, "", " What\x1b[31m")
    captions.finish(second, "What your country", "en")  # before the first, which is still open
    assert screen(out.getvalue(), 20)[:2] == ["And so my fellow", "Americans, ask not"]
    captions.finish(first, "And so my fellow Americans.", "en")
    terminal.close()
    assert screen(out.getvalue(), 80) == ["And so my fellow Americans.", "What your country", ""]
    assert "\x1b[31m" not in out.getvalue()


def test_no_more_rows_than_the_terminal_has() -> None:
    out = StringIO()
    captions = Ordered(Terminal(out, printable, lambda: os.terminal_size((10, 4))))
    utterance = captions.start(0.0)
    for n in range(1, 30):
        captions.heard(utterance, f" word{n}", "")
    assert screen(out.getvalue(), 10) == ["word27", "word28", "word29"]


def test_lines_are_broken_at_spaces_and_lose_nothing() -> None:
    for text in (
        "",
        "short",
        "a few words on a line",
        "x" * 50,
        "ひらがなとカタカナと漢字 and Latin",
        "é" * 30,
        " lead  twice ",
    ):
        for columns in (2, 5, 10, 80):
            lines = wrapped(text, columns)
            assert "".join(lines) == text
            assert all(sum(map(cells, line)) < max(columns, 3) for line in lines), (text, columns, lines)
    assert wrapped("a few words on a line", 10) == ["a few ", "words on ", "a line"]


def test_utterances_without_words_are_left_out() -> None:
    for make, shows in ((Lines, "Words."), (JsonLines, '"utterance": 3')):
        out = StringIO()
        captions = Ordered(make(out))
        captions.finish(captions.start(0.0), "", "en")
        captions.fail(captions.start(1.0))
        captions.finish(captions.start(2.0), "Words.", "en")
        assert out.getvalue() and all(shows in line for line in out.getvalue().splitlines())


@pytest.mark.parametrize("size", [1, 13, 45, 100_000])
def test_a_wav_head_is_skipped_and_believed(size: int) -> None:
    file = wav(0.5, rate=22_050)
    file = file[:36] + b"LIST\x05\0\0\0abcde\0" + file[36:] + b"LIST\x04\0\0\0what"
    head = WavHead(PcmFormat(8_000))
    samples = b"".join(head.take(file[at : at + size]) for at in range(0, len(file), size))
    assert (head.format, samples) == (PcmFormat(22_050, 2, 1), wav(0.5, rate=22_050)[44:])
    assert head.is_over


def test_a_stream_without_a_head_is_left_alone() -> None:
    for stream in (b"RIFFraff, but no WAVE: samples", b"RIF", b"\0" * 64):
        head = WavHead(PcmFormat(8_000))
        heard = b"".join(head.take(stream[at : at + 1]) for at in range(len(stream))) + head.rest()
        assert (heard, head.format, head.is_over) == (stream, PcmFormat(8_000), False)


def test_wav_that_is_not_pcm_is_rejected() -> None:
    floats = wav(0.1)
    floats = floats[:20] + b"\x03\0" + floats[22:]
    with pytest.raises(StartError, match="integer PCM only"):
        WavHead(PcmFormat()).take(floats)
    with pytest.raises(StartError, match="damaged"):
        WavHead(PcmFormat()).take(b"RIFF\0\0\0\0WAVE" + b"junk\0\0\0\1" * 10_000)


def test_stdin_is_read_no_faster_than_it_is_heard() -> None:
    async def run() -> int:
        reader, writer = os.pipe()
        os.set_blocking(writer, False)
        source = Stdin(PcmFormat(), descriptor=reader)
        n_written = 0
        for _ in range(200):
            with suppress(BlockingIOError):
                n_written += os.write(writer, bytes(1 << 15))
            await asyncio.sleep(0.001)
        os.close(writer)
        n_heard = 0
        async for _, data in source.pieces():
            n_heard += len(data)
        assert n_heard == n_written
        return n_written

    assert asyncio.run(run()) < 400_000  # a few pieces and the pipe's own 64 KiB, of 6.5 MB


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["talk.wav"], "isn't a live source"),
        (["--rate", "8000"], "on stdin"),
        (["-", "--device", "1"], "for the microphone"),
        (["-", "--rate", "12"], "must be from 1000"),
        (["-", "--channels", "0"], "0 channels"),
        (["-", "--language", "klingon"], "not a language"),
        (["-", "--api-key", "k"], "give its --url"),
        (["-", "--url", "localhost:8080"], "must be a server's address"),
        (["-", "--url", "http://localhost:8080", "--target", "cpu"], "--target is for the local model"),
    ],
)
def test_a_bad_command_line_is_refused(arguments: list[str], says: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["listen", *arguments]) == 2
    assert says in capsys.readouterr().err


def test_without_a_microphone_there_is_a_sentence(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], folder: Path
) -> None:
    monkeypatch.setitem(sys.modules, "sounddevice", None)
    assert main(["listen", "--model", str(folder), "--target", "cpu"]) == 1
    assert "needs the extra [mic]" in capsys.readouterr().err


class FakeSounddevice:
    """The library with one microphone, which has heard something when it is opened."""

    PortAudioError = type("PortAudioError", (Exception,), {})

    def __init__(self, sound: bytes) -> None:
        self.sound, self.opened = sound, list[dict[str, Any]]()

    def query_devices(self, device: object = None, kind: str = "") -> Any:
        one = {"index": 3, "name": "Desk mic", "max_input_channels": 1, "default_samplerate": 16_000.0}
        if not kind:
            return [one, {**one, "index": 4, "name": "Speaker", "max_input_channels": 0}]
        if device not in (None, 3, "Desk"):
            raise ValueError(f"No input device matching {device!r}")
        return one

    def RawInputStream(self, **options: Any) -> Any:
        self.opened.append(options)
        library = self

        class Stream:
            def start(self) -> None:
                size = 2 * options["blocksize"]
                for at in range(0, len(library.sound), size):
                    options["callback"](library.sound[at : at + size], size // 2, None, None)

            def close(self) -> None:
                pass

        return Stream()


def test_a_microphone_is_heard(
    tiny_en: Path, jfk: bytes, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    library = FakeSounddevice(jfk)
    monkeypatch.setitem(sys.modules, "sounddevice", library)
    monkeypatch.setattr(command, "_end_by_signals", _at_once(command._end_by_signals))
    assert main(["listen", "--device", "3", "--model", str(tiny_en), "--target", "cpu"]) == 0
    assert likeness(capsys.readouterr().out) > 0.85
    assert library.opened[0]["device"] == 3 and library.opened[0]["samplerate"] == 16_000


def _at_once(end_by_signals: Any) -> Any:
    def ended(source: Any) -> None:
        end_by_signals(source)
        os.kill(os.getpid(), signal.SIGINT)

    return ended


def test_an_unknown_device_lists_the_others(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "sounddevice", FakeSounddevice(b""))
    assert main(["listen", "--device", "Attic", "--model", str(folder), "--target", "cpu"]) == 1
    said = capsys.readouterr().err
    assert "'Attic' cannot be opened: No input device matching 'Attic'" in said
    assert "--device takes one of: 3 (Desk mic)." in said


def test_addresses_of_a_server() -> None:
    expected = "ws://h:8080/v1/realtime?intent=transcription"
    assert [websocket_url(url) for url in ("http://h:8080", "http://h:8080/", "ws://h:8080/v1")] == [expected] * 3
    assert websocket_url("https://h/wisp/v1/") == "wss://h/wisp/v1/realtime?intent=transcription"
    assert Wanted.of("-", url="http://h:8080").url == expected


def test_a_server_hears_the_same(tiny_en: Path, jfk: bytes, tmp_path: Path) -> None:
    with server_process(tiny_en, tmp_path, api_keys_file=_keys(tmp_path)) as server:
        text, errors, code = listened(jfk, "--url", server.url, "--api-key", "right", "--format", "json")
        assert (errors, code) == ("", 0)
        lines = [json.loads(line) for line in text.splitlines()]
        finals = [line for line in lines if line["type"] == "final"]
        assert likeness(" ".join(line["text"] for line in finals)) > 0.85
        for final in finals:
            own = [line for line in lines if line["utterance"] == final["utterance"]]
            assert "".join(line["text"] for line in own if line["type"] == "settled") == final["text"]
            assert 0 <= final["start"] < final["end"] <= 11.1 and final["language"] == "en"
        assert any(line["type"] == "rest" and line["text"] for line in lines)
        _, errors, code = listened(jfk, "--url", server.url, "--api-key", "wrong")
        assert code == 1 and re.fullmatch(r"wisp: Cannot connect to ws://127\.0\.0\.1:\d+/v1/realtime: .*\n", errors)
        _, errors, code = listened(jfk, "--url", server.url, "--api-key", "right", "--model", "large-v9")
        assert (code, "large-v9" in errors) == (1, True)


def test_a_session_whose_time_is_over_is_a_sentence(folder: Path, tmp_path: Path) -> None:
    """After what was said; stdin goes on."""
    with server_process(folder, tmp_path, live_max_s=2) as server, listening("--url", server.url, "-") as process:
        assert process.stdin is not None and process.stdout is not None and process.stderr is not None
        process.stdin.write(wav(1.0)[44:])
        process.stdin.flush()
        out, errors = process.stdout.read().decode(), process.stderr.read().decode()
        assert (process.wait(60), out.strip()) == (1, synthetic.SENTENCE)
    assert (
        errors == "wisp: The server ended the session: The session's time is over. Run the command again to continue.\n"
    )


def _keys(folder: Path) -> Path:
    path = folder / "keys"
    path.write_text("right\n")
    return path


def test_no_server_is_one_sentence(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["listen", "-", "--url", "http://127.0.0.1:9"]) == 1
    assert re.search(r"wisp: Cannot connect to ws://127.0.0.1:9/v1/realtime: .+\.\n", capsys.readouterr().err)
