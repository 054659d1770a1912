"""Comparing transcripts with what was said, as real models err in words that they hear half."""

import re
from difflib import SequenceMatcher

# Of shared/speech/jfk.wav.
JFK = "and so my fellow americans ask not what your country can do for you ask what you can do for your country"


def words(text: str) -> str:
    """A text's words in lower case, without punctuation."""
    return " ".join(re.findall(r"[a-z]+", text.lower()))


def likeness(text: str, expected: str = JFK) -> float:
    """Of two texts' words: 1 if they are the same."""
    return SequenceMatcher(None, words(text).split(), words(expected).split()).ratio()
