"""WebGPU through the guest against openai/whisper, on a few clips (`make parity`: all), and the comparison itself."""

import copy
from collections.abc import Iterator
from itertools import islice
from pathlib import Path

import pytest

from bench.parity import compare
from bench.reference import DECODE_OPTIONS, Case, Whisper, cases, differences
from kernels.webgpu.device import DeviceError, open_device
from service.http.app import Engine
from service.settings import Settings

FILES = {"jfk.wav", "librivox/0930.wav", "librispeech/1688-142285-0003.flac"}
GREEDY = ("decode-timestamps", "decode-no-timestamps")


@pytest.fixture(scope="module")
def webgpu(shared: Path) -> Iterator[Whisper]:
    try:
        open_device().close()
    except DeviceError as error:
        pytest.skip(f"no WebGPU adapter: {error}")
    engine = Engine(Settings(model=str(shared / "models" / "tiny_en"), target="gpu"))
    try:
        transcriber = engine.load()
        yield Whisper(transcriber.guest, transcriber.model)
    finally:
        engine.close()


def test_webgpu_says_what_openai_whisper_says(webgpu: Whisper, shared: Path) -> None:
    taken = [case for case in cases(shared, GREEDY) if case.name in FILES]
    assert len(taken) == len(FILES) * len(GREEDY)
    found = [compare(webgpu, case, shared, numbers=False) for case in taken]
    parted = [difference for difference in found if difference is not None]
    assert all(difference.is_near_tie for difference in parted), parted
    assert len(parted) <= 1, parted


def test_a_difference_is_traced_to_its_token_and_gap(webgpu: Whisper, shared: Path) -> None:
    case = next(cases(shared, GREEDY))
    answer = case.answer | {"tokens": [*case.answer["tokens"][:5], 257, *case.answer["tokens"][6:]]}
    found = compare(webgpu, Case(case.kind, case.name, case.options, answer), shared, numbers=False)
    assert found is not None
    assert (found.position, found.ours, found.theirs) == (5, case.answer["tokens"][5], 257)
    assert found.gap > 0 and not found.is_near_tie
    assert "token 5" in str(found) and case.name in str(found)


@pytest.mark.parametrize("change", ["tokens", "start", "words", "text", "one less"])
def test_any_deviation_from_the_recording_is_a_difference(shared: Path, change: str) -> None:
    case = next(islice(cases(shared, ("transcribe-words",)), 1))
    said = copy.deepcopy(case.answer)
    assert not differences(case, said)
    segment = said["segments"][-1]
    match change:
        case "tokens":
            segment["tokens"][0] += 1
        case "start":
            segment["start"] += 0.02
        case "words":
            segment["words"][0]["end"] += 0.04
        case "text":
            said["text"] += "."
        case "one less":
            said["segments"].pop()
    assert differences(case, said)


def test_each_recorded_call_is_a_case(shared: Path) -> None:
    found = list(cases(shared))
    lines = sum(len(file.read_text().splitlines()) for file in (shared / "expected").glob("*.jsonl"))
    assert len(found) == lines
    assert {case.kind for case in found} > set(DECODE_OPTIONS)
    assert len({(case.kind, case.name) for case in found}) == len(found)
