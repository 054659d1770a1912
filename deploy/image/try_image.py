"""Runs an image as a strict host would and posts the sample to it: non-root, read-only, only loopback as network.

usage, inside the namespaces that test.sh makes: try_image.py ROOT CONFIG.json SAMPLE.wav POINT [NAME=VALUE…]

ROOT is the image's root file system, CONFIG.json the output of `buildah inspect`, POINT an empty folder to mount it at;
NAME=VALUE is added to the environment. Run as root, to mount and to drop root. It uses namespaces, a bind mount, chroot
and no_new_privs, without a container engine.
"""

import ctypes
import fcntl
import http.client
import json
import os
import signal
import socket
import struct
import subprocess
import sys
import time
from collections.abc import Callable
from difflib import SequenceMatcher
from pathlib import Path
from typing import Any

SIOCSIFFLAGS, IFF_UP, PR_SET_NO_NEW_PRIVS = 0x8914, 1, 38
READY_WITHIN_S = 60
DEVICES = ("null", "zero", "random", "urandom")
KEY = "wisp-image-test"  # the image listens on every address, so it needs an API key
SAID = "Hello, this recording was made by a computer, and every word of it was written down by another one."
MOST = 0.9  # of its words
# assets/sample.wav as AAC, made with PyAV: the image cannot encode, as its FFmpeg has no filters.
M4A = Path(__file__).with_name("speech.m4a")


def bring_loopback_up() -> None:
    """Switch loopback on: it is off in a new network namespace."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as any_socket:
        fcntl.ioctl(any_socket, SIOCSIFFLAGS, struct.pack("16sh14x", b"lo", IFF_UP))


def mount_read_only(root: Path, target: Path) -> None:
    """Mount `root` at `target` read-only, with the folders that every engine adds: /proc, /dev, an empty /tmp."""

    def mount(*arguments: str) -> None:
        subprocess.run(["mount", *arguments], check=True)

    mount("--make-rprivate", "/")
    mount("--bind", str(root), str(target))
    mount("-o", "remount,bind,ro", str(target))
    mount("-t", "proc", "proc", str(target / "proc"))
    mount("-t", "tmpfs", "-o", "mode=1777,size=64m", "tmpfs", str(target / "tmp"))
    mount("-t", "tmpfs", "-o", "mode=755,size=64k", "tmpfs", str(target / "dev"))
    for device in DEVICES:
        (target / "dev" / device).touch()
        mount("--bind", f"/dev/{device}", str(target / "dev" / device))


class Container:
    """Processes in the image's root file system, with the image's user, environment and entry point."""

    def __init__(self, root: Path, config: dict[str, Any]) -> None:
        self._root, self._config = root, config
        self._environment = dict(line.partition("=")[::2] for line in config["Env"])
        self._uid, self._gid = (int(number) for number in config["User"].split(":"))
        if 0 in (self._uid, self._gid):
            raise ValueError(f"the image runs as root: User is {config['User']}")

    def start(self, command: list[str], **options: Any) -> subprocess.Popen[bytes]:
        """Run `command` in the container."""
        return subprocess.Popen(
            command, env=self._environment, preexec_fn=self._enter, stdin=subprocess.DEVNULL, **options
        )

    def serve(self, **variables: str) -> subprocess.Popen[bytes]:
        """Run the image's command with additional environment variables."""
        self._environment |= variables
        return self.start([*self._config["Entrypoint"], *self._config["Cmd"]])

    def healthy(self) -> bool:
        """The result of the image's health check."""
        return self.start(self._config["Healthcheck"]["Test"][1:]).wait() == 0

    def python(self, program: str) -> str:
        """The output of a program run by the image's own Python."""
        process = self.start(["/usr/bin/python3.11", "-c", program], stdout=subprocess.PIPE)
        return process.communicate()[0].decode().strip()

    def _enter(self) -> None:
        os.chroot(self._root)
        os.chdir("/")
        os.setgroups([])
        os.setgid(self._gid)
        os.setuid(self._uid)  # drops all capabilities
        ctypes.CDLL(None).prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)


def request(method: str, path: str, body: bytes = b"", kind: str = "") -> tuple[int, bytes]:
    """Status and body of one request to the server; status 0 without a listener."""
    connection = http.client.HTTPConnection("127.0.0.1", 8080, timeout=120)
    try:
        headers = {"Authorization": f"Bearer {KEY}"} | ({"Content-Type": kind} if kind else {})
        connection.request(method, path, body, headers)
        response = connection.getresponse()
        return response.status, response.read()
    except ConnectionError:
        return 0, b""
    finally:
        connection.close()


