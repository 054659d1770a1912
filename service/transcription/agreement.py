"""Which words of live speech are settled: those that two passes in a row hear alike.

LocalAgreement-2 of Macháček, Dabre and Bojar 2023, "Turning Whisper into Real-Time Transcription System". The next pass
is made to begin with the settled tokens, so that it cannot contradict them.
"""

from collections.abc import Sequence

from service.models.tokenizer import Tokenizer

N_CONTEXT = 50  # tokens of settled text that prompt the next window
TIME_PRECISION = 0.02  # seconds per timestamp token
WITHOUT_SPACES = ("zh", "ja", "th", "lo", "my", "yue")  # as in openai/whisper's `split_to_word_tokens`


class Agreement:
    """The settled tokens of one window of at most 30 s, which starts later when its beginning is cut off."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self.context: tuple[int, ...] = ()  # text before the window
        self.settled: tuple[int, ...] = ()  # with timestamps, from the window's start
        self.rest: tuple[int, ...] = ()  # text that the last pass heard after them

    def take(self, heard: Sequence[int], language: str) -> tuple[int, ...]:
        """Compare a pass with the last one → the text tokens that are settled now: whole words.

        `heard`: the window's tokens, which begin with `settled`.
        """
        text = self._text_after(heard)
        n = _n_common(text, self.rest)
        if n == len(text) > 0 and _last_pair(heard, self._tokenizer.timestamp_begin) == len(heard) - 1:
            self.settled, self.rest = tuple(heard), ()
            return text
        return self._settle(heard, text, self._n_whole_words(text, n, language))

    def take_all(self, heard: Sequence[int]) -> tuple[int, ...]:
        """Settle everything in a pass → its new text tokens. cut() may then drop all that it heard."""
        text = self._text_after(heard)
        self.settled, self.rest = tuple(heard), ()
        return text

    def cut(self, *, is_long: bool = True) -> float:
        """Drop the settled segments before the last pair of timestamps → their seconds, 0 without such a pair.

        Unless the window `is_long`, only where nothing follows the pair: the decoder would end there for good.
        """
        begin, tokens = self._tokenizer.timestamp_begin, self.settled
        at = _last_pair(tokens, begin)
        if at is None or not (is_long or at == len(tokens) - 1):
            return 0.0
        offset = tokens[at - 1] - begin
        self._leave(tokens[:at])
        self.settled = tuple(token - offset if token >= begin else token for token in tokens[at:])
        return offset * TIME_PRECISION

    def end_window(self, heard: Sequence[int], seconds: float) -> tuple[tuple[int, ...], float]:
        """Settle what Whisper settles when a window is full: all up to the last pair of timestamps, else everything.

        → the new text tokens, and the seconds that are done with. `seconds`: the window's length. The next window
        starts without settled tokens.
        """
        begin = self._tokenizer.timestamp_begin
        at = _last_pair(heard, begin)
        if at is not None and at > len(self.settled):
            heard, seconds = heard[:at], (heard[at - 1] - begin) * TIME_PRECISION
        text = self.take_all(heard)
        self.restart()
        return text, seconds

    def restart(self) -> None:
        """Start another window, of which nothing is settled."""
        self._leave(self.settled)
        self.settled = self.rest = ()

    def end_at(self, seconds: float) -> None:
        """The audio so far ends here: the decoder likes to put the last timestamp later."""
        last = self._tokenizer.timestamp_begin + int(seconds / TIME_PRECISION)
        if self.settled and self.settled[-1] > last:
            self.settled = (*self.settled[:-1], max((last, *self.settled[:-1])))

    def _leave(self, tokens: Sequence[int]) -> None:
        text = (token for token in tokens if token < self._tokenizer.eot)
        self.context = (*self.context, *text)[-N_CONTEXT:]

    def _text_after(self, heard: Sequence[int]) -> tuple[int, ...]:
        return tuple(token for token in heard[len(self.settled) :] if token < self._tokenizer.eot)

    def _settle(self, heard: Sequence[int], text: tuple[int, ...], n: int) -> tuple[int, ...]:
        """Settle the first `n` of the new text tokens, and the timestamps between them."""
        end = len(self.settled)
        for token in text[:n]:
            end = heard.index(token, end) + 1
        self.settled, self.rest = tuple(heard[:end]), text[n:]
        return text[:n]

    def _n_whole_words(self, text: Sequence[int], n: int, language: str) -> int:
        """The most of the first `n` tokens after which another word begins: the last one may be half a word."""
        while n and not self._is_border(text, n, language):
            n -= 1
        return n

    def _is_border(self, text: Sequence[int], n: int, language: str) -> bool:
        if n == len(text):
            return False
        if self._tokenizer.token_bytes(text[n]).startswith(b" "):
            return True
        # "\ufffd" may be the end of a character's first half.
        return language in WITHOUT_SPACES and not self._tokenizer.decode(text[:n]).endswith("\ufffd")


def _n_common(one: Sequence[int], other: Sequence[int]) -> int:
    n = 0
    while n < min(len(one), len(other)) and one[n] == other[n]:
        n += 1
    return n


def _last_pair(tokens: Sequence[int], begin: int) -> int | None:
    """The index of the last timestamp that directly follows another."""
    pairs = (i for i in range(len(tokens) - 1, 0, -1) if tokens[i] >= begin and tokens[i - 1] >= begin)
    return next(pairs, None)
