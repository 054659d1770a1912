"""Languages: whatever a client calls one, Whisper's code for it."""

import pytest

from service.models import languages
from service.models.languages import LANGUAGES, language_code, language_name


@pytest.mark.parametrize(
    ("text", "code"),
    [
        ("en", "en"),
        ("EN", "en"),
        ("en-US", "en"),
        ("pt_BR", "pt"),
        (" english ", "en"),
        ("Haitian Creole", "ht"),
        ("zh-Hant-TW", "zh"),
        ("mandarin", "zh"),
        ("iw", "he"),
        ("nb-NO", "no"),
        ("yue", "yue"),
        ("klingon", None),
        ("e", None),
        ("-", None),
        ("🙂", None),
    ],
)
def test_a_language_is_found_by_code_tag_or_name(text: str, code: str | None) -> None:
    assert language_code(text) == code


def test_there_are_a_hundred_with_distinct_names() -> None:
    assert len(LANGUAGES) == len(set(LANGUAGES.values())) == 100
    assert all(language_code(name) == code for code, name in LANGUAGES.items())


def test_names_are_as_openai_answers_them() -> None:
    assert (language_name("en"), language_name("ht"), language_name("xx")) == ("english", "haitian creole", "xx")


@pytest.mark.parametrize(
    ("sent", "code"),
    [
        ("deu", "de"), ("ger", "de"), ("fra", "fr"), ("FRE", "fr"), ("spa", "es"), ("jpn", "ja"), ("zho", "zh"),
        ("chi", "zh"), ("cmn", "zh"), ("cmn-Hans-CN", "zh"), ("yue", "yue"), ("zh-TW", "zh"), ("eng-US", "en"),
        ("arb", "ar"), ("pes", "fa"), ("nob", "no"), ("nno", "nn"), ("fil", "tl"), ("haw", "haw"), ("wel", "cy"),
        ("srp-Latn", "sr"), ("jav", "jw"),
    ],
)  # fmt: skip
def test_three_letter_codes_are_understood(sent: str, code: str) -> None:
    assert language_code(sent) == code


def test_every_language_has_a_three_letter_code_and_none_has_two_meanings() -> None:
    threes = [code for code in languages._CODES if len(code) == 3 and code.isalpha()]
    assert {languages._CODES[three] for three in threes} | {"haw", "yue"} == set(LANGUAGES)
    listed = [three for entry in languages._THREE_LETTERS.split(",") for three in entry.split()[1:]]
    assert len(listed) == len(set(listed))
    for text in ("xyz", "de1", "und", "mul"):
        assert language_code(text) is None
