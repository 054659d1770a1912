"""Many clients at once, against a server in its own process: each gets its own answer, nobody a server error."""

import asyncio
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx2
import openai
import pytest

from tests.support import synthetic
from tests.support.processes import ServerProcess, server_process
from tests.support.serving import PATH, events, wav
from tests.support.waiting import until

N_CLIENTS = 64
LENGTHS = [1 + (3 * n) % 7 for n in range(N_CLIENTS)]  # windows of audio, well mixed
FILES = {n: wav(n * synthetic.WINDOW_SECONDS, rate=8000) for n in set(LENGTHS)}


@pytest.fixture(scope="module")
def roomy(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    with server_process(folder, tmp_path_factory.mktemp("cache")) as server:
        yield server


@pytest.fixture(scope="module")
def narrow(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    """A server with eight places, four of them for open jobs."""
    with server_process(folder, tmp_path_factory.mktemp("cache"), open_jobs=4, queue_length=4) as server:
        yield server


def said(n_windows: int) -> str:
    return " ".join([synthetic.SENTENCE] * n_windows)


def test_each_of_64_clients_at_once_gets_its_own_words(roomy: ServerProcess) -> None:
    """Every other one in a stream."""

    async def post(client: httpx2.AsyncClient, number: int) -> httpx2.Response:
        stream = "true" if number % 2 else "false"
        return await client.post(PATH, data={"stream": stream}, files={"file": ("a.wav", FILES[LENGTHS[number]])})

    async def all_of_them() -> list[httpx2.Response]:
        limits = httpx2.Limits(max_connections=N_CLIENTS)
        async with httpx2.AsyncClient(base_url=roomy.url, limits=limits, timeout=120) as client:
            return await asyncio.gather(*(post(client, number) for number in range(N_CLIENTS)))

    responses = asyncio.run(all_of_them())
    assert [response.status_code for response in responses] == [200] * N_CLIENTS
    for number, (n_windows, response) in enumerate(zip(LENGTHS, responses, strict=True)):
        answer = events(response.text)[-1] if number % 2 else response.json()
        assert answer["text"] == said(n_windows)


def test_clients_refused_by_a_full_queue_retry_and_are_served(narrow: ServerProcess) -> None:
    """64 clients for eight places: rejected ones get a Retry-After, which OpenAI's client follows."""
    statuses: list[int] = []

    async def note(response: Any) -> None:
        statuses.append(response.status_code)
        if response.status_code == 429:
            assert int(response.headers["retry-after"]) >= 1

    async def all_of_them() -> list[str]:
        http = openai.DefaultAsyncHttpxClient(event_hooks={"response": [note]})
        async with openai.AsyncOpenAI(
            base_url=f"{narrow.url}/v1", api_key="none", max_retries=60, http_client=http
        ) as api:
            tasks = [api.audio.transcriptions.create(file=FILES[n], model="whisper-1") for n in LENGTHS]
            return [result.text for result in await asyncio.gather(*tasks)]

    assert asyncio.run(all_of_them()) == [said(n) for n in LENGTHS]
    assert statuses.count(200) == N_CLIENTS and set(statuses) <= {200, 429}
    assert 429 in statuses


def test_clients_that_leave_free_their_places(narrow: ServerProcess) -> None:
    """As many as there are places, plain and streaming, some while their jobs are open and some while they wait."""
    long = wav(240.0, rate=8000)

    async def leave(client: httpx2.AsyncClient, stream: str) -> None:
        form: dict[str, Any] = {"data": {"stream": stream}, "files": {"file": ("a.wav", long)}}
        timeout = httpx2.Timeout(60, read=60 if stream == "true" else 0.05)
        with pytest.raises(httpx2.ReadTimeout):
            async with client.stream("POST", PATH, timeout=timeout, **form) as response:
                assert response.status_code == 200
                async for _ in response.aiter_text():
                    raise httpx2.ReadTimeout("The first words are enough.")

    async def all_of_them() -> None:
        async with httpx2.AsyncClient(base_url=narrow.url) as client:
            await asyncio.gather(*(leave(client, stream) for stream in ("true", "false") * 4))

    asyncio.run(all_of_them())

    def is_taken() -> bool:
        answer = httpx2.post(narrow.url + PATH, files={"file": ("a.wav", FILES[1])}, timeout=60)
        return answer.status_code != 429 and answer.json()["text"] == said(1)

    until(is_taken, "there is room, and what takes it is answered")
    assert "transcribed 240.00 s" not in narrow.log
