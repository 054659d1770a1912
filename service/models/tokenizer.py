"""Whisper's tokenizer: ids → text by the vocabulary, text → ids by the `tokenizers` library; tokens never sampled.

In every Whisper vocabulary, text tokens are below <|endoftext|>, special and timestamp tokens above. The library takes
a sixth of a cold start and only prompts need it, so the first prompt loads it.
"""

import json
from collections.abc import Iterable, Mapping
from functools import cached_property
from typing import TYPE_CHECKING, Any

from kernels.checkpoints.vocabulary import BYTE_NAMES, BYTE_OF, merged
from service.errors import ModelError
from service.models.languages import LANGUAGES

if TYPE_CHECKING:
    from tokenizers import Tokenizer as Library

NAMES = {  # the guest's names → the tokens, in older vocabularies the second
    "sot": ("<|startoftranscript|>",),
    "eot": ("<|endoftext|>",),
    "transcribe": ("<|transcribe|>",),
    "translate": ("<|translate|>",),
    "sot_lm": ("<|startoflm|>",),
    "sot_prev": ("<|startofprev|>",),
    "no_speech": ("<|nospeech|>", "<|nocaptions|>"),
    "no_timestamps": ("<|notimestamps|>",),
}
FIRST_TIMESTAMP = "<|0.00|>"

# Symbols that transcripts contain but nobody says: openai/whisper 20250625 `non_speech_tokens`.
_SYMBOLS = (
    *'"#()*+/:;<=>@[\\]^_`{|}~「」『』',
    *("<<", ">>", "<<<", ">>>", "--", "---", "-(", "-[", "('", '("', "((", "))", "(((", ")))", "[[", "]]", "{{", "}}"),
    *("♪♪", "♪♪♪"),
)
_MUSIC = tuple("♩♪♫♬♭♮♯")  # several tokens each; suppressing the first is enough


