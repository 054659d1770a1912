"""A transcription's options and its result: words, segments and the whole."""

from dataclasses import dataclass

from service.transcription.chunking import Chunking

TEMPERATURES = (0.0, 0.2, 0.4, 0.6, 0.8, 1.0)  # openai/whisper's ladder: the next is tried if a window fails its checks


@dataclass(frozen=True)
class Options:
    """Options of a transcription. `language` is Whisper's code, or None to detect it.

    `temperature` as in openai/whisper: 0 is greedy; the next one is tried if a window fails its checks. `keywords`:
    words to expect, put before every window, unlike `prompt`, which precedes the first window only. `languages`:
    candidates for detection; empty means all of the model's. `task`: `transcribe`, or `translate` into English.
    `logprobs`: return each token's log-probability. `chunking`: cut at silence; None uses the model's own windows.
    `uncut`: don't cut even if the server does by default. `beam_size`: 0 means the server's. `without_timestamps`:
    decode without timestamp tokens. `seed`: for sampling above temperature 0. `settled`: for live speech, the tokens
    with which the result begins; only the first window is transcribed, as one segment.
    """

    language: str | None = None
    prompt: str | None = None
    temperature: tuple[float, ...] = TEMPERATURES
    word_timestamps: bool = False
    keywords: tuple[str, ...] = ()
    languages: tuple[str, ...] = ()
    task: str = "transcribe"
    logprobs: bool = False
    chunking: Chunking | None = None
    uncut: bool = False
    beam_size: int = 0
    without_timestamps: bool = False
    seed: int = 0
    settled: tuple[int, ...] | None = None


@dataclass(frozen=True)
class Word:
    """One word with the space before it and its punctuation: start and end in seconds; its mean token probability."""

    word: str
    start: float
    end: float
    probability: float


@dataclass(frozen=True)
class Token:
    """A token of text, with U+FFFD for part of a character; its bytes; its log-probability."""

    text: str
    bytes: bytes
    logprob: float


@dataclass(frozen=True)
class Segment:
    """One segment as openai/whisper makes it: start and end in seconds, seek in frames of 10 ms, text with its space.

    `words` and `logprobs` (of the text's tokens) if requested.
    """

    id: int
    seek: int
    start: float
    end: float
    text: str
    tokens: tuple[int, ...]
    temperature: float
    avg_logprob: float
    compression_ratio: float
    no_speech_prob: float
    words: tuple[Word, ...] = ()
    logprobs: tuple[Token, ...] = ()


@dataclass(frozen=True)
class Transcription:
    """The whole result: text without surrounding space, Whisper's language code, seconds of audio, segments in order.

    `language` is the spoken one. A translation's text is English nevertheless.
    """

    text: str
    language: str
    duration: float
    segments: tuple[Segment, ...]
    task: str = "transcribe"
