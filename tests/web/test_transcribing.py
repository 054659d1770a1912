"""What a user does with the page: choose, drop or record audio, read and hear the words, take them along."""

import io
import json
import re
from pathlib import Path
from typing import Any

import httpx2
import numpy as np
import pytest
import soundfile
from playwright.sync_api import Locator, expect

from service.settings import Settings
from tests.support import synthetic
from tests.support.page import card, choose, finished, transcript
from tests.support.serving import PATH, engine_for, settings_for, tone, wav
from tests.web.conftest import OpenPage, Site, site_for


def silence(seconds: int) -> bytes:
    """A long recording in a small file."""
    buffer = io.BytesIO()
    soundfile.write(buffer, np.zeros(seconds * 8000, np.int16), 8000, format="FLAC")
    return buffer.getvalue()


def asked_of_the_api(site: Site, file: bytes, **fields: Any) -> str:
    return httpx2.post(site.url.rstrip("/") + PATH, data=fields, files={"file": ("a.wav", file)}).text


def downloaded(one: Locator, name: str) -> tuple[str, bytes]:
    """(file name, content) of what a button gives."""
    with one.page.expect_download() as download:
        one.get_by_role("button", name=name).click()
    return download.value.suggested_filename, Path(download.value.path()).read_bytes()


def test_a_file_is_chosen_and_its_words_appear(open_page: OpenPage, site: Site) -> None:
    page = open_page(site)
    choose(page, ("talk.wav", wav(6.0)))
    one = finished(page, "talk.wav")
    assert transcript(one).all_inner_texts() == ["0:00\n\nAsk not what", "0:03\n\nAsk not what"]
    expect(one).to_contain_text("0:06 in")
    expect(page.get_by_role("status").last).to_have_text("talk.wav is transcribed. Segments: 2.")
    one.get_by_role("button", name="Copy text").click()
    expect(one.get_by_role("button", name="Copied")).to_be_visible()
    assert page.evaluate("navigator.clipboard.readText()") == "Ask not what Ask not what"


def test_downloads_are_what_the_api_gives(open_page: OpenPage, site: Site) -> None:
    page = open_page(site)
    file = wav(7.5)
    choose(page, ("a talk.final.wav", file))
    one = finished(page, "a talk.final.wav")
    for suffix, response_format in {"txt": "text", "srt": "srt", "vtt": "vtt"}.items():
        file_name, content = downloaded(one, f"Download {suffix}")
        assert file_name == f"a talk.final.{suffix}"
        assert content.decode() == asked_of_the_api(site, file, response_format=response_format)
    answer = json.loads(asked_of_the_api(site, file, response_format="verbose_json"))
    got = json.loads(downloaded(one, "Download json")[1])
    assert got == answer and list(got) == list(answer)


def test_a_segment_is_heard_when_it_is_clicked(open_page: OpenPage, site: Site) -> None:
    page = open_page(site)
    choose(page, ("talk.wav", wav(30.0)))
    one = finished(page, "talk.wav")
    position = one.get_by_role("slider", name="Position")
    transcript(one).nth(4).get_by_role("button", name="Play from 0:12").click()
    expect(transcript(one).nth(4)).to_have_attribute("aria-current", "true")
    expect(position).to_have_attribute("aria-valuetext", "0:13 of 0:30")  # it goes on by itself
    one.get_by_role("button", name="Pause").click()
    expect(one.get_by_role("button", name="Play", exact=True)).to_be_visible()
    transcript(one).nth(6).get_by_text("Ask not what").click()
    expect(transcript(one).nth(6)).to_have_attribute("aria-current", "true")
    expect(transcript(one).nth(4)).not_to_have_attribute("aria-current", "true")


def test_segments_come_while_it_runs_and_cancel_ends_the_work_on_the_server(open_page: OpenPage, site: Site) -> None:
    page = open_page(site)
    choose(page, ("long.flac", silence(900)))
    one = card(page, "long.flac")
    expect(transcript(one).first).to_be_visible()
    (job,) = site.app.state.service.under_way
    one.get_by_role("button", name="Cancel").click()
    expect(one).to_contain_text("Cancelled")
    job.run.future.exception(timeout=30)
    assert job.run.is_cancelled
    assert one.get_by_role("button", name="Copy text").is_visible(), "what was heard is kept"


def test_files_queue_and_each_is_removed_by_itself(open_page: OpenPage, site: Site) -> None:
    page = open_page(site)
    choose(page, ("one.wav", wav(3.0)), ("two.wav", wav(6.0)), ("three.wav", wav(9.0)))
    names = ["one.wav", "two.wav", "three.wav"]
    for name, n_segments in zip(names, (1, 2, 3), strict=True):
        toggle = card(page, name).get_by_role("button", name=name, exact=True)
        expect(card(page, name)).to_contain_text("real time")
        if toggle.get_attribute("aria-expanded") == "false":
            toggle.click()
        expect(transcript(card(page, name))).to_have_count(n_segments)
    page.get_by_role("button", name="Remove two.wav").click()
    expect(card(page, "two.wav")).to_have_count(0)
    expect(page.get_by_role("article")).to_have_count(2)
    expect(card(page, "three.wav").get_by_role("button", name="three.wav", exact=True)).to_be_focused()


