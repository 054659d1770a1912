"""What goes wrong in front of the user: refusals, a full queue, keys, a network that is gone. Nothing is lost by it."""

import json
import re
import threading
from pathlib import Path

import pytest
from playwright.sync_api import Route, expect

from service.errors import DeviceLost
from service.transcription.run import Run
from tests.support.page import card, choose, finished, transcript
from tests.support.serving import TRAP, engine_for, settings_for, wav
from tests.web.conftest import OpenPage, Site, site_for


def test_a_refusal_is_shown_in_the_servers_words(open_page: OpenPage, site: Site) -> None:
    page = open_page(site, may_fail=True)
    choose(page, ("notes.txt", b"no sound at all"))
    alert = card(page, "notes.txt").get_by_role("alert")
    expect(alert).to_contain_text("notes.txt was not transcribed.")
    expect(alert).to_contain_text("format")
    expect(alert).to_contain_text("Request req_")


def test_what_a_network_or_a_server_failed_at_is_tried_again(open_page: OpenPage, hostile_site: Site) -> None:
    page = open_page(hostile_site, may_fail=True)
    page.get_by_text("Options").click()
    page.get_by_label("Prompt").fill(TRAP)
    choose(page, ("talk.wav", wav(1.0)))
    one = card(page, "talk.wav")
    expect(one.get_by_role("alert")).to_contain_text("The server failed to process this request")
    page.get_by_label("Prompt").fill("")
    page.route("**/v1/audio/*", lambda route: route.abort("connectionreset"))
    one.get_by_role("button", name="Try again").click()
    expect(one.get_by_role("alert")).to_contain_text("Nothing is lost: the audio is still here.")
    expect(one.get_by_role("alert")).not_to_contain_text("The server failed")
    page.unroute("**/v1/audio/*")
    one.get_by_role("button", name="Try again").click()
    finished(page, "talk.wav")
    expect(one.get_by_role("alert")).to_be_hidden()


def test_an_upload_over_the_cap_is_told_so(open_page: OpenPage, folder: Path) -> None:
    with engine_for(settings_for(folder, max_upload_bytes=100_000)) as engine, site_for(engine) as small:
        page = open_page(small, may_fail=True)
        choose(page, ("large.wav", wav(30.0)))
        expect(card(page, "large.wav").get_by_role("alert")).to_contain_text("over the limit of 100000 bytes")


def test_a_full_queue_is_waited_for(open_page: OpenPage, hostile_site: Site) -> None:
    page = open_page(hostile_site, may_fail=True)
    free = threading.Event()
    occupied = Run()
    hostile_site.engine.loaded.result().admission.submit(occupied, lambda: free.wait(60))
    try:
        choose(page, ("talk.wav", wav(1.0)))
        expect(card(page, "talk.wav")).to_contain_text("The server is busy. Trying again in")
    finally:
        free.set()
        occupied.future.result()
    finished(page, "talk.wav")


@pytest.mark.parametrize("is_stream", [False, True], ids=["before it begins", "in the middle"])
def test_a_lost_gpu_is_waited_for(open_page: OpenPage, site: Site, is_stream: bool) -> None:
    page = open_page(site, may_fail=True)
    envelope = DeviceLost().envelope()
    segment = {"type": "transcript.text.segment", "id": 0, "start": 0.0, "end": 1.0, "text": " Half a word"}
    frames = "".join(f"data: {json.dumps(event)}\n\n" for event in (segment, envelope))
    lost: list[Route] = []

    def lose(route: Route) -> None:
        if lost:
            route.continue_()
            return
        lost.append(route)
        if is_stream:
            route.fulfill(status=200, content_type="text/event-stream", body=frames)
        else:
            route.fulfill(status=503, headers={"Retry-After": "1"}, json=envelope)

    page.route("**/v1/audio/transcriptions", lose)
    choose(page, ("talk.wav", wav(3.0)))
    finished(page, "talk.wav")
    expect(transcript(card(page, "talk.wav"))).to_have_text(re.compile("^\\D*0:00\\s*Ask not what\\s*$"))
    assert len(lost) == 1


def test_a_key_is_asked_for_kept_in_the_tab_and_forgotten(open_page: OpenPage, folder: Path) -> None:
    with engine_for(settings_for(folder, api_keys="right,other")) as engine, site_for(engine) as locked:
        page = open_page(locked, may_fail=True, is_ready=False)
        dialog = page.get_by_role("dialog", name="This server asks for an API key")
        expect(dialog).to_be_visible()
        dialog.get_by_label("API key").fill("wrong")
        dialog.get_by_role("button", name="Use key").click()
        expect(dialog.get_by_role("alert")).to_contain_text("does not accept")
        dialog.get_by_label("API key").fill("right")
        page.keyboard.press("Enter")
        expect(dialog).to_be_hidden()
        expect(page.locator("#model")).to_contain_text("Model synthetic")
        choose(page, ("talk.wav", wav(3.0)))
        finished(page, "talk.wav")
        assert page.evaluate("sessionStorage.getItem('wisp-key')") == "right"
        assert page.evaluate("localStorage.length + document.cookie.length") == 0
        page.get_by_text("Options").click()
        page.get_by_role("button", name="Forget the key").click()
        choose(page, ("more.wav", wav(3.0)))
        expect(dialog).to_be_visible()
        dialog.get_by_role("button", name="Not now").click()
        expect(card(page, "more.wav").get_by_role("alert")).to_contain_text("API key")
        card(page, "more.wav").get_by_role("button", name="Try again").click()
        dialog.get_by_label("API key").fill("other")
        page.keyboard.press("Enter")
        expect(transcript(card(page, "more.wav"))).to_contain_text("Ask not what")


