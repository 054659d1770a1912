"""Languages: whatever a client calls one, Whisper's code for it."""

import pytest

from service.languages import LANGUAGES, language_code, language_name


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