class Tokenizer:
    """A tokenizer.json read for one model. Thread-safe. Raises ModelError if it isn't a Whisper tokenizer."""

    def __init__(self, tokenizer_json: str, n_vocab: int, is_multilingual: bool) -> None:
        try:
            vocabulary, added = _read(tokenizer_json)
        except (ValueError, RecursionError) as error:
            raise ModelError(f"The model's tokenizer.json cannot be read: {error}.") from error
        self._json = tokenizer_json
        self.n_vocab = n_vocab
        self.is_multilingual = is_multilingual
        ids = vocabulary | added
        self.special = {name: self._find(ids, *tokens) for name, tokens in NAMES.items()}
        self.timestamp_begin: int = ids.get(FIRST_TIMESTAMP, self.special["no_timestamps"] + 1)
        self.eot = self.special["eot"]
        self.languages: dict[str, int] = {}
        if is_multilingual:
            found = {code: ids.get(f"<|{code}|>", n_vocab) for code in LANGUAGES}
            self.languages = {code: token for code, token in found.items() if token < n_vocab}
        lowest = min(*self.special.values(), *self.languages.values(), self.timestamp_begin)
        if lowest < self.eot or self.timestamp_begin >= n_vocab:
            raise ModelError(
                f"The model's tokenizer.json does not belong to its {n_vocab} tokens: <|endoftext|> is {self.eot}, "
                f"the lowest special token {lowest}, the first timestamp {self.timestamp_begin}."
            )
        self._pieces = dict(zip(ids.values(), ids, strict=True))
        self.suppress = self._never_sampled(vocabulary)
        self.blank = _merged(" ", vocabulary)  # ids of a lone space, with which no transcript starts

    def speaks(self, language: str) -> bool:
        """Whether the model knows this language, in Whisper's code. A model without language tokens is English-only."""
        return language in (self.languages or ("en",))

    def _find(self, ids: Mapping[str, int], *tokens: str) -> int:
        for token in tokens:
            if (found := ids.get(token, self.n_vocab)) < self.n_vocab:
                return found
        raise ModelError(
            f"The model's tokenizer.json has no token {tokens[0]} below {self.n_vocab}: it is another model's."
        )

    def _never_sampled(self, vocabulary: Mapping[str, int]) -> list[int]:
        """Sorted ids that are never sampled: symbols that nobody says, and special tokens that only prompts contain.

        The rule of openai/whisper's `non_speech_tokens` with `suppress_tokens="-1"`. Hyphen and apostrophe are allowed,
        but not at the start of a word.
        """
        ids = {*_merged(" -", vocabulary)[:1], *_merged(" '", vocabulary)[:1]}
        for symbol in (*_SYMBOLS, *_MUSIC):
            for tokens in (_merged(symbol, vocabulary), _merged(" " + symbol, vocabulary)):
                if len(tokens) == 1 or symbol in _MUSIC:
                    ids |= {*tokens[:1]}
        return sorted(ids | {id for name, id in self.special.items() if name not in ("eot", "no_timestamps")})

    @cached_property
    def _library(self) -> "Library":
        from tokenizers import Tokenizer as Library

        try:
            return Library.from_str(self._json)
        except Exception as error:
            raise ModelError(f"The model's tokenizer.json cannot be read: {error}.") from error

    def encode(self, text: str) -> list[int]:
        """Text → ids. Text that looks like a special token stays text: a prompt cannot inject one.

        Raises ModelError for a fault in a part of tokenizer.json that only the library reads.
        """
        words = [text]
        if (splitter := self._library.pre_tokenizer) is not None:
            words = [word for word, _ in splitter.pre_tokenize_str(text)]
        model = self._library.model
        return [token.id for word in words for token in model.tokenize(word)]

    def decode(self, ids: Iterable[int]) -> str:
        """Ids → text with its leading space, without special tokens and timestamps; invalid UTF-8 becomes U+FFFD.

        ValueError for an id outside the vocabulary.
        """
        data = bytearray()
        for token in ids:
            if not 0 <= token < self.n_vocab:
                raise ValueError(f"token {token} is outside the vocabulary of {self.n_vocab}")
            if token < self.eot:
                data += self.token_bytes(token)
        return data.decode("utf-8", "replace")

    def token_bytes(self, token: int) -> bytes:
        """The bytes of one text token, possibly part of a character. ValueError for other tokens."""
        if not 0 <= token < self.eot:
            raise ValueError(f"token {token} isn't text")
        piece = self._pieces.get(token, "")
        try:
            return bytes([BYTE_OF[character] for character in piece])
        except KeyError:  # an added token, stored as plain text
            return piece.encode("utf-8", "replace")

    def guest_tokens(self) -> dict[str, Any]:
        """The guest argument's "tokens"."""
        return {
            **self.special,
            "timestamp_begin": self.timestamp_begin,
            "languages": self.languages,
            "suppress": self.suppress,
            "blank": self.blank,
        }


def _read(tokenizer_json: str) -> tuple[dict[str, int], dict[str, int]]:
    """The model's vocabulary and its added tokens, each piece → id.

    Raises ValueError if it isn't the tokenizer.json of a byte-level BPE.
    """
    file = json.loads(tokenizer_json)
    match file:
        case {
            "added_tokens": [*listed],
            "decoder": {"type": "ByteLevel"},
            "model": {"type": "BPE", "vocab": dict() as vocabulary},
        }:
            pass
        case _:
            raise ValueError("it isn't a byte-level BPE with a vocabulary")
    added = {}
    for token in listed:
        match token:
            case {"id": int() as id, "content": str() as content}:
                added[content] = id
            case _:
                raise ValueError(f"an added token is {token!r:.80}")
    if not {type(id) for id in vocabulary.values()} <= {int}:
        raise ValueError("an id in its vocabulary isn't a whole number")
    return vocabulary, added


def _merged(text: str, vocabulary: Mapping[str, int]) -> list[int]:
    """One word → ids, which are in the order in which a vocabulary's merges were found."""
    pieces = merged([BYTE_NAMES[byte] for byte in text.encode()], vocabulary)
    return [vocabulary[piece] for piece in pieces if piece in vocabulary]
