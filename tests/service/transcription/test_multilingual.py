"""A multilingual model through the whole service on the CPU target: its language heard, given, unknown; translating.

The synthetic model hears German in everything. Its translations are another text: " what".
"""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
from numpy.typing import NDArray

from service.audio.log_mel import N_SAMPLES, log_mel_frames, log_mel_spectrogram
from service.errors import InternalError, UnsupportedValue
from service.guest.runner import GuestError
from service.guest.wasi_nn import ExecutionContext, Graph
from service.transcription.transcriber import Options, Transcriber
from tests.support import synthetic
from tests.support.guests import limits
from tests.support.serving import engine_for, settings_for, tone, tone_audio


class Heard:
    """What contexts of a graph were given at one index."""

    def __init__(self, graph: Graph, index: int) -> None:
        self.graph, self.index = graph, index
        self.tensors: list[NDArray[Any]] = []

    def init_execution_context(self, peers: Mapping[int, ExecutionContext]) -> ExecutionContext:
        context: Any = self.graph.init_execution_context(peers)
        set_input = context.set_input

        def record(index: int, tensor: NDArray[Any]) -> None:
            if index == self.index:
                self.tensors.append(tensor)
            set_input(index, tensor)

        context.set_input = record
        return cast(ExecutionContext, context)


@pytest.fixture(scope="module")
def transcriber(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Transcriber]:
    folder: Path = tmp_path_factory.mktemp("models") / "both"
    with engine_for(settings_for(synthetic.save_synthetic(folder, multilingual=True))) as engine:
        yield engine.load()


def listen(transcriber: Transcriber, monkeypatch: pytest.MonkeyPatch, graph: str, index: int) -> list[NDArray[Any]]:
    name = f"{transcriber.model.name}/{graph}"
    graphs = cast(dict[str, Any], transcriber.model.graphs)
    heard = Heard(graphs[name], index)
    monkeypatch.setitem(graphs, name, heard)
    return heard.tensors


@pytest.fixture
def tokens(transcriber: Transcriber, monkeypatch: pytest.MonkeyPatch) -> list[NDArray[Any]]:
    """What the decoder is given, compute after compute."""
    return listen(transcriber, monkeypatch, "decoder", 1)


@pytest.fixture
def mels(transcriber: Transcriber, monkeypatch: pytest.MonkeyPatch) -> list[NDArray[Any]]:
    """What the encoder is given, window after window."""
    return listen(transcriber, monkeypatch, "encoder", 0)


def special(transcriber: Transcriber, *names: str) -> list[int]:
    tokenizer = transcriber.model.tokenizer
    return [(tokenizer.special | tokenizer.languages)[name] for name in names]


def test_a_language_not_given_is_heard_once(transcriber: Transcriber, tokens: list[Any], mels: list[Any]) -> None:
    result = transcriber.transcribe(tone_audio(4.0), Options())
    assert (result.language, result.text) == ("de", " ".join([synthetic.SENTENCE] * 2))
    sot, de, transcribe = special(transcriber, "sot", "de", "transcribe")
    given = [tensor.ravel().tolist() for tensor in tokens]
    assert given[:3] == [[sot], [sot], [de, transcribe]]
    assert [de, transcribe] in given[3:] and sum(sot in g for g in given) == 3
    assert len(mels) == 3, "one for the language, two windows"


def test_a_language_asked_for_is_taken(transcriber: Transcriber, tokens: list[Any], mels: list[Any]) -> None:
    result = transcriber.transcribe(tone_audio(1.0), Options(language="en"))
    assert (result.language, result.text) == ("en", synthetic.SENTENCE)
    assert [tensor.ravel().tolist() for tensor in tokens[:2]] == [
        special(transcriber, "sot"),
        special(transcriber, "en", "transcribe"),
    ]
    assert len(mels) == 1, "nothing was detected"


def guest_events(transcriber: Transcriber, **options: Any) -> list[dict[str, Any]]:
    argument = transcriber.argument(Options())
    argument["options"] |= options
    frames = (block.tobytes() for block in log_mel_frames(lambda: [tone(1.0)], transcriber.model.dims.n_mels))
    events: list[dict[str, Any]] = []
    transcriber.guest.run(argument, frames, transcriber.model.graphs, events.append, limits())
    return events


def test_a_translation_is_asked_for_with_its_token(transcriber: Transcriber, tokens: list[Any]) -> None:
    events = guest_events(transcriber, task="translate")
    assert [tensor.ravel().tolist() for tensor in tokens[1:3]] == [
        special(transcriber, "sot"),
        special(transcriber, "de", "translate"),
    ]
    segments = [event for event in events if event["event"] == "segment"]
    assert [(s["start"], s["end"], s["text"]) for s in segments] == [(0.0, 1.0, " what")]
    assert events[-1] == {"event": "done", "text": " what", "language": "de"}


def test_a_language_it_does_not_know_is_refused(transcriber: Transcriber, tokens: list[Any]) -> None:
    with pytest.raises(UnsupportedValue, match=r"French.*2 languages") as raised:
        transcriber.check(Options(language="fr"))
    assert raised.value.param == "language"
    with pytest.raises(InternalError):
        transcriber.transcribe(tone_audio(1.0), Options(language="fr"))
    with pytest.raises(GuestError, match="language `fr` is none of the model's"):
        guest_events(transcriber, language="fr")
    assert not tokens


def test_its_language_is_heard_before_the_recordings_own_silence(transcriber: Transcriber, mels: list[Any]) -> None:
    """As the reference detects it, in features of padded audio; a window that is decoded is padded with zeros."""
    transcriber.transcribe(tone_audio(1.0), Options())
    detected, decoded = mels
    n_frames = 2 * transcriber.model.dims.n_audio_ctx
    reference = log_mel_spectrogram(np.pad(tone(1.0), (0, N_SAMPLES)), transcriber.model.dims.n_mels)[:, :n_frames]
    np.testing.assert_allclose(detected[0][:, :100], reference[:, :100], atol=1e-5)
    # The two frames between still see the last of the sound.
    np.testing.assert_allclose(detected[0][:, 102:], reference[:, 102:], atol=1e-5)
    np.testing.assert_array_equal(decoded[0][:, :100], detected[0][:, :100])
    assert not decoded[0][:, 100:].any()
