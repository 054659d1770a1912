"""wisp doctor: a report whose last line can be believed."""

from pathlib import Path

import pytest

from service.cli.doctor import examine
from service.settings import Settings
from tests.support import synthetic
from tests.support.serving import settings_for


@pytest.fixture(autouse=True)
def cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    """The guest's machine code is kept out of the home of whoever runs the tests."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.getbasetemp() / "cache"))


def report(settings: Settings) -> tuple[bool, str]:
    lines: list[str] = []
    passed = examine(settings, lines.append)
    return passed, "".join(lines)


def test_a_healthy_machine_passes_and_says_why_its_target_was_chosen(folder: Path) -> None:
    passed, text = report(settings_for(folder))
    assert passed
    assert "wisp 0." in text and "wasmtime" in text
    assert "target     cpu means cpu. The CPU was requested." in text
    assert "\nprocessor  the CPU target computes with " in text
    assert "imports as expected" in text
    assert f"model      synthetic, from {folder}" in text
    assert text.splitlines()[-1].startswith("self-test  passed on the cpu target: ")


def test_adapters_are_listed_or_said_to_be_none(folder: Path) -> None:
    _, text = report(settings_for(folder, target="auto"))
    assert "\nadapter    " in text or "\nadapters   none" in text
    if "\nadapter    " in text:
        assert "features: subgroup " in text and "max-buffer-size" in text


def test_the_target_told_is_the_one_that_serves(folder: Path) -> None:
    settings = Settings(preload=f"default:autodetect:CPU:{folder}", target="auto")
    passed, text = report(settings)
    assert passed and "target     cpu means cpu." in text


def test_a_missing_model_fails_and_the_rest_is_still_told(tmp_path: Path) -> None:
    passed, text = report(settings_for(tmp_path / "nowhere"))
    assert not passed
    assert "model      FAILED" in text and "self-test  FAILED" in text and "guest      " in text


def test_a_broken_model_fails_the_self_test(folder: Path, tmp_path: Path) -> None:
    broken = synthetic.save_synthetic(tmp_path / "broken")
    (broken / "tokenizer.json").write_text("{}")
    passed, text = report(settings_for(broken))
    assert not passed
    assert "self-test  FAILED" in text.splitlines()[-1]
