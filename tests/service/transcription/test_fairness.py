"""Jobs in turns: a short one behind long ones, and jobs that leave, fail or are stopped while they wait."""

import io
import threading
from collections.abc import Iterator
from concurrent.futures import Future
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from service.audio.decode import Audio
from service.errors import ClientGone, DeadlineExceeded, InternalError
from service.transcription.reading import Upload
from service.transcription.run import Run
from service.transcription.transcriber import Options, Segment, Transcriber, Transcription
from tests.support import serving, synthetic
from tests.support.serving import engine_for, settings_for, tone, tone_audio, wav
from tests.support.waiting import until

TEN_MINUTES, LONG_S, SHORT_S = 600.0, 30.0, 3.0


class Job:
    """A transcription that stops at a gate after each window, holding its turn until it is let through."""

    def __init__(self, transcriber: Transcriber, seconds: float, prompt: str | None = None) -> None:
        self.n_windows = 0
        self._arrived, self._permits = threading.Semaphore(0), threading.Semaphore(0)
        self._opened = threading.Event()
        self.run = transcriber.submit(tone_audio(seconds), Options(prompt=prompt), self._gate)
        self.future: Future[Transcription] = self.run.future

    def _gate(self, segment: Segment) -> None:
        self.n_windows += 1
        self._arrived.release()
        if not self._opened.is_set():
            assert self._permits.acquire(timeout=60)

    def arrive(self) -> "Job":
        """Wait until it is at its gate."""
        assert self._arrived.acquire(timeout=60)
        return self

    def let_through(self) -> "Job":
        """Let it do one more window."""
        self._permits.release()
        return self

    def open(self) -> Future[Transcription]:
        """Remove the gate; returns the job's future."""
        self._opened.set()
        self._permits.release()
        return self.future


def wait_until_waiting(transcriber: Transcriber, n: int) -> None:
    """Wait until `n` jobs wait for a turn to compute."""
    until(lambda: transcriber.computing.n_waiting == n, f"{n} jobs wait for a turn")


@pytest.mark.parametrize("n_workers", [1, 2])
def test_a_short_clip_behind_two_long_files_waits_for_one_window(folder: Path, n_workers: int) -> None:
    with engine_for(settings_for(folder, workers=n_workers)) as engine:
        transcriber = engine.load()
        one, two = (Job(transcriber, TEN_MINUTES) for _ in range(2))
        (one.arrive() if n_workers == 1 else (one.arrive(), two.arrive()))
        wait_until_waiting(transcriber, 2 - n_workers)
        short = transcriber.submit(tone_audio(SHORT_S), Options()).future
        wait_until_waiting(transcriber, 3 - n_workers)
        # The long ones come to the end of the windows they are in, and of one more at most.
        one.let_through()
        two.let_through()
        assert short.result(60).text == synthetic.SENTENCE
        assert one.n_windows + two.n_windows <= 4
        assert not one.future.done() and not two.future.done()
        for job in (one, two):
            job.run.cancel()
            with pytest.raises(ClientGone):
                job.open().result(60)


def test_long_files_in_parallel_are_each_transcribed_whole(folder: Path) -> None:
    with engine_for(settings_for(folder, workers=2, open_jobs=4)) as engine:
        transcriber = engine.load()
        windows = [40, 30, 20, 10, 5, 1]
        futures = [transcriber.submit(tone_audio(n * synthetic.WINDOW_SECONDS), Options()).future for n in windows]
        texts = [future.result(60).text for future in futures]
        assert texts == [" ".join([synthetic.SENTENCE] * n) for n in windows]
        assert transcriber.computing.n_held == transcriber.reading.n_held == transcriber.admission.n_admitted == 0


def test_jobs_that_begin_together_end_in_the_order_of_their_lengths(folder: Path) -> None:
    lengths = [1 + (5 * n) % 8 for n in range(64)]  # windows, well mixed, each length eight times
    ended: list[int] = []

    def note(n: int, _: Future[Transcription]) -> None:
        ended.append(n)

    with engine_for(settings_for(folder, workers=1, open_jobs=64)) as engine:
        transcriber = engine.load()
        with Run().working(transcriber.computing):  # nobody begins before all are there
            futures = []
            for n in lengths:
                audio = tone_audio(n * synthetic.WINDOW_SECONDS)
                futures.append(transcriber.submit(audio, Options()).future)
                futures[-1].add_done_callback(partial(note, n))
            wait_until_waiting(transcriber, len(lengths))
        for future in futures:
            future.result(120)
    assert sorted(ended) == sorted(lengths)
    assert ended == sorted(ended)


