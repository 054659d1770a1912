"""Decoding in processes: what a hostile file does to its own hurts no one else, and nothing can be got from inside."""

import ctypes
import io
import os
import signal
import socket
import struct
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest

from service.audio import decoder_client
from service.audio.decode import KEPT_SECONDS, decode
from service.audio.decoder_process import NOT_BEGUN
from service.audio.sandbox import MIB, Limits
from service.errors import ClientGone, DecoderLost, UnreadableAudio
from service.transcription.reading import Upload
from service.transcription.types import Options
from tests.conftest import ROOT
from tests.support.av_sounds import encoded as av_encoded
from tests.support.serving import engine_for, settings_for
from tests.support.sounds import encoded, samples, speechlike
from tests.support.waiting import until

needs_linux = pytest.mark.skipif(sys.platform != "linux", reason="the fork server and seccomp are Linux's")
GOOD = encoded(speechlike(16_000, 1), 16_000, "FLAC")
LONG = encoded(speechlike(8000, 1, KEPT_SECONDS + 10), 8000, "FLAC")  # more than the pipe holds


def element(name: str, *content: bytes) -> bytes:
    """A Matroska element, its size in 8 bytes."""
    data = b"".join(content)
    return bytes.fromhex(name) + (len(data) | 1 << 56).to_bytes(8, "big") + data


def matroska(tags: int = 0, frames: int = 0, codec: bytes = b"A_AAC") -> bytes:
    """A track of sound with frames of one byte, and tags, each of which FFmpeg compares with those before it."""
    head = element("1A45DFA3", element("4282", b"webm"))
    rate = element("E1", element("B5", struct.pack(">d", 48_000.0)))
    track = element("AE", element("D7", b"\1"), element("83", b"\2"), element("86", codec), rate)
    named = [element("7373", element("67C8", element("45A3", b"K%d" % n), element("4487", b"v"))) for n in range(tags)]
    sound = b"\xa3\x85\x81\0\0\x80!" * frames
    parts = element("1654AE6B", track), element("1254C367", *named), element("1F43B675", element("E7", b"\0"), sound)
    return head + element("18538067", *parts)


def server_pid() -> int:
    process = decoder_client._server._process
    assert process is not None
    return process.pid


def forks() -> list[int]:
    """The processes that decode now."""
    pid = server_pid()
    return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


@pytest.fixture(params=[True, False], ids=["fork", "spawn"])
def either_way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """By a fork, and by a new process as on macOS."""
    if request.param and sys.platform != "linux":
        pytest.skip("forks are for Linux")
    monkeypatch.setattr(decoder_client, "FORKS", request.param)
    yield


@pytest.mark.usefixtures("either_way")
def test_a_header_that_takes_for_ever_costs_one_refusal() -> None:
    with pytest.raises(UnreadableAudio, match="takes too long to decode") as caught:
        decode(io.BytesIO(matroska(tags=4000)), limits=Limits(stall_s=0.2))
    assert caught.value.status == 400
    assert decode(io.BytesIO(GOOD)).duration == 1.0


@pytest.mark.usefixtures("either_way")
def test_more_memory_than_allowed_costs_one_refusal() -> None:
    """Probing frames of one byte takes 300 bytes for each of them."""
    frames = matroska(frames=300_000, codec=b"A_VORBIS")
    # Which allocation is the first to fail isn't certain, nor whether its caller survives that.
    refusals = "more memory to decode than is allowed|the decoder failed on it"
    with pytest.raises(UnreadableAudio, match=refusals) as caught:
        decode(io.BytesIO(frames), limits=Limits(memory_bytes=48 * MIB, stall_s=60))
    assert caught.value.status == 400
    assert decode(io.BytesIO(GOOD)).duration == 1.0


@pytest.mark.usefixtures("either_way")
def test_all_of_the_time_is_bounded() -> None:
    with pytest.raises(UnreadableAudio, match="takes too long"):
        decode(io.BytesIO(matroska(tags=20_000)), limits=Limits(stall_s=60, cpu_s=1))


