"""A run's measurements, and its report once it has ended: stages, audio, tokens and outcome."""

import io
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from queue import Queue

import numpy as np
import pytest
from numpy.typing import NDArray

from service.audio.decode import Audio
from service.errors import ClientGone, DeadlineExceeded, UnreadableAudio
from service.guest.runner import Guest
from service.http.app import GUEST_WASM
from service.models.loaded import read_model
from service.models.names import find_model
from service.settings import Settings
from service.transcription.reading import Upload
from service.transcription.run import STAGES, Run
from service.transcription.shared import Shared
from service.transcription.transcriber import Options, Transcriber
from tests.support import synthetic
from tests.support.loading import loaded
from tests.support.serving import tone, wav


class Clock:
    """A clock that advances on command."""

    now = 0.0

    def __call__(self) -> float:
        return self.now


def test_a_stage_lasts_until_the_next_is_entered() -> None:
    clock = Clock()
    run = Run(clock=clock)
    for stage, seconds in (("encode", 1.0), ("decode_tokens", 2.0), ("", 4.0), ("encode", 8.0), ("encode", 16.0)):
        run.enter(stage)
        clock.now += seconds
    run.enter("")
    assert run.seconds == {"encode": 25.0, "decode_tokens": 2.0} and run.worked_s == 27.0
    assert [span.stage for span in run.spans] == ["encode", "decode_tokens", "encode"]
    assert all(span.start_ns <= span.end_ns for span in run.spans)


def test_making_items_is_its_own_stage() -> None:
    clock = Clock()

    def made() -> Iterator[int]:
        for number in (1, 2):
            clock.now += 10.0
            yield number

    run = Run(clock=clock)
    run.enter("decode_tokens")
    for number in run.during("features", made()):
        clock.now += number
    run.enter("")
    assert run.seconds == {"features": 20.0, "decode_tokens": 3.0}


def test_a_run_ends_when_it_is_cancelled_and_when_its_time_is_over() -> None:
    clock = Clock()
    run = Run(clock=clock)
    clock.now = 100.0
    run.begin(10.0)
    clock.now = 109.0
    run.check()
    clock.now = 111.0
    with pytest.raises(DeadlineExceeded, match=r"\b10 s\b"):
        run.check()
    run.allow(12.0)
    run.allow(5.0)
    run.check()
    run.cancel()
    with pytest.raises(ClientGone):
        run.check()


@pytest.fixture(scope="module")
def seen(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Transcriber, Queue[Run]]]:
    folder: Path = synthetic.save_synthetic(tmp_path_factory.mktemp("models") / "synthetic")
    runs: Queue[Run] = Queue()
    with ExitStack() as stack:
        model = loaded(read_model(find_model(str(folder), folder.parent), "cpu"))
        stack.callback(model.close)
        guest = stack.enter_context(Guest(GUEST_WASM))
        shared = Shared(Settings(), lambda: guest)
        shared.observers.append(runs.put)
        transcriber = Transcriber(model, guest, shared)
        stack.callback(transcriber.admission.close)
        yield transcriber, runs


def test_a_transcription_is_observed_once_it_has_ended(seen: tuple[Transcriber, Queue[Run]]) -> None:
    transcriber, runs = seen
    upload = Upload(io.BytesIO(wav(7.0)), 60.0)
    result = transcriber.submit(upload, Options()).future.result(60)
    run = runs.get(timeout=60)
    assert (run.outcome, run.audio_s) == ("done", 7.0)
    assert run.n_tokens == sum(len(segment.tokens) for segment in result.segments) > 0
    assert set(run.seconds) == set(STAGES) and min(run.seconds.values()) > 0
    # Three windows of 3 s: each is encoded, then decoded.
    assert [span.stage for span in run.spans if span.stage == "encode"] == ["encode"] * 3
    assert run.submitted_ns <= run.spans[0].start_ns and run.spans[-1].end_ns <= run.ended_ns


def test_the_outcome_is_reported(seen: tuple[Transcriber, Queue[Run]]) -> None:
    transcriber, runs = seen

    def endless() -> Iterator[NDArray[np.float32]]:
        while True:
            yield tone(1.0)

    transcriber.submit(Audio(1.0, "WAV", endless), Options()).cancel()
    refused = transcriber.submit(Upload(io.BytesIO(b"no sound"), 60.0), Options())
    assert isinstance(refused.future.exception(60), UnreadableAudio)
    assert sorted(runs.get(timeout=60).outcome for _ in range(2)) == ["cancelled", "refused"]