def test_dropped_files_are_taken(open_page: OpenPage, site: Site) -> None:
    page = open_page(site)
    transfer = page.evaluate_handle(
        """(bytes) => { const transfer = new DataTransfer();
        transfer.items.add(new File([new Uint8Array(bytes)], "dropped.wav")); return transfer; }""",
        list(wav(3.0)),
    )
    page.dispatch_event("body", "dragenter", {"dataTransfer": transfer})
    expect(page.get_by_text("Drop to transcribe")).to_be_visible()
    page.dispatch_event("body", "drop", {"dataTransfer": transfer})
    expect(page.get_by_text("Drop to transcribe")).not_to_be_visible()
    assert "Ask not what" in finished(page, "dropped.wav").inner_text()


def test_the_microphone_is_recorded_as_wav_and_transcribed(open_page: OpenPage, site: Site) -> None:
    page = open_page(site)
    page.get_by_role("button", name="Record", exact=True).click()
    expect(page.get_by_role("group", name="Recording")).to_contain_text(re.compile(r"0:0[1-9]|0:[1-5]\d|[1-9]:"))
    page.get_by_role("button", name="Stop and transcribe").click()
    one = page.get_by_role("article")
    expect(transcript(one).first).to_contain_text("Ask not what")
    name, content = downloaded(one, "Save the recording")
    assert name.startswith("Recording 2") and name.endswith(".wav")
    samples, rate = soundfile.read(io.BytesIO(content))
    assert (samples.ndim, rate) == (1, 16_000) and len(samples) >= rate
    spectrum = np.abs(np.fft.rfft(samples * np.hanning(len(samples))))
    assert abs(np.argmax(spectrum) * rate / len(samples) - 440) < 2, "what the microphone heard, at its right pitch"
    page.get_by_role("button", name="Record", exact=True).click()
    page.get_by_role("button", name="Discard").click()
    expect(page.get_by_role("button", name="Record", exact=True)).to_be_focused()
    expect(page.get_by_role("article")).to_have_count(1)


def test_a_file_that_the_browser_cannot_play_is_transcribed_all_the_same(open_page: OpenPage, site: Site) -> None:
    page = open_page(site)
    file = io.BytesIO()
    soundfile.write(file, tone(3.0), 16_000, format="AIFF")
    choose(page, ("talk.aiff", file.getvalue()))
    one = finished(page, "talk.aiff")
    expect(one).to_contain_text("This browser cannot play this file. Its transcript is not affected.")
    assert "Ask not what" in transcript(one).inner_text()
    assert one.get_by_role("button", name="Play from 0:00").is_disabled()


def test_silence_says_that_nothing_was_heard(open_page: OpenPage, hostile_site: Site) -> None:
    page = open_page(hostile_site)
    choose(page, ("quiet.wav", wav(1.0)))
    assert downloaded(finished(page, "quiet.wav"), "Download txt")[1] == b"All is well.\n"


def test_a_multilingual_model_offers_its_languages(
    open_page: OpenPage, site: Site, tmp_path_factory: pytest.TempPathFactory
) -> None:
    page = open_page(site)
    page.get_by_text("Options").click()
    expect(page.get_by_label("Language")).to_be_hidden()
    folder = synthetic.save_synthetic(tmp_path_factory.mktemp("models") / "many", multilingual=True)
    with engine_for(settings_for(folder)) as engine, site_for(engine) as multilingual:
        page = open_page(multilingual)
        page.get_by_text("Options").click()
        language = page.get_by_label("Language")
        assert language.locator("option").all_inner_texts() == ["Detect", "English", "German"]
        choose(page, ("detected.wav", wav(3.0)))
        expect(finished(page, "detected.wav")).to_contain_text("German")
        language.select_option("English")
        choose(page, ("told.wav", wav(3.0)))
        assert "German" not in finished(page, "told.wav").inner_text()


def test_the_embedded_model_is_told_to_be_small_and_each_of_its_words_is_heard_when_clicked(
    open_page: OpenPage, shared: Path, tmp_path: Path
) -> None:
    speech = (shared / "speech" / "jfk.wav").read_bytes()
    granularities = {"timestamp_granularities[]": ["segment", "word"]}
    with (
        engine_for(Settings(model="embedded", target="cpu", models_dir=str(tmp_path))) as engine,
        site_for(engine) as embedded,
    ):
        page = open_page(embedded)
        expect(page.get_by_label("About the model")).to_contain_text("wisp models pull tiny.en")
        page.get_by_text("Options").click()
        page.get_by_label("Time every word").check()
        choose(page, ("jfk.wav", speech))
        one = finished(page, "jfk.wav")
        got = json.loads(downloaded(one, "Download json")[1])
        assert got == json.loads(asked_of_the_api(embedded, speech, response_format="verbose_json", **granularities))
        assert len(got["words"]) > 3 and len(got["text"]) > 10
        texts = [word["word"] for word in got["words"]]
        early = [word for word in got["words"] if 1 < word["start"] < 9 and texts.count(word["word"]) == 1]
        chosen = early[len(early) // 2]  # not one of the last, which the player may have played to the end by then
        expect(transcript(one).first.get_by_role("button")).to_be_enabled()  # once the player has its sound
        transcript(one).get_by_text(chosen["word"], exact=True).click()
        seconds = "|".join(f"{int(chosen['start']) + late:02}" for late in range(3))  # it plays on
        position = one.get_by_role("slider", name="Position")
        expect(position).to_have_attribute("aria-valuetext", re.compile(f"^0:({seconds}) of 0:11"))
