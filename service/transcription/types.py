"""What a caller may ask of a transcription, and what comes of one: options; words, segments and the whole."""

from dataclasses import dataclass

from service.transcription.chunking import Chunking

TEMPERATURES = (0.0, 0.2, 0.4, 0.6, 0.8, 1.0)  # openai/whisper's ladder: the next where a window fails its checks


@dataclass(frozen=True)
class Options:
    """What a caller may ask for. `language` is Whisper's code or None to detect it.

    `temperature` as in openai/whisper: 0 is greedy; of several, the next is tried when a window fails its checks.
    `keywords` are words to expect: unlike `prompt`, which leads up to the first window, they are put before every one.
    `languages`: what detection chooses among, all of the model's where there are none. `task`: `transcribe`, or
    `translate` into English. `logprobs`: each token's log-probability. `chunking`: what of the audio is heard; all of
    it, in the model's own windows, without. `uncut`: all of it too where the server cuts by default. `beam_size`: 0 is
    the server's. `without_timestamps`: decode without timestamp tokens. `seed`: of the random numbers at temperatures
    above 0.
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


@dataclass(frozen=True)
class Word:
    """One word with the space before it and its punctuation: start, end in seconds; its mean token probability."""

    word: str
    start: float
    end: float
    probability: float


@dataclass(frozen=True)
class Token:
    """A token of text, U+FFFD where it is a part of a character; its bytes; its log-probability."""

    text: str
    bytes: bytes
    logprob: float


@dataclass(frozen=True)
class Segment:
    """One segment as openai/whisper makes it: start, end in seconds, seek in frames of 10 ms, text with its space.

    `words` and `logprobs` (of the text's tokens) where they were asked for.
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
    """The whole answer: text without space around it, Whisper's language code, seconds of audio, segments in order.

    `language` is the one spoken. A translation's text is English all the same.
    """

    text: str
    language: str
    duration: float
    segments: tuple[Segment, ...]
    task: str = "transcribe"