def seconds_until_ready(server: subprocess.Popen[bytes]) -> float:
    """Seconds until /readyz is 200. Raises TimeoutError, or RuntimeError if the server ends."""
    started = time.monotonic()
    while request("GET", "/readyz")[0] != 200:
        if server.poll() is not None:
            raise RuntimeError(f"the server ended with exit code {server.returncode}")
        if time.monotonic() - started > READY_WITHIN_S:
            raise TimeoutError(f"not ready within {READY_WITHIN_S} s")
        time.sleep(0.02)
    return time.monotonic() - started


def transcribe(speech: bytes, **fields: str) -> str:
    """The text of a transcription. Raises AssertionError unless it has most of SAID."""
    boundary = "wisp-image-test"
    head = f'--{boundary}\r\nContent-Disposition: form-data; name="{{}}"{{}}\r\n\r\n'
    parts = [head.format(name, "") + f"{value}\r\n" for name, value in fields.items()]
    file = head.format("file", '; filename="speech"').encode() + speech + f"\r\n--{boundary}--\r\n".encode()
    body = "".join(parts).encode() + file
    status, answer = request("POST", "/v1/audio/transcriptions", body, f"multipart/form-data; boundary={boundary}")
    expect(status == 200, f"a transcription with {fields} is answered {status}: {answer!r}")
    text: str = json.loads(answer)["text"]
    expect(share_of(SAID, text) >= MOST, f"the answer to {fields} is {text!r}, not {SAID!r}")
    return text


def share_of(said: str, heard: str) -> float:
    """The share of the words of `said` that `heard` has in the same order."""
    words, found = ([word.strip(".,").lower() for word in text.split()] for text in (said, heard))
    blocks = SequenceMatcher(None, words, found, autojunk=False).get_matching_blocks()
    return sum(block.size for block in blocks) / len(words)


def expect(holds: bool, otherwise: str) -> None:
    """Raise AssertionError with the sentence `otherwise` unless `holds`."""
    if not holds:
        raise AssertionError(otherwise)


def try_image(point: Path, config: dict[str, Any], speech: bytes, say: Callable[[str], object]) -> None:
    """Start the server, transcribe, check everything, stop it. Raises if a check fails."""
    container = Container(point, config)
    expect(not any(point.glob("usr/bin/*sh")), "the image has a shell")
    expect(container.python("import os; print(os.getuid())") == config["User"].partition(":")[0], "wrong user")
    writable = "import os; print([path for path in ('/', '/var/cache', '/models', '/usr') if os.access(path, os.W_OK)])"
    expect(container.python(writable) == "[]", "the root file system is writable")
    expect(not container.healthy(), "the health check succeeds before anything runs")
    expect(container.serve().wait() == 1, "it serves every address without a key")
    server = container.serve(WISP_API_KEYS=KEY)
    try:
        say(f"ready after {seconds_until_ready(server):.2f} s\n")
        expect(container.healthy(), "the health check fails although the server is ready")
        say(f"transcript: {transcribe(speech, model='whisper-1')!r}\n")
        say(f"of an M4A: {transcribe(M4A.read_bytes())!r}\n")
        for strategy in ("auto", '{"type": "server_vad", "silence_duration_ms": 400}'):
            say(f"cut by {strategy}: {transcribe(speech, chunking_strategy=strategy)!r}\n")
        say(f"peak memory: {peak_mib(point, server.pid)} MiB\n")
    finally:
        server.send_signal(signal.SIGTERM)
        code = server.wait(60)
    expect(code in (0, -signal.SIGTERM), f"the server stopped with exit code {code}")


def peak_mib(point: Path, pid: int) -> int:
    """A process's peak memory in MiB."""
    status = (point / f"proc/{pid}/status").read_text()
    return int(next(line.split()[1] for line in status.splitlines() if line.startswith("VmHWM"))) // 1024


if __name__ == "__main__":
    root, inspected, speech, point = (Path(argument) for argument in sys.argv[1:5])
    image = json.loads(inspected.read_text())["Docker"]["config"]
    image["Env"] += sys.argv[5:]
    bring_loopback_up()
    mount_read_only(root, point)
    try_image(point, image, speech.read_bytes(), sys.stdout.write)
