"""Whisper's tokenizer: text ↔ ids by the `tokenizers` library, special tokens by name, what is never sampled.

Text tokens lie below <|endoftext|>, special and timestamp tokens from there on, in every Whisper vocabulary.
"""

from collections.abc import Iterable
from functools import cached_property
from typing import Any

from service.errors import ModelError
from service.languages import LANGUAGES

NAMES = {  # the guest's names → the tokens', older vocabularies' second
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

# What transcripts of speech contain, but nobody says: openai/whisper 20250625 `non_speech_tokens`.
_LONGER = (
    "<<",
    ">>",
    "<<<",
    ">>>",
    "--",
    "---",
    "-(",
    "-[",
    "('",
    '("',
    "((",
    "))",
    "(((",
    ")))",
    "[[",
    "]]",
    "{{",
    "}}",
)
_SYMBOLS = (*'"#()*+/:;<=>@[\\]^_`{|}~「」『』', *_LONGER, "♪♪", "♪♪♪")
_MUSIC = tuple("♩♪♫♬♭♮♯")  # several tokens each, of which the first is enough to tell


class Tokenizer:
    """A tokenizer.json read for one model. Thread-safe. Raises ModelError where it is no tokenizer of Whisper's."""

    def __init__(self, tokenizer_json: str, n_vocab: int, is_multilingual: bool) -> None:
        # Imported here: `wisp doctor` and the like need no tokenizer, and the library takes 40 ms to load.
        from tokenizers import Tokenizer as Library

        try:
            self._library = Library.from_str(tokenizer_json)
        except Exception as error:
            raise ModelError(f"The model's tokenizer.json cannot be read: {error}.") from error
        self.n_vocab = n_vocab
        self.is_multilingual = is_multilingual
        self.special = {name: self._find(*tokens) for name, tokens in NAMES.items()}
        first_timestamp = self._library.token_to_id(FIRST_TIMESTAMP)
        self.timestamp_begin: int = self.special["no_timestamps"] + 1 if first_timestamp is None else first_timestamp
        self.eot = self.special["eot"]
        self.languages: dict[str, int] = {}
        if is_multilingual:
            found = {code: self._library.token_to_id(f"<|{code}|>") for code in LANGUAGES}
            self.languages = {code: token for code, token in found.items() if token is not None and token < n_vocab}
        lowest = min(*self.special.values(), *self.languages.values(), self.timestamp_begin)
        if lowest < self.eot or self.timestamp_begin >= n_vocab:
            raise ModelError(
                f"The model's tokenizer.json does not belong to its {n_vocab} tokens: <|endoftext|> is {self.eot}, "
                f"the lowest special token {lowest}, the first timestamp {self.timestamp_begin}."
            )

    def speaks(self, language: str) -> bool:
        """Whether the model has this language, in Whisper's code. Without a token for any it is an English one."""
        return language in (self.languages or ("en",))

    def _find(self, *tokens: str) -> int:
        for token in tokens:
            found: int | None = self._library.token_to_id(token)
            if found is not None and found < self.n_vocab:
                return found
        raise ModelError(
            f"The model's tokenizer.json has no token {tokens[0]} below {self.n_vocab}: it is another model's."
        )

    def encode(self, text: str) -> list[int]:
        """Text → ids. Text that looks like a special token is text: a prompt cannot smuggle one in."""
        words = [text]
        if (splitter := self._library.pre_tokenizer) is not None:
            words = [word for word, _ in splitter.pre_tokenize_str(text)]
        model = self._library.model
        return [token.id for word in words for token in model.tokenize(word)]

    def decode(self, ids: Iterable[int]) -> str:
        """Ids → text with its leading space, without special tokens and timestamps; bytes that are no UTF-8 as U+FFFD.

        ValueError for an id outside the vocabulary.
        """
        text_ids = []
        for token in ids:
            if not 0 <= token < self.n_vocab:
                raise ValueError(f"token {token} is not one of {self.n_vocab}")
            if token < self.eot:
                text_ids.append(token)
        decoded: str = self._library.decode(text_ids, skip_special_tokens=False)
        return decoded

    @cached_property
    def _bytes_of(self) -> dict[str, int]:
        """What byte each character of a byte-level vocabulary stands for: itself where it can be seen, as in GPT-2."""
        seen = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
        unseen = [byte for byte in range(0x100) if byte not in seen]
        return {chr(byte): byte for byte in seen} | {chr(0x100 + n): byte for n, byte in enumerate(unseen)}

    def token_bytes(self, token: int) -> bytes:
        """The bytes of one text token, which may be a part of a character. ValueError for no text token."""
        if not 0 <= token < self.eot:
            raise ValueError(f"token {token} is no text")
        return bytes(self._bytes_of[character] for character in self._library.id_to_token(token) or "")

    @cached_property
    def suppress(self) -> list[int]:
        """Ids never to be sampled, sorted: symbols nobody says, and special tokens that only a prompt holds.

        The rule of openai/whisper's `non_speech_tokens` with `suppress_tokens="-1"`. Hyphen and apostrophe stay, but
        may not start a word.
        """
        ids = {self.encode(" -")[0], self.encode(" '")[0]}
        for symbol in (*_SYMBOLS, *_MUSIC):
            for tokens in (self.encode(symbol), self.encode(" " + symbol)):
                if len(tokens) == 1 or symbol in _MUSIC:
                    ids.add(tokens[0])
        return sorted(ids | {id for name, id in self.special.items() if name not in ("eot", "no_timestamps")})

    @cached_property
    def blank(self) -> list[int]:
        """Ids of a lone space, which no transcript starts with."""
        return self.encode(" ")

    def guest_tokens(self) -> dict[str, Any]:
        """The guest argument's "tokens"."""
        return {
            **self.special,
            "timestamp_begin": self.timestamp_begin,
            "languages": self.languages,
            "suppress": self.suppress,
            "blank": self.blank,
        }