def test_a_job_cancelled_at_a_windows_border_leaves_and_the_others_continue(folder: Path) -> None:
    with engine_for(settings_for(folder, workers=1)) as engine:
        transcriber = engine.load()
        leaving = Job(transcriber, LONG_S).arrive()
        staying = Job(transcriber, SHORT_S)
        wait_until_waiting(transcriber, 1)
        leaving.let_through()
        staying.arrive()
        wait_until_waiting(transcriber, 1)  # the long one, between two windows
        leaving.run.cancel()
        with pytest.raises(ClientGone):
            leaving.open().result(60)
        assert leaving.n_windows == 1
        assert staying.open().result(60).text == synthetic.SENTENCE
        assert transcriber.computing.n_held == transcriber.admission.n_admitted == 0


def test_closing_ends_jobs_that_wait_for_their_turns(folder: Path) -> None:
    with engine_for(settings_for(folder, workers=1)) as engine:
        transcriber = engine.load()
        running = Job(transcriber, LONG_S).arrive()
        others = [Job(transcriber, LONG_S) for _ in range(3)]
        wait_until_waiting(transcriber, 3)
        closing = threading.Thread(target=engine.shared.stop)
        closing.start()
        for job in others:
            with pytest.raises(ClientGone):
                job.future.result(60)
        with pytest.raises(ClientGone):
            running.open().result(60)
        closing.join(60)
        assert not closing.is_alive()


# Emits a segment after each of two computes (which fail: no input is set), then ends successfully; with TRAP in its
# prompt, it traps after the second.
TRAPS_LATER = r"""
(module
  (import "wasi_snapshot_preview1" "args_sizes_get" (func $args_sizes_get (param i32 i32) (result i32)))
  (import "wasi_snapshot_preview1" "args_get" (func $args_get (param i32 i32) (result i32)))
  (import "wasi_snapshot_preview1" "fd_write" (func $fd_write (param i32 i32 i32 i32) (result i32)))
  (import "wasi_ephemeral_nn" "load_by_name" (func $load (param i32 i32 i32) (result i32)))
  (import "wasi_ephemeral_nn" "init_execution_context" (func $init (param i32 i32) (result i32)))
  (import "wasi_ephemeral_nn" "compute" (func $compute (param i32) (result i32)))
  (memory (export "memory") 16)
  (data (i32.const 512) "synthetic/encoder")
  (data (i32.const 1024) "{\"event\":\"done\",\"text\":\" All is well.\",\"language\":\"en\"}\n")
  (data (i32.const 2048) "{\"event\":\"segment\",\"id\":0,\"seek\":0,\"start\":0,\"end\":1,\"text\":\"a\",\"tokens\":")
  (data (i32.const 2121) "[1],\"temperature\":0,\"avg_logprob\":0,\"compression_ratio\":1,\"no_speech_prob\":0}\n")
  (func $say (param $pointer i32) (param $length i32)
    (i32.store (i32.const 0) (local.get $pointer))
    (i32.store (i32.const 4) (local.get $length))
    (drop (call $fd_write (i32.const 1) (i32.const 0) (i32.const 1) (i32.const 8))))
  (func $is_to_trap (result i32) (local $at i32)
    (local.set $at (i32.const 65536))
    (loop $next
      (if (i32.eq (i32.load8_u (local.get $at)) (i32.const 33)) (then (return (i32.const 1))))
      (local.set $at (i32.add (local.get $at) (i32.const 1)))
      (br_if $next (i32.lt_u (local.get $at) (i32.add (i32.const 65536) (i32.load (i32.const 4))))))
    (i32.const 0))
  (func (export "_start") (local $traps i32)
    (drop (call $args_sizes_get (i32.const 0) (i32.const 4)))
    (drop (call $args_get (i32.const 16) (i32.const 65536)))
    (local.set $traps (call $is_to_trap))
    (drop (call $load (i32.const 512) (i32.const 17) (i32.const 0)))
    (drop (call $init (i32.load (i32.const 0)) (i32.const 0)))
    (drop (call $compute (i32.const 0)))
    (call $say (i32.const 2048) (i32.const 151))
    (drop (call $compute (i32.const 0)))
    (if (local.get $traps) (then unreachable))
    (call $say (i32.const 2048) (i32.const 151))
    (call $say (i32.const 1024) (i32.const 56))))
"""


