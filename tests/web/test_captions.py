"""Words on the page while you speak: with real speech in the microphone, and without a session."""

import json
import re
from pathlib import Path

from playwright.sync_api import Browser, WebSocketRoute, expect

from tests.support.page import transcript
from tests.support.serving import engine_for, settings_for
from tests.web.conftest import OpenPage, Site, launched, opener, site_for

SAMPLE = Path(__file__).parents[2] / "assets" / "sample.wav"


def test_words_come_while_you_speak_and_the_card_follows(browser: Browser, tiny_en: Path) -> None:
    speaking = launched(browser.browser_type, SAMPLE)
    with engine_for(settings_for(tiny_en)) as engine, site_for(engine) as site, opener(speaking) as open_page:
        page = open_page(site)
        page.get_by_role("button", name="Record", exact=True).click()
        captions = page.get_by_role("log", name="Captions")
        expect(captions.locator("#captions-said")).to_contain_text(re.compile(r"\w+ \w+ \w+"))
        said = captions.locator("#captions-said").inner_text()
        page.wait_for_function(
            "(said) => document.getElementById('captions-said').innerText.length > said.length", arg=said
        )
        assert captions.locator("#captions-said").inner_text().startswith(said), "settled words stay"
        page.get_by_role("button", name="Stop and transcribe").click()
        expect(transcript(page.get_by_role("article")).first).to_contain_text(re.compile(r"\w+ \w+ \w+"))
        page.get_by_role("button", name="Record", exact=True).click()
        expect(page.get_by_role("group", name="Recording")).to_be_visible()
        assert said not in captions.locator("#captions-said").inner_text(), "a new recording starts without words"
        page.get_by_role("button", name="Discard").click()
    speaking.close()


def test_a_session_that_cannot_begin_is_closed(open_page: OpenPage, site: Site) -> None:
    """The server may leave that to the page, which must not collect audio for ever."""
    page, closed = open_page(site), list[int | None]()

    def refuse(socket: WebSocketRoute) -> None:
        error = {"type": "error", "error": {"message": "The model could not be loaded."}}
        socket.on_message(lambda _: socket.send(json.dumps(error)))
        socket.on_close(lambda code, _: closed.append(code))

    page.route_web_socket("**/v1/realtime*", refuse)
    page.get_by_role("button", name="Record", exact=True).click()
    expect(page.get_by_role("group", name="Recording")).to_contain_text(re.compile(r"0:0[1-9]"))
    assert closed
    page.get_by_role("button", name="Discard").click()


def test_where_the_socket_is_refused_the_recording_goes_on(open_page: OpenPage, site: Site) -> None:
    page = open_page(site)
    page.route_web_socket("**/v1/realtime*", lambda socket: socket.close())
    page.get_by_role("button", name="Record", exact=True).click()
    expect(page.get_by_role("group", name="Recording")).to_contain_text(re.compile(r"0:0[1-9]"))
    expect(page.locator("#captions")).to_be_hidden()
    page.get_by_role("button", name="Stop and transcribe").click()
    expect(transcript(page.get_by_role("article")).first).to_contain_text("Ask not what")
