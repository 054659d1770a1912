"""What is told of a transcription once it has ended: its stages, its audio and tokens, and how it ended."""

import io
import threading
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from queue import Queue

import pytest

from service.errors import UnreadableAudio
from service.guest.runner import Guest
from service.http.app import GUEST_WASM
from service.models.loaded import load_model
from service.models.names import find_model
from service.transcription.reading import Upload
from service.transcription.transcriber import Options, Transcriber
from service.transcription.work import STAGES, Work
from tests.support import synthetic
from tests.support.serving import tone_audio, wav


class Clock:
    """Seconds that pass when they are told to."""

    now = 0.0

    def __call__(self) -> float:
        return self.now


def test_a_stage_lasts_until_the_next_is_entered() -> None:
    clock = Clock()
    work = Work(clock)
    for stage, seconds in (("encode", 1.0), ("decode_tokens", 2.0), ("", 4.0), ("encode", 8.0), ("encode", 16.0)):
        work.enter(stage)
        clock.now += seconds
    work.enter("")
    assert work.seconds == {"encode": 25.0, "decode_tokens": 2.0} and work.worked_s == 27.0
    assert [span.stage for span in work.spans] == ["encode", "decode_tokens", "encode"]
    assert all(span.start_ns <= span.end_ns for span in work.spans)


def test_what_makes_items_is_a_stage_of_its_own() -> None:
    clock = Clock()

    def made() -> Iterator[int]:
        for number in (1, 2):
            clock.now += 10.0
            yield number

    work = Work(clock)
    work.enter("decode_tokens")
    for number in work.during("features", made()):
        clock.now += number
    work.enter("")
    assert work.seconds == {"features": 20.0, "decode_tokens": 3.0}


@pytest.fixture(scope="module")
def seen(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Transcriber, Queue[Work]]]:
    folder: Path = synthetic.save_synthetic(tmp_path_factory.mktemp("models") / "synthetic")
    works: Queue[Work] = Queue()
    with ExitStack() as stack:
        model = load_model(find_model(str(folder), folder.parent), "cpu")
        stack.callback(model.close)
        guest = stack.enter_context(Guest(GUEST_WASM))
        transcriber = Transcriber(model, guest, observe=works.put)
        stack.callback(transcriber.admission.close)
        yield transcriber, works


def test_a_transcription_is_observed_once_it_has_ended(seen: tuple[Transcriber, Queue[Work]]) -> None:
    transcriber, works = seen
    upload = Upload(io.BytesIO(wav(7.0)), 60.0)
    result = transcriber.submit(upload, Options(), None, threading.Event()).result(60)
    work = works.get(timeout=60)
    assert (work.outcome, work.audio_s) == ("done", 7.0)
    assert work.n_tokens == sum(len(segment.tokens) for segment in result.segments) > 0
    assert set(work.seconds) == set(STAGES) and min(work.seconds.values()) > 0
    # Three windows of 3 s: each is encoded, then decoded.
    assert [span.stage for span in work.spans if span.stage == "encode"] == ["encode"] * 3
    assert work.submitted_ns <= work.spans[0].start_ns and work.spans[-1].end_ns <= work.ended_ns


def test_how_it_ended_is_told(seen: tuple[Transcriber, Queue[Work]]) -> None:
    transcriber, works = seen
    gone = threading.Event()
    gone.set()
    futures = [
        transcriber.submit(tone_audio(1.0), Options(), None, gone),
        transcriber.submit(Upload(io.BytesIO(b"no sound"), 60.0), Options(), None, threading.Event()),
    ]
    assert isinstance(futures[1].exception(60), UnreadableAudio)
    assert sorted(works.get(timeout=60).outcome for _ in futures) == ["cancelled", "refused"]
