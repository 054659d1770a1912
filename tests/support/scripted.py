"""A model that follows a script, as graphs for the guest, and a run of the guest with it."""

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from service.guest.runner import Guest
from service.models.graphs import ZlibGraph
from tests.conftest import ROOT
from tests.support.guests import limits

WASM = ROOT / "assets" / "guest.wasm"
DEADLINE_S = 300.0  # no test should reach it
N_MELS, N_AUDIO_CTX = 2, 1500
N_FRAMES = 2 * N_AUDIO_CTX
EOT, SOT, EN, DE, TRANSLATE, TRANSCRIBE, SOT_LM, SOT_PREV, NO_SPEECH, NO_TIMESTAMPS, T = range(100, 111)
N_VOCAB = T + 1501
SPECIAL = [SOT, TRANSLATE, TRANSCRIBE, SOT_LM, SOT_PREV, NO_SPEECH]
Event = dict[str, Any]
Tensor = NDArray[Any]
Logits = dict[int, float]


def argument(*, multilingual: bool = False, dims: Mapping[str, int] | None = None, **options: Any) -> dict[str, Any]:
    return {
        "model": "scripted",
        "dims": {"n_mels": N_MELS, "n_audio_ctx": N_AUDIO_CTX, "n_vocab": N_VOCAB, "n_text_ctx": 448, **(dims or {})},
        "is_multilingual": multilingual,
        "tokens": {
            "sot": SOT,
            "eot": EOT,
            "transcribe": TRANSCRIBE,
            "translate": TRANSLATE,
            "sot_lm": SOT_LM,
            "sot_prev": SOT_PREV,
            "no_speech": NO_SPEECH,
            "no_timestamps": NO_TIMESTAMPS,
            "timestamp_begin": T,
            "languages": {"en": EN, "de": DE} if multilingual else {},
            "suppress": [1, *SPECIAL],
            "blank": [0],
        },
        "options": {"temperature": 0.0, **options},
    }


class Script:
    """A model that says what it is told: graphs as a guest loads them, and a record of what was asked of them.

    `logits`: (window, sequence so far with its prompt) → the ids whose logits stand out of zeros. `text`: ids → text.
    """

    def __init__(
        self,
        logits: Callable[[int, list[int]], Logits],
        text: Callable[[list[int]], str] | None = None,
    ) -> None:
        self.logits, self.text = logits, text or _words
        self.mels: list[Tensor] = []
        self.prompts: list[list[int]] = []
        self.rules: Tensor = np.zeros(8, np.int32)
        self.graphs = {
            "scripted/encoder": _Graph(lambda peers: _Encoder(self)),
            "scripted/decoder": _Graph(lambda peers: _Decoder(self, peers)),
            "scripted/tokenizer": _Graph(lambda peers: _Tokenizer(self)),
            "scripted/zlib": ZlibGraph(),
        }


def _words(ids: list[int]) -> str:
    return "".join(f" w{token}" for token in ids)


def saying(*windows: list[int]) -> Script:
    """Each window's tokens, then the end of text."""

    def logits(window: int, sequence: list[int]) -> Logits:
        start = max(i for i, token in enumerate(sequence) if token in (SOT, TRANSCRIBE, TRANSLATE, NO_TIMESTAMPS)) + 1
        said = windows[window] if window < len(windows) else []
        n_sampled = len(sequence) - start
        return {(said[n_sampled] if n_sampled < len(said) else EOT): 30.0}

    return Script(logits)


class _Graph:
    def __init__(self, context: Callable[[Mapping[int, Any]], Any]) -> None:
        self._context = context

    def init_execution_context(self, peers: Mapping[int, Any]) -> Any:
        return self._context(peers)


class _Context:
    def __init__(self, script: Script) -> None:
        self.script = script
        self.inputs: dict[int, Tensor] = {}
        self.outputs: dict[int, Tensor] = {}

    def set_input(self, index: int, tensor: Tensor) -> None:
        self.inputs[index] = tensor

    def get_output(self, index: int) -> Tensor:
        return self.outputs[index]

    def close(self) -> None:
        self.outputs = {}


class _Encoder(_Context):
    def compute(self) -> None:
        self.script.mels.append(self.inputs[0])


class _Tokenizer(_Context):
    def compute(self) -> None:
        tensor = self.inputs[0]
        if tensor.dtype == np.uint8:
            words = tensor.tobytes().decode().split()
            self.outputs[0] = np.array([int(word.removeprefix("w")) for word in words], np.int32)
        else:
            self.outputs[0] = np.frombuffer(self.script.text(tensor.tolist()).encode(), np.uint8)


class _Decoder(_Context):
    """Chooses the script's likeliest token, whatever the rules: on the fast path they are the device's affair."""

    def __init__(self, script: Script, peers: Mapping[int, Any]) -> None:
        super().__init__(script)
        self.peers = peers
        self.sequences: list[list[int]] = []

    def set_input(self, index: int, tensor: Tensor) -> None:
        super().set_input(index, tensor)
        if index == 0:
            assert isinstance(self.peers[int(tensor[0])], _Encoder)
            self.sequences = []
        elif index == 3:
            self.script.rules = tensor

    def _row(self, sequence: list[int]) -> NDArray[np.float32]:
        row = np.zeros(N_VOCAB, np.float32)
        for token, logit in self.script.logits(len(self.script.mels) - 1, sequence).items():
            row[token] = logit
        return row

    def compute(self) -> None:
        tokens = self.inputs.pop(1).tolist()
        origins = self.inputs.pop(2, np.arange(max(len(self.sequences), len(tokens)))).tolist()
        cached = self.sequences or [[] for _ in tokens]
        self.sequences = [cached[origin] + new for origin, new in zip(origins, tokens, strict=True)]
        n_steps, sample_begin = self.script.rules[:2].tolist()
        if len(self.sequences[0]) == sample_begin:
            self.script.prompts.append(self.sequences[0])
        chosen: list[int] = []
        while len(chosen) < n_steps and EOT not in chosen:
            self.sequences[0] = self.sequences[0] + chosen[-1:]
            chosen.append(int(self._row(self.sequences[0]).argmax()))
        self.outputs = {
            0: np.stack([self._row(sequence) for sequence in self.sequences]),
            1: np.array([chosen], np.int32),
            2: np.full((1, len(chosen)), -0.25, np.float32),
        }


def run(guest: Guest, script: Script, arguments: dict[str, Any], n_frames: int = N_FRAMES) -> list[Event]:
    """Frame i is the numbers i and −i."""
    ramp = np.arange(n_frames, dtype=np.float32)
    events: list[Event] = []
    stdin = [np.ascontiguousarray(np.stack([ramp, -ramp], axis=1)).tobytes()]
    guest.run(arguments, stdin, script.graphs, events.append, limits(DEADLINE_S))
    return events


def of(events: list[Event], kind: str) -> list[Event]:
    return [event for event in events if event["event"] == kind]
