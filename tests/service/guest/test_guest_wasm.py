"""The guest itself, `assets/guest.wasm`: what it asks of graphs that follow a script, and what it says."""

import random
import zlib
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import wasmtime

from service.guest.runner import Guest, GuestError
from tests.support.guests import limits
from tests.support.scripted import (
    DE,
    DEADLINE_S,
    EOT,
    N_FRAMES,
    N_MELS,
    NO_SPEECH,
    NO_TIMESTAMPS,
    SOT,
    SOT_PREV,
    SPECIAL,
    TRANSCRIBE,
    TRANSLATE,
    WASM,
    Event,
    Logits,
    Script,
    T,
    argument,
    of,
    run,
    saying,
)


@pytest.fixture(scope="module")
def guest() -> Iterator[Guest]:
    guest = Guest(WASM)
    yield guest
    guest.close()


def test_it_imports_wasi_and_wasi_nn_and_nothing_else() -> None:
    module = wasmtime.Module.from_file(wasmtime.Engine(), str(WASM))
    assert {imported.module for imported in module.imports} == {"wasi_snapshot_preview1", "wasi_ephemeral_nn"}
    assert WASM.stat().st_size < 410_000


def test_windows_follow_the_timestamps_through_long_audio(guest: Guest) -> None:
    script = saying(
        [T, 5, T + 500, T + 500, 6, T + 1000, T + 1000, 7], [T, 8, T + 200, T + 200, 9, T + 250], [T, 10, T + 100]
    )
    events = run(guest, script, argument(), n_frames=5500)
    assert [window["seek"] for window in of(events, "window")] == [0, 2000, 5000]
    assert [(s["seek"], s["start"], s["end"], s["text"]) for s in of(events, "segment")] == [
        (0, 0.0, 10.0, " w5"),
        (0, 10.0, 20.0, " w6"),
        (2000, 20.0, 24.0, " w8"),
        (2000, 24.0, 25.0, " w9"),
        (5000, 50.0, 52.0, " w10"),
    ]
    assert [segment["id"] for segment in of(events, "segment")] == [0, 1, 2, 3, 4]
    assert events[-1] == {"event": "done", "text": " w5 w6 w8 w9 w10", "language": "en"}
    # A window is (1, n_mels, n_frames); what lies past the end of the audio is zero.
    mel = script.mels[2]
    assert mel.shape == (1, N_MELS, N_FRAMES)
    assert mel[0, :, 499].tolist() == [5499.0, -5499.0]
    assert not mel[0, :, 500:].any()


def test_prompts_of_english_and_multilingual_models(guest: Guest) -> None:
    def prompts(**options: Any) -> list[list[int]]:
        script = saying([T, 5, T + 100], [T, 6, T + 100])
        run(guest, script, argument(**options), n_frames=N_FRAMES + 10)
        return script.prompts

    assert prompts() == [[SOT], [SOT_PREV, T, 5, T + 100, SOT]]
    assert prompts(condition_on_previous_text=False) == [[SOT], [SOT]]
    assert prompts(without_timestamps=True, initial_prompt="w7")[0] == [SOT_PREV, 7, SOT, NO_TIMESTAMPS]
    assert prompts(multilingual=True, language="de")[0] == [SOT, DE, TRANSCRIBE]
    assert prompts(multilingual=True, language="de", task="translate")[0] == [SOT, DE, TRANSLATE]


def test_the_rules_that_the_device_applies(guest: Guest) -> None:
    script = saying([T, 5, T + 100])
    run(guest, script, argument(run_ahead=3))
    head = [3, 1, EOT, T, NO_TIMESTAMPS, 50, 1 + len(SPECIAL), 2]
    assert script.rules.tolist() == [*head, 1, *SPECIAL, 0, EOT]
    run(guest, script, argument(without_timestamps=True, suppress_blank=False))
    assert script.rules[:8].tolist() == [8, 2, EOT, -1, -1, -1, 1 + len(SPECIAL), 0]


def test_the_language_is_detected(guest: Guest) -> None:
    script = Script(lambda window, sequence: {DE: 5.0, EOT: 4.0, 7: 9.0} if sequence == [SOT] else {EOT: 9.0})
    events = run(guest, script, argument(multilingual=True))
    assert events[-1]["language"] == "de"
    assert script.prompts[-1] == [SOT, DE, TRANSCRIBE]


