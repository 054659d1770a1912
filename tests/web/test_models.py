"""The page's menu of models: what it offers, and that what is chosen transcribes."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from playwright.sync_api import expect

from tests.support import synthetic
from tests.support.page import choose, finished, transcript
from tests.support.serving import engine_for, settings_for, wav
from tests.web.conftest import OpenPage, Site, site_for


@pytest.fixture(scope="module")
def many(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    """An English-only default, and a multilingual model that takes everything for German."""
    models = tmp_path_factory.mktemp("many")
    synthetic.save_synthetic(models / "one_en")
    synthetic.save_synthetic(models / "both", multilingual=True)
    settings = settings_for(models / "one_en", models_dir=str(models))
    with engine_for(settings) as engine, site_for(engine) as site:
        yield site


def test_a_model_is_chosen_from_those_there_are(open_page: OpenPage, many: Site) -> None:
    page = open_page(many)
    page.get_by_text("Options").click()
    menu = page.get_by_label("Model", exact=True)
    expect(menu.locator("option").first).to_contain_text("one_en")
    expect(page.get_by_label("Language")).to_be_hidden()
    choose(page, ("first.wav", wav(1.0)))
    expect(transcript(finished(page, "first.wav"))).to_contain_text([synthetic.SENTENCE])
    expect(finished(page, "first.wav").locator(".state")).not_to_contain_text("German")
    menu.select_option("both")
    expect(page.locator("#model")).to_contain_text("Model both")
    expect(page.locator("#model")).to_have_attribute("data-state", "ready")
    expect(page.locator("#options-summary")).to_contain_text("both")
    expect(page.get_by_label("Language").locator("option")).to_have_count(3)
    choose(page, ("second.wav", wav(1.0)))
    expect(finished(page, "second.wav").locator(".state")).to_contain_text("German")
    menu.select_option("embedded")
    expect(page.locator("#model")).to_have_attribute("data-state", "poor")
    expect(page.locator("#embedded-notice")).to_be_visible()


def test_a_model_that_fails_says_so_on_its_recording(open_page: OpenPage, many: Site, tmp_path: Path) -> None:
    broken = Path(many.engine.settings.models_dir) / "broken"
    synthetic.save_synthetic(broken)
    (broken / "config.json").write_text("{}")
    page = open_page(many, may_fail=True)
    page.get_by_text("Options").click()
    page.get_by_label("Model", exact=True).select_option("broken")
    choose(page, ("lost.wav", wav(1.0)))
    expect(page.get_by_role("article", name="lost.wav").get_by_role("alert")).to_contain_text(
        "'broken' cannot be loaded"
    )