@needs_linux
def test_a_client_that_leaves_ends_the_process_at_once() -> None:
    calls = 0

    def leave(seconds: float) -> None:
        nonlocal calls
        calls += 1
        assert seconds == 0
        if calls == 3:
            assert len(forks()) == 1
            raise ClientGone

    with pytest.raises(ClientGone):
        decode(io.BytesIO(matroska(tags=20_000)), on_block=leave, limits=Limits(stall_s=60))
    assert forks() == []


@needs_linux
def test_one_that_is_not_read_to_its_end_goes_with_its_reader() -> None:
    audio = decode(io.BytesIO(LONG))
    blocks = audio.blocks()
    next(blocks)
    assert len(forks()) == 1
    del blocks
    assert forks() == []


@needs_linux
def test_nothing_is_left_behind() -> None:
    decode(io.BytesIO(GOOD))
    before = len(list(Path("/proc/self/fd").iterdir())), len(list(Path(f"/proc/{server_pid()}/fd").iterdir()))
    for content in (GOOD, b"no audio at all", LONG, GOOD[: len(GOOD) // 2]) * 5:
        try:
            decode(io.BytesIO(content), max_seconds=30)
        except Exception as error:
            assert getattr(error, "status", 0) in (400, 413)
    assert forks() == []
    assert before == (
        len(list(Path("/proc/self/fd").iterdir())),
        len(list(Path(f"/proc/{server_pid()}/fd").iterdir())),
    )


@needs_linux
def test_a_process_that_the_system_ends_is_not_the_files_fault() -> None:
    audio = decode(io.BytesIO(LONG))
    blocks = audio.blocks()
    next(blocks)
    (pid,) = forks()
    os.kill(pid, signal.SIGKILL)
    with pytest.raises(DecoderLost) as caught:
        list(blocks)
    assert caught.value.status == 503 and caught.value.headers["Retry-After"]


@needs_linux
def test_a_crash_is_the_files_fault(caplog: pytest.LogCaptureFixture) -> None:
    audio = decode(io.BytesIO(LONG))
    blocks = audio.blocks()
    next(blocks)
    (pid,) = forks()
    os.kill(pid, signal.SIGSEGV)
    with pytest.raises(UnreadableAudio, match="the decoder failed on it"):
        list(blocks)
    assert "exit code -11" in caplog.text


@needs_linux
def test_the_fork_server_starts_again_after_its_end() -> None:
    audio = decode(io.BytesIO(LONG))
    blocks = audio.blocks()
    next(blocks)
    os.kill(server_pid(), signal.SIGKILL)
    with pytest.raises(DecoderLost):
        list(blocks)
    assert decode(io.BytesIO(GOOD)).duration == 1.0
    assert sum(block.size for block in audio.blocks()) == pytest.approx(16_000 * audio.duration, abs=1)


@needs_linux
def test_the_fork_server_ends_with_the_service() -> None:
    code = (
        "import sys, io; from service.audio import decoder_client; from service.audio.decode import decode\n"
        "decode(io.BytesIO(sys.stdin.buffer.read())); print(decoder_client._server._process.pid, flush=True)\n"
        "import os; os._exit(0)"
    )
    ended = subprocess.run([sys.executable, "-c", code], input=GOOD, cwd=ROOT, stdout=subprocess.PIPE, check=True)
    until(lambda: not Path(f"/proc/{int(ended.stdout)}").exists(), "the fork server has ended")


@needs_linux
def test_the_processes_have_nothing_of_the_service(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WISP_API_KEYS", "secret")
    decoder_client._server.close()
    with socket.create_server(("127.0.0.1", 0)) as listener:
        os.set_inheritable(listener.fileno(), True)
        audio = decode(io.BytesIO(LONG))
        blocks = audio.blocks()
        next(blocks)
        (pid,) = forks()
        assert Path(f"/proc/{server_pid()}/environ").read_bytes() == b""
        opened = {int(fd.name): str(fd.readlink()) for fd in Path(f"/proc/{pid}/fd").iterdir()}
        assert [opened.pop(fd) for fd in (0, 1, 2)] == ["/dev/null"] * 3
        assert sorted(opened) == [3, 4] and "memfd" in opened[3] and "pipe" in opened[4]


UNBEGUN = """
import os, socket
from service.audio import decoder_process
from service.audio.decoder_process import END, REQUEST, START
def fail(*fds): raise OSError(24, "Too many open files")
decoder_process._become = fail
ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
if os.fork() == 0:
    ours.close()
    decoder_process.serve(theirs)
    os._exit(0)
theirs.close()
limits = (1 << 27, 3.0, 60)
(read, out), (answer, status) = os.pipe(), os.pipe()
socket.send_fds(ours, [REQUEST.pack(START, 7, 0, *limits)], [os.open("/dev/null", os.O_RDONLY), out])
os.close(out)
assert os.read(read, 1) == b""
socket.send_fds(ours, [REQUEST.pack(END, 7, 0, *limits)], [status])
os.close(status)
print(os.waitstatus_to_exitcode(int(os.read(answer, 20))))
"""


@needs_linux
def test_a_fork_that_cannot_begin_is_no_second_server(monkeypatch: pytest.MonkeyPatch) -> None:
    ended = subprocess.run([sys.executable, "-c", UNBEGUN], cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert ended.stdout.strip() == str(NOT_BEGUN), ended.stderr
    monkeypatch.setattr(decoder_client._server, "end", lambda number: NOT_BEGUN)
    monkeypatch.setattr(decoder_client._server, "fork", lambda *request: 7)
    with pytest.raises(DecoderLost):
        decode(io.BytesIO(GOOD))


INSIDE = """
import os, resource, signal, socket, sys, threading
from service.audio.sandbox import Limits, confine
file, parent = os.open(sys.argv[1], os.O_RDWR), os.getppid()
confine(Limits(memory_bytes=int(sys.argv[2])))
def attempt(call):
    try:
        call()
    except (OSError, MemoryError, RuntimeError, ValueError) as error:
        return type(error).__name__
    return "succeeds"
attempts = {
    "open": lambda: os.open("/etc/passwd", os.O_RDONLY),
    "create": lambda: os.open("/tmp/new", os.O_WRONLY | os.O_CREAT),
    "grow": lambda: os.truncate(file, 10**6),
    "socket": lambda: socket.socket(),
    "fork": lambda: os.fork(),
    "thread": lambda: threading.Thread(target=print).start(),
    "exec": lambda: os.execv("/bin/true", ["true"]),
    "kill": lambda: os.kill(parent, signal.SIGTERM),
    "memory": lambda: bytearray(1 << 30),
    "more memory": lambda: resource.setrlimit(resource.RLIMIT_DATA, (1 << 40, 1 << 40)),
}
for name, call in attempts.items():
    sys.stdout.write(f"{name} {attempt(call)}\\n")
sys.stdout.write(f"read {len(os.pread(file, 4, 0))}\\n")
sys.stdout.flush()
os._exit(0)
"""


@needs_linux
def test_what_is_locked_in_can_read_its_file_and_nothing_else(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"1234")
    command = [sys.executable, "-c", INSIDE, str(tmp_path / "file"), str(96 * MIB)]
    answer = subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True, timeout=60)
    outcome = dict(line.rsplit(" ", 1) for line in answer.stdout.splitlines())
    assert outcome.pop("read") == "4"
    assert len(outcome) == 10 and "succeeds" not in outcome.values(), outcome


def opens_of(path: Path) -> Callable[[], bool]:
    """Whether anybody has opened the file since, as the kernel tells."""
    libc = ctypes.CDLL(None, use_errno=True)
    watch = libc.inotify_init1(os.O_NONBLOCK | os.O_CLOEXEC)
    assert libc.inotify_add_watch(watch, os.fsencode(path), 0x20) >= 0  # IN_OPEN

    def was_opened() -> bool:
        try:
            return bool(os.read(watch, 4096))
        except BlockingIOError:
            return False
        finally:
            os.close(watch)

    return was_opened


NAMING = [
    "#EXTM3U\n#EXT-X-TARGETDURATION:9\n#EXTINF:9,\n{path}\n#EXTINF:9,\n{url}\n#EXT-X-ENDLIST\n",
    "#EXTM3U\n#EXT-X-STREAM-INF:BANDWIDTH=1\n{url}\n",
    "ffconcat version 1.0\nfile '{path}'\nfile '{url}'\n",
    ";FFMETADATA1\ntitle={path}\n[STREAM]\nfile={url}\n",
    "v=0\no=- 0 0 IN IP4 127.0.0.1\ns=x\nc=IN IP4 127.0.0.1\nt=0 0\na=control:{url}\nm=audio {port} RTP/AVP 0\n",
    "[playlist]\nFile1={path}\nFile2={url}\nNumberOfEntries=2\n",
    "[Reference]\nRef1={url}\nRef2=file://{path}\n",
    '<?xml version="1.0"?><MPD type="static"><Period><AdaptationSet><Representation id="1"><BaseURL>{url}</BaseURL>'
    "</Representation></AdaptationSet></Period></MPD>",
    '<ASX version="3.0"><Entry><Ref href="{url}"/><Ref href="{path}"/></Entry></ASX>',
    '<svg xmlns="http://www.w3.org/2000/svg"><image href="{url}"/></svg>',
    "{path}",
    "{url}",
    "concat:{path}|{path}",
    "file:{path}",
]


@needs_linux
@pytest.mark.parametrize("content", NAMING)
def test_nothing_that_content_names_is_opened(tmp_path: Path, content: str) -> None:
    canary = tmp_path / "canary.aac"
    canary.write_bytes(av_encoded("adts", "aac"))
    decoder_client.warm_up()
    with socket.create_server(("127.0.0.1", 0)) as listener:
        listener.setblocking(False)
        port = listener.getsockname()[1]
        named = content.format(path=canary, url=f"http://127.0.0.1:{port}/canary.aac", port=port)
        was_opened = opens_of(canary)
        for start in ("", "\ufeff", "ID3\x04\0\0\0\0\0\0"):
            with pytest.raises(UnreadableAudio):
                decode(io.BytesIO((start + named).encode()))
        assert not was_opened()
        with pytest.raises(BlockingIOError):
            listener.accept()


@needs_linux
def test_the_canary_would_be_seen(tmp_path: Path) -> None:
    canary = tmp_path / "canary"
    canary.touch()
    was_opened = opens_of(canary)
    canary.read_bytes()
    assert was_opened()


def test_a_tag_leads_to_no_other_formats() -> None:
    """libsndfile read IRCAM, SDS and VOC behind an ID3 tag."""
    for format, subtype in (("IRCAM", "PCM_16"), ("SDS", "PCM_16"), ("VOC", "PCM_16"), ("PAF", "PCM_16")):
        content = encoded(speechlike(16_000, 1), 16_000, format, subtype)
        for tag in (b"", b"ID3\x04\0\0\0\0\0\0"):
            with pytest.raises(UnreadableAudio):
                decode(io.BytesIO(tag + content))


def test_a_file_on_the_disk_keeps_its_position_and_content(tmp_path: Path) -> None:
    content = b"ID3\x04\0\0\x01\0\0\0" + bytes(1 << 21) + GOOD  # 2 MiB, in 4 × 7 bits
    assert len(content) > decoder_client.SMALL_BYTES
    (tmp_path / "large.flac").write_bytes(content)
    with (tmp_path / "large.flac").open("r+b") as file:
        assert decode(file).duration == 1.0
        file.seek(0)
        assert file.read() == content


def test_samples_come_unchanged() -> None:
    sound = (speechlike(16_000, 1) * 2**31).astype(np.int32)
    flac = samples(decode(io.BytesIO(encoded(sound, 16_000, "FLAC", "PCM_24"))))
    wav = samples(decode(io.BytesIO(encoded(sound, 16_000, "WAV", "PCM_24"))))
    assert (flac == wav).all()


@needs_linux
def test_hostile_files_keep_nobody_else_waiting(folder: Path) -> None:
    """They hold every turn at reading, and more of them wait; a good file is read between two looks at theirs."""
    hostile = matroska(tags=20_000)
    with engine_for(settings_for(folder)) as engine:
        transcriber = engine.load()
        stuck = [transcriber.submit(Upload(io.BytesIO(hostile), 60.0), Options()) for _ in range(4)]
        until(lambda: len(forks()) >= transcriber.reading.count, "hostile files are being read")
        good = transcriber.submit(Upload(io.BytesIO(GOOD), 60.0), Options())
        assert good.future.result(timeout=60).duration == 1.0
        assert not any(run.future.done() for run in stuck)
        for run in stuck:
            run.cancel()
        for run in stuck:
            with pytest.raises(ClientGone):
                run.future.result(timeout=60)
        assert forks() == []