def test_a_window_without_speech_is_skipped(guest: Guest) -> None:
    def logits(window: int, sequence: list[int]) -> Logits:
        if window == 0:
            return {NO_SPEECH: 12.0, EOT: 11.0}
        return saying([], [T, 5, T + 100]).logits(1, sequence)

    # The scripted device's log-probabilities are −0.25: likely enough to be speech unless the threshold is higher.
    options = argument(logprob_threshold=-0.1)
    events = run(guest, Script(logits), options, n_frames=N_FRAMES + 500)
    assert of(events, "window")[0]["no_speech_prob"] == pytest.approx(1 / (1 + np.exp(-1)), abs=0.01)
    assert [segment["start"] for segment in of(events, "segment")] == [30.0]
    events = run(guest, Script(logits), argument(), n_frames=N_FRAMES + 500)
    assert [segment["start"] for segment in of(events, "segment")] == [0.0, 30.0]


def test_average_log_probability_counts_the_end_of_text(guest: Guest) -> None:
    events = run(guest, saying([T, 5, T + 100]), argument(emit_tokens=True))
    assert of(events, "window")[0]["avg_logprob"] == pytest.approx(-0.25)
    assert [(token["id"], token["logprob"]) for token in of(events, "token")] == [
        (T, -0.25),
        (5, -0.25),
        (T + 100, -0.25),
    ]


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (argument(temprature=0.0), "unknown field `temprature`"),
        (argument(suppress_blank="yes"), "invalid type"),
        (argument(language="de"), "no other language"),
        (argument(multilingual=True, language="fr"), "language `fr`"),
        (argument(temperature=[]), "temperature"),
        ({"model": "scripted"}, "missing field `dims`"),
    ],
)
def test_bad_options_end_it_with_a_sentence(guest: Guest, arguments: dict[str, Any], sentence: str) -> None:
    with pytest.raises(GuestError, match="bad argument") as error:
        run(guest, saying([]), arguments)
    assert sentence in str(error.value)


def test_a_graph_that_is_not_there_and_half_a_frame_are_said(guest: Guest) -> None:
    with pytest.raises(GuestError, match="load_by_name of scripted/encoder failed: not found"):
        guest.run(argument(), [], {}, lambda event: None, limits(DEADLINE_S))
    with pytest.raises(GuestError, match="the features end within a frame of 2 numbers"):
        guest.run(argument(), [b"\0" * 12], saying([]).graphs, lambda event: None, limits(DEADLINE_S))


def test_an_hour_of_audio_fits_in_a_few_megabytes() -> None:
    n_mels, block = 80, 100 * N_FRAMES * 80 * 4
    small = Guest(WASM, memory_bytes=8 * 2**20)
    events: list[Event] = []
    stdin = (bytes(block // 100) for _ in range(120))
    graphs = saying(*[[T, 5, T + 1500]] * 120).graphs
    small.run(argument(dims={"n_mels": n_mels}), stdin, graphs, events.append, limits(DEADLINE_S))
    small.close()
    assert len(of(events, "segment")) == 120
    assert of(events, "segment")[-1]["end"] == 3600.0


def _some_text(choose: random.Random) -> str:
    """Any of: letters of a small or large alphabet, repeated phrases, words in an endless loop, several scripts."""
    alphabet = choose.choice(["ab", "abcdefgh ", "etaoin shrdlu,.", "äöü ß€", "日本語のテキスト。", "\U0001f600a"])
    words = ["".join(choose.choices(alphabet, k=choose.randint(1, 8))) for _ in range(choose.randint(1, 60))]
    length = int(choose.expovariate(1 / 80)) if choose.random() < 0.97 else choose.randint(1000, 9_000)
    text = " ".join(choose.choices(words, k=length))
    return ((text + " ") * choose.choice([1, 1, 1, 2, 30]))[:60_000]


def test_compression_ratios_are_pythons(guest: Guest) -> None:
    texts = [_some_text(random.Random(seed)) for seed in range(1500)]
    script = Script(
        lambda window, sequence: {5: 9.0} if sequence[-1] == NO_TIMESTAMPS else {EOT: 9.0},
        text=lambda ids: texts[len(script.mels) - 1],
    )
    options = argument(dims={"n_audio_ctx": 2}, without_timestamps=True, condition_on_previous_text=False, run_ahead=1)
    events = run(guest, script, options, n_frames=4 * len(texts))
    ratios = [window["compression_ratio"] for window in of(events, "window")]
    stripped = [text.strip().encode() for text in texts]
    assert ratios == [len(text) / len(zlib.compress(text)) for text in stripped]
