"""English to be spoken: utterances from public-domain books and speeches, and sentences made from templates."""

import functools
import hashlib
import random
import re
from collections import Counter
from pathlib import Path

MAX_WORDS = 20  # about 8 s of speech: a piece must fit a window
ABBREVIATIONS = re.compile(r"\b(Mr|Mrs|Ms|Dr|St|Gen|Gov|Lt|Col|Hon|Rev|Messrs|Jr|Sr|No|vs)\.")
ALLOWED = re.compile(r"^[A-Za-z ,.?!'-]+$")

UNITS = """zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen
seventeen eighteen nineteen"""
ONES = UNITS.split()
TENS = ["zero", "ten", "twenty", "thirty", "forty", "fifty", "sixty", "seventy", "eighty", "ninety"]
RANKS = """first second third fourth fifth sixth seventh eighth ninth tenth eleventh twelfth thirteenth fourteenth
fifteenth sixteenth seventeenth eighteenth nineteenth twentieth"""
ORDINALS = RANKS.split()


@functools.cache
def everyday() -> tuple[dict[str, list[str]], list[str]]:
    """The word lists of `everyday.txt`, and its sentences with slots."""
    slots: dict[str, list[str]] = {}
    templates = []
    for line in (Path(__file__).parent / "everyday.txt").read_text().splitlines()[1:]:
        if match := re.match(r"(\w+):", line):
            slots.setdefault(match[1], []).extend(line[match.end() :].split())
        else:
            templates.append(line)
    return slots, templates


def spell(number: int) -> str:
    """42 → "forty-two", up to 999,999, as a speaker would say it."""
    if number >= 1000:
        rest = f" {spell(number % 1000)}" if number % 1000 else ""
        return f"{spell(number // 1000)} thousand{rest}"
    if number >= 100:
        rest = f" and {spell(number % 100)}" if number % 100 else ""
        return f"{ONES[number // 100]} hundred{rest}"
    if number < 20:
        return ONES[number]
    return TENS[number // 10] + (f"-{ONES[number % 10]}" if number % 10 else "")


def made_sentence(rng: random.Random) -> str:
    """One everyday sentence from a template: questions, names, numbers, times."""
    slots, templates = everyday()
    sentence = rng.choice(templates)
    while match := re.search(r"\{(\w+)\}", sentence):
        slot = match.group(1)
        if slot == "number":
            value = spell(rng.randrange(rng.choice((20, 100, 1000, 20_000))))
        elif slot == "hour":
            hour = ONES[rng.randrange(1, 13)]
            value = rng.choice((f"{hour} o'clock", f"half past {hour}", f"{hour} thirty"))
        elif slot == "year":
            value = f"{rng.choice(('eighteen', 'nineteen', 'twenty'))} {spell(rng.randrange(11, 100))}"
        elif slot == "ordinal":
            value = rng.choice(ORDINALS)
        else:
            value = rng.choice(slots[slot]).replace("New-York", "New York")
        sentence = sentence[: match.start()] + value + sentence[match.end() :]
    return sentence[0].upper() + sentence[1:]


def sentences(raw: str) -> list[str]:
    """A book's or a speech's text → its sentences, in order, without digits, quotes, headings or dashes."""
    start, end = raw.find("*** START OF"), raw.find("*** END OF")
    if start >= 0 and end > start:
        raw = raw[start + 80 : end]
    raw = raw.replace("’", "'").replace("--", ", ")
    paragraphs = re.split(r"\n\s*\n|\n(?=[A-Z][^\n]{200,})", raw)
    found: list[str] = []
    for paragraph in paragraphs:
        flat = re.sub(r"\s+", " ", re.sub(r'[_"“”()\[\]*]', "", paragraph)).strip()
        flat = ABBREVIATIONS.sub(r"\1∙", re.sub(r"\s*[;:]", ",", flat))
        for sentence in re.split(r"(?<=[.?!])\s+(?=[A-Z])", flat):
            sentence = re.sub(r"\s+([,.?!])", r"\1", re.sub(r"[,\s]*,", ",", sentence.replace("∙", "."))).strip(" ,")
            shouted = sum(word.isupper() and len(word) > 1 for word in sentence.split())
            if ALLOWED.match(sentence) and shouted == 0 and sentence[-1] in ".?!" and sentence[0].isupper():
                found.append(sentence)
    return found


def pieces(sentence: str, rng: random.Random) -> list[str]:
    """A sentence → pieces of at most `MAX_WORDS` words, cut after commas where there are any."""
    limit = rng.randrange(6, MAX_WORDS + 1)
    parts: list[str] = []
    current: list[str] = []
    words = sentence.split()
    for index, word in enumerate(words):
        current.append(word)
        left = len(words) - index - 1
        if left and (len(current) >= limit or (word.endswith(",") and len(current) >= limit // 2 and left > 1)):
            parts.append(" ".join(current))
            current = []
    return [*parts, " ".join(current)] if current else parts


def is_held_out(utterance: str) -> bool:
    """One utterance in forty is for testing only, chosen by its text so that no order or seed can leak it."""
    return hashlib.sha1(" ".join(utterance.lower().split()).encode()).digest()[0] < 6


def read_corpus(folder: Path) -> list[list[str]]:
    """Every text file of a folder → its sentences in reading order, one list a file."""
    return [sentences(path.read_text(encoding="utf-8", errors="ignore")) for path in sorted(folder.glob("*.txt"))]


def passages(corpus: list[list[str]], rng: random.Random, n_pieces: int = 5) -> list[list[str]]:
    """Passages for one voice each: 70 % from the corpus in reading order, 20 % made sentences, 10 % loose phrases."""
    vocabulary = Counter(word.strip(",.?!") for part in corpus for sentence in part for word in sentence.split())
    words = sorted(word for word in vocabulary if word and vocabulary[word] > 1)
    weights = [vocabulary[word] ** 0.3 for word in words]
    found: list[list[str]] = []
    for part in corpus:
        run: list[str] = []
        for sentence in part:
            run.extend(pieces(sentence, rng))
            if len(run) >= n_pieces:
                found.append(run)
                run = []
    n_corpus = len(found)
    for _ in range(n_corpus * 2 // 7):
        found.append([made_sentence(rng) for _ in range(n_pieces + 1)])
    for _ in range(n_corpus // 7):
        loose = [" ".join(rng.choices(words, weights, k=rng.randrange(1, 5))) for _ in range(n_pieces)]
        found.append([text[0].upper() + text[1:] + rng.choice(".?.!") for text in loose])
    rng.shuffle(found)
    return found
