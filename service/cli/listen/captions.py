"""Shows captions: on a terminal, as lines of text, or as lines of JSON. Utterances finish in order."""

import json
import os
import unicodedata
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol, TextIO

Printable = Callable[[str], str]


@dataclass
class Utterance:
    """One utterance so far; times in seconds from the start of the sound."""

    number: int
    start: float
    settled: str = ""
    rest: str = ""
    end: float | None = None
    language: str = ""
    is_final: bool = False


class Captions(Protocol):
    """A way to show captions. Each method is called after the utterance has changed."""

    def heard(self, utterance: Utterance, new: str) -> None:
        """Show `new`, which has been settled, and the new rest."""

    def finished(self, utterance: Utterance) -> None:
        """Show the whole text, `settled`; empty if there were no words, or if it failed."""

    def close(self) -> None:
        """End the output."""


class JsonLines:
    """An object per line: settled words, the unsettled rest, each finished utterance."""

    def __init__(self, out: TextIO) -> None:
        self._out = out

    def heard(self, utterance: Utterance, new: str) -> None:
        """See Captions."""
        if new:
            self._write(utterance, "settled", text=new)
        if not utterance.is_final:
            self._write(utterance, "rest", text=utterance.rest)

    def finished(self, utterance: Utterance) -> None:
        """See Captions."""
        if utterance.settled.strip():
            self._write(utterance, "final", end=utterance.end, text=utterance.settled, language=utterance.language)

    def close(self) -> None:
        """See Captions."""

    def _write(self, utterance: Utterance, kind: str, **values: Any) -> None:
        line = {"type": kind, "utterance": utterance.number, "start": utterance.start, **values}
        self._out.write(json.dumps(line, ensure_ascii=False) + "\n")
        self._out.flush()


class Lines:
    """A line per finished utterance with words."""

    def __init__(self, out: TextIO) -> None:
        self._out = out

    def heard(self, utterance: Utterance, new: str) -> None:
        """See Captions."""

    def finished(self, utterance: Utterance) -> None:
        """See Captions."""
        if text := utterance.settled.strip():
            self._out.write(text + "\n")
            self._out.flush()

    def close(self) -> None:
        """See Captions."""


class Terminal:
    """Finished utterances as lines; below them the others, rewritten in place, with unsettled words dim."""

    DIM, FIRM, UP, CLEAR_BELOW = "\x1b[2m", "\x1b[0m", "\x1b[{}A", "\x1b[J"

    def __init__(self, out: TextIO, printable: Printable, size: Callable[[], os.terminal_size]) -> None:
        """`printable`: makes text safe to show on a terminal."""
        self._out, self._printable, self._size = out, printable, size
        self._open: dict[int, Utterance] = {}
        self._n_rows = 0  # rows of unfinished utterances on the screen

    def heard(self, utterance: Utterance, new: str) -> None:
        """See Captions."""
        if not utterance.is_final:
            self._open[utterance.number] = utterance
            self._draw("")

    def finished(self, utterance: Utterance) -> None:
        """See Captions."""
        self._open.pop(utterance.number, None)
        text = self._printable(utterance.settled.strip())
        self._draw(text + "\n" if text else "")

    def close(self) -> None:
        """See Captions."""
        self._open.clear()
        self._draw("")

    def _draw(self, above: str) -> None:
        size = self._size()
        rows: list[str] = []
        for _, utterance in sorted(self._open.items()):
            settled, rest = self._printable(utterance.settled.lstrip()), self._printable(utterance.rest)
            rest = rest if settled else rest.lstrip()
            at = len(settled)
            for line in wrapped(settled + rest, size.columns):
                firm, dim = line[: max(0, at)], line[max(0, at) :]
                rows.append(firm + (f"{self.DIM}{dim}{self.FIRM}" if dim.strip() else dim))
                at -= len(line)
        rows = rows[-max(1, size.lines - 1) :]
        back = "\r" + (self.UP.format(self._n_rows - 1) if self._n_rows > 1 else "") + self.CLEAR_BELOW
        self._out.write(back + above + "\n".join(rows))
        self._out.flush()
        self._n_rows = len(rows)


def wrapped(text: str, columns: int) -> list[str]:
    """The text in lines of fewer than `columns` cells, broken at spaces if possible. Joined, they are the text."""
    lines: list[str] = []
    start = space = width = 0
    for at, character in enumerate(text):
        width += cells(character)
        if width >= max(2, columns) and at > start:
            end = space if space > start else at
            lines.append(text[start:end])
            start, width = end, sum(map(cells, text[end : at + 1]))
        if character == " ":
            space = at + 1
    return [*lines, text[start:]] if start < len(text) else lines


def cells(character: str) -> int:
    """The cells that the character takes on a terminal."""
    if unicodedata.combining(character) or unicodedata.category(character) in ("Cf", "Mn", "Me"):
        return 0
    return 2 if unicodedata.east_asian_width(character) in ("W", "F") else 1


class Ordered:
    """Passes utterances on to captions as they are heard, and finishes them in order."""

    def __init__(self, captions: Captions) -> None:
        self._captions = captions
        self._open: list[Utterance] = []
        self._n = 0

    def start(self, at_s: float) -> Utterance:
        """Begin an utterance."""
        self._n += 1
        utterance = Utterance(self._n, round(at_s, 3))
        self._open.append(utterance)
        return utterance

    def heard(self, utterance: Utterance, new: str, rest: str) -> None:
        """Add settled words, and replace those that may still change."""
        if new or rest != utterance.rest:
            utterance.settled += new
            utterance.rest = rest
            self._captions.heard(utterance, new)

    def finish(self, utterance: Utterance, text: str, language: str) -> None:
        """Finish an utterance with its whole text, which begins with its settled words."""
        new = text[len(utterance.settled) :]
        utterance.settled, utterance.rest, utterance.language, utterance.is_final = text, "", language, True
        if new:
            self._captions.heard(utterance, new)
        self._close()

    def fail(self, utterance: Utterance) -> None:
        """Finish an utterance without its missing words."""
        utterance.rest, utterance.is_final = "", True
        self._close()

    def _close(self) -> None:
        while self._open and self._open[0].is_final:
            self._captions.finished(self._open.pop(0))