def test_a_guest_that_traps_after_it_has_waited_leaves_its_turn_to_the_others(folder: Path) -> None:
    with engine_for(settings_for(folder, workers=1), guest=TRAPS_LATER) as engine:
        transcriber = engine.load()
        failing = Job(transcriber, 1.0, serving.TRAP).arrive()
        other = Job(transcriber, 1.0)
        wait_until_waiting(transcriber, 1)
        failing.let_through()
        other.arrive()
        wait_until_waiting(transcriber, 1)
        other.let_through()
        with pytest.raises(InternalError):
            failing.open().result(60)
        assert failing.n_windows == 1
        assert other.open().result(60).text == "All is well."
        assert transcriber.computing.n_held == transcriber.admission.n_admitted == 0


class Tape:
    """An endless recording, read a piece at a time, up to the released position."""

    def __init__(self) -> None:
        self.n_read = 0
        self._arrived, self._permits = threading.Semaphore(0), threading.Semaphore(0)

    def _blocks(self) -> Iterator[NDArray[np.float32]]:
        while True:
            yield tone(10.0)
            self.n_read += 1
            self._arrived.release()
            assert self._permits.acquire(timeout=60)

    def audio(self) -> Audio:
        return Audio(100.0, "WAV", self._blocks)

    def arrive(self, pieces: int = 1) -> None:
        for _ in range(pieces):
            assert self._arrived.acquire(timeout=60)

    def let_through(self, pieces: int) -> None:
        self._permits.release(pieces)


def test_reading_long_files_keeps_a_short_one_waiting_for_half_a_minute_of_them(folder: Path) -> None:
    with engine_for(settings_for(folder, workers=1)) as engine:
        transcriber = engine.load()
        tape = Tape()
        long = transcriber.submit(tape.audio(), Options())
        tape.arrive()
        short = transcriber.submit(tone_audio(SHORT_S), Options()).future
        until(lambda: transcriber.reading.n_waiting == 1, "one job waits for its turn to read")
        tape.let_through(2)
        tape.arrive(2)
        assert not short.done()
        tape.let_through(1)  # the thirtieth second
        assert short.result(60).text == synthetic.SENTENCE
        long.cancel()
        tape.let_through(1)
        with pytest.raises(ClientGone):
            long.future.result(60)
        assert transcriber.reading.n_held == 0


def test_no_more_jobs_start_than_may_be_open(folder: Path) -> None:
    tapes = [Tape() for _ in range(4)]
    with engine_for(settings_for(folder, workers=1, open_jobs=2)) as engine:
        transcriber = engine.load()
        runs = [transcriber.submit(tape.audio(), Options()) for tape in tapes]
        tapes[0].arrive()
        until(lambda: transcriber.reading.n_waiting == 1, "one job waits for its turn to read")
        assert transcriber.admission.n_admitted == 4
        assert [tape.n_read for tape in tapes] == [1, 0, 0, 0]
        for tape, run in zip(tapes, runs, strict=True):
            run.cancel()
            tape.let_through(1)
            with pytest.raises(ClientGone):
                run.future.result(60)


def test_an_upload_is_decoded_within_the_deadline_of_what_has_been_decoded(folder: Path) -> None:
    settings = settings_for(folder, deadline_floor_s=0.0, deadline_factor=1e-9)
    with engine_for(settings) as engine, io.BytesIO(wav(60.0)) as file, pytest.raises(DeadlineExceeded):
        engine.load().transcribe(Upload(file, 7200.0), Options())
