"""Fuzzed requests against a server in its own process: no crash, no server error, no growing memory.

The suite sends 300 of them; `make fuzz`, or WISP_FUZZ=10000 in the environment, sends that many. They are the same ones
every time: `tests.support.fuzzing.case(number)` makes the one that a failure names.
"""

import asyncio
import collections
import json
import os
from collections.abc import Iterator

import httpx2
import pytest

from tests.support import synthetic
from tests.support.fuzzing import case
from tests.support.processes import ServerProcess, server_process
from tests.support.serving import PATH, wav

N_CASES = int(os.environ.get("WISP_FUZZ") or "300")
AT_ONCE = 8
N_WARM_UP = N_CASES // 4  # until then every library has allocated what it keeps
GROWTH_BYTES = 32 * 2**20  # from there to the end, however many cases: memory in use, without a leak per case


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    folder = synthetic.save_synthetic(tmp_path_factory.mktemp("models") / "synthetic")
    cache = tmp_path_factory.mktemp("cache")
    with server_process(folder, cache, max_upload_bytes=200_000, max_audio_s=30) as server:
        yield server


def complaint(response: httpx2.Response) -> str:
    """The fault of a response to a fuzzed request; empty if none."""
    if response.status_code >= 500:
        return f"{response.status_code}: {response.text}"
    if response.status_code >= 400:
        error = response.json().get("error")
        return "" if error and set(error) == {"message", "type", "param", "code"} else f"no envelope: {response.text}"
    if response.headers["content-type"].startswith("text/event-stream"):
        last = json.loads(response.text.rstrip().rpartition("data: ")[2])
        kind = last.get("error", {}).get("type", "")
        return "" if last.get("type") == "transcript.text.done" or kind == "invalid_request_error" else f"{last}"
    return ""


async def send(url: str, first: int, last: int, seen: "collections.Counter[int]") -> list[str]:
    """Send requests `first` to `last`, some at once; returns the faults. Counts statuses in `seen`."""
    numbers, complaints = iter(range(first, last)), []
    limits = httpx2.Limits(max_connections=AT_ONCE)
    async with httpx2.AsyncClient(base_url=url, limits=limits, timeout=120) as client:

        async def post(number: int) -> httpx2.Response:
            fuzzed = case(number)
            return await client.post(PATH, content=fuzzed.body, headers={"content-type": fuzzed.content_type})

        async def some() -> None:
            for number in numbers:
                try:
                    response = await post(number)
                except httpx2.TransportError as error:  # a crash: the server keeps connections longer than the client
                    complaints.append(f"case({number}): {error!r}")
                    continue
                seen[response.status_code] += 1
                if wrong := complaint(response):
                    complaints.append(f"case({number}): {wrong}")

        await asyncio.gather(*(some() for _ in range(AT_ONCE)))
    return complaints


def test_fuzzed_requests_do_no_harm(server: ServerProcess) -> None:
    seen: collections.Counter[int] = collections.Counter()
    complaints = asyncio.run(send(server.url, 0, N_WARM_UP, seen))
    before = server.resident_bytes()
    complaints += asyncio.run(send(server.url, N_WARM_UP, N_CASES, seen))
    after = server.resident_bytes()
    assert complaints == []
    assert server.process.poll() is None
    assert seen[200] > N_CASES / 10 and seen[400] > N_CASES / 10 and set(seen) <= {200, 400, 404, 413}, seen
    assert after - before < GROWTH_BYTES, (before, after)
    answer = httpx2.post(server.url + PATH, files={"file": ("a.wav", wav(1.0))}, timeout=60)
    assert answer.json()["text"] == synthetic.SENTENCE
    assert "Traceback" not in server.log, server.log


def test_cases_are_the_same_every_time() -> None:
    assert [case(number) for number in range(20)] == [case(number) for number in range(20)]
