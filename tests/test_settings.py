"""Settings: read once from flags and the environment, and all documented."""

import re

import pytest

from service.cli.main import _settings
from service.cli.parser import parse
from service.settings import TABLE, Settings, markdown_table, read_settings
from tests.conftest import ROOT


def test_flags_win_over_the_environment_and_the_environment_over_defaults() -> None:
    settings = read_settings({"WISP_PORT": "9000", "WISP_TARGET": "cpu"}, {"port": "9001", "target": None})
    assert (settings.port, settings.target, settings.host) == (9001, "cpu", "127.0.0.1")


def test_an_empty_variable_is_an_unset_one() -> None:
    assert read_settings({"WISP_PORT": ""}).port == Settings().port


@pytest.mark.parametrize(
    ("variable", "value", "words"),
    [
        ("WISP_PORT", "http", "whole number"),
        ("WISP_PORT", "65536", "at most 65535"),
        ("WISP_PORT", "-1", "at least 0"),
        ("WISP_OPEN_JOBS", "0", "at least 1"),
        ("WISP_MAX_AUDIO_S", "nan", "a number"),
        ("WISP_TARGET", "tpu", "auto, gpu, cpu"),
        ("WISP_LOG_LEVEL", "loud", "debug"),
    ],
)
def test_a_value_that_cannot_be_read_is_named_in_one_sentence(variable: str, value: str, words: str) -> None:
    with pytest.raises(ValueError, match=words) as raised:
        read_settings({variable: value})
    assert variable in str(raised.value) and value in str(raised.value)


@pytest.mark.parametrize("origins", ["*", "https://a.example", "http://localhost:3000/, app://obsidian.md"])
def test_an_origin_is_as_browsers_send_it(origins: str) -> None:
    settings = read_settings({"WISP_CORS_ORIGINS": origins})
    assert settings.cors_origin_list() == [origin.strip(" /") for origin in origins.split(",")]


@pytest.mark.parametrize(
    "origins", ["https://*.a.example", "http://localhost:*", "https://*.a.example:*, http://[::1]:*"]
)
def test_a_star_in_an_origin_is_a_first_label_or_a_port(origins: str) -> None:
    assert read_settings({"WISP_CORS_ORIGINS": origins}).cors_origins == origins


@pytest.mark.parametrize(
    "origin",
    [
        "foo",
        "https://a.example/page",
        "a.example:80",
        "https://*",
        "https://*a.example",
        "https://a.*.example",
        "https://*.*.example",
        "*://a.example",
        "https://a.example:80*",
        "**",
    ],
)
def test_rejects_an_origin_that_no_browser_sends(origin: str) -> None:
    with pytest.raises(ValueError, match=re.escape(f"'{origin}' isn't an origin")):
        read_settings({"WISP_CORS_ORIGINS": f"https://b.example,{origin}"})


def test_an_error_states_the_bound_in_full() -> None:
    with pytest.raises(ValueError, match="at least 1048576"):
        read_settings({"WISP_GUEST_MEMORY_BYTES": "1000000"})


def test_a_bad_flag_is_named_as_the_flag() -> None:
    with pytest.raises(ValueError, match="--port is 'x'"):
        read_settings({}, {"port": "x"})


def test_the_demos_preload_variable_is_a_setting() -> None:
    preload = "default:Burn:GPU:/tiny_en.mpk:/tiny_en.cfg:/tokenizer.json:en"
    assert read_settings({"WASMEDGE_WASINN_PRELOAD": preload}).preload == preload


def test_a_user_without_a_home_has_settings() -> None:
    assert Settings(models_dir="~no-such-user/models").models_path().name == "models"


def test_aliases_are_names_without_spaces_around_them() -> None:
    assert read_settings({"WISP_ALIASES": " whisper-1, base ,"}).alias_names() == {"whisper-1", "base"}


def test_every_setting_is_documented() -> None:
    page = (ROOT / "docs" / "settings.md").read_text()
    for setting in TABLE:
        assert f"`{setting.variable}`" in page, f"docs/settings.md says nothing of {setting.variable}"
    assert markdown_table() in page, 'regenerate: python -c "from service.settings import *; print(markdown_table())"'


def test_a_server_takes_several_models_by_flags_or_by_commas() -> None:
    flags = _settings(parse(["serve", "--model", "tiny.en", "--model", "base"]))
    assert flags.models() == ["tiny.en", "base"] == Settings(model=" tiny.en, base,").models()
    assert _settings(parse(["transcribe", "--model", "base", "x.wav"])).models() == ["base"]