COUNTED_POLLS = """() => {
  const wait = setTimeout;
  Object.assign(window, { nPolls: 0, mostPolls: 0 });
  window.setTimeout = (action, ms, ...rest) => {
    if (ms !== 1500) return wait(action, ms, ...rest);
    mostPolls = Math.max(mostPolls, (nPolls += 1));
    return wait(() => { nPolls -= 1; action(); }, 50);
  };
}"""


def test_a_first_key_leaves_one_poller_for_the_model(open_page: OpenPage, folder: Path) -> None:
    with engine_for(settings_for(folder, api_keys="right")) as engine, site_for(engine) as locked:
        page = open_page(locked, may_fail=True, is_ready=False)
        dialog = page.get_by_role("dialog", name="This server asks for an API key")
        expect(dialog).to_be_visible()
        asked: list[Route] = []

        def loading(route: Route) -> None:
            asked.append(route)
            if len(asked) > 6:
                route.continue_()
            else:
                route.fulfill(status=503, json={"error": {"message": "The model is still loading."}})

        page.route("**/readyz", loading)
        page.evaluate(COUNTED_POLLS)
        dialog.get_by_label("API key").fill("right")
        page.keyboard.press("Enter")
        expect(page.locator("#model")).to_contain_text("Model synthetic")
        assert page.evaluate("mostPolls") == 1 and len(asked) == 7


@pytest.mark.parametrize("reason", ["NotAllowedError", "NotFoundError"])
def test_a_microphone_that_is_not_given_is_a_sentence(open_page: OpenPage, site: Site, reason: str) -> None:
    page = open_page(site)
    page.evaluate(
        "(reason) => navigator.mediaDevices.getUserMedia = () => Promise.reject(new DOMException('', reason))", reason
    )
    page.get_by_role("button", name="Record", exact=True).click()
    expect(page.get_by_role("alert").first).to_contain_text("microphone")
    expect(page.get_by_role("button", name="Record", exact=True)).to_be_focused()


MICROPHONE = """() => {
  const give = navigator.mediaDevices.getUserMedia.bind(navigator.mediaDevices);
  navigator.mediaDevices.getUserMedia = async (wanted) => {
    window.microphone = await give(wanted);
    return microphone;
  };
  window.unplug = () => microphone.getTracks().forEach((track) => {
    track.stop();
    track.dispatchEvent(new Event("ended"));
  });
}"""
UNPLUGGED_WHILE_IT_STARTS = """() => {
  const add = AudioWorklet.prototype.addModule;
  AudioWorklet.prototype.addModule = async function (url) {
    await add.call(this, url);
    unplug();
  };
}"""


def test_a_microphone_that_goes_while_it_starts_is_a_sentence(open_page: OpenPage, site: Site) -> None:
    page = open_page(site)
    page.evaluate(MICROPHONE)
    page.evaluate(UNPLUGGED_WHILE_IT_STARTS)
    record = page.get_by_role("button", name="Record", exact=True)
    record.click()
    expect(page.get_by_role("alert").first).to_contain_text("The microphone went away.")
    expect(record).to_be_focused()


def test_a_microphone_that_goes_in_the_middle_leaves_what_it_heard(open_page: OpenPage, site: Site) -> None:
    page = open_page(site)
    page.evaluate(MICROPHONE)
    page.get_by_role("button", name="Record", exact=True).click()
    expect(page.get_by_role("group", name="Recording")).to_contain_text(re.compile(r"0:0[1-9]|0:[1-5]\d|[1-9]:"))
    page.evaluate("unplug()")
    expect(transcript(page.get_by_role("article")).first).to_contain_text("Ask not what")
    expect(page.get_by_role("button", name="Record", exact=True)).to_be_visible()


def test_a_recording_discarded_while_it_ends_is_gone(open_page: OpenPage, site: Site) -> None:
    page = open_page(site)
    heard = page.get_by_role("group", name="Recording")
    for last in ("recorder-discard", "recorder-stop"):
        page.get_by_role("button", name="Record", exact=True).click()
        expect(heard).to_contain_text(re.compile(r"0:0[1-9]|0:[1-5]\d|[1-9]:"))
        page.evaluate("(last) => ['recorder-stop', last].forEach((id) => document.getElementById(id).click())", last)
        expect(heard).to_be_hidden()
    expect(transcript(page.get_by_role("article")).first).to_contain_text("Ask not what")
    expect(page.get_by_role("article")).to_have_count(1)
