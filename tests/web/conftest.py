"""A browser, servers, and pages that must load nothing from elsewhere, break no policy and log no error."""

import shutil
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import soundfile
from playwright.sync_api import Browser, BrowserType, ConsoleMessage, Page, expect, sync_playwright

from service.http.app import Engine, create_app
from service.http.server import Server
from tests.support import synthetic
from tests.support.serving import HOSTILE_GUEST, engine_for, ready, settings_for, tone

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
MICROPHONE_SECONDS = 10.0  # the sound repeats after that
EXPECTED = "Failed to load resource"  # logged by Chromium for every status over 399
WAIT_MS = 30_000  # other work on the machine may slow everything down

OpenPage = Callable[..., Page]


@dataclass(frozen=True)
class Site:
    """A server: its address, its engine, the application."""

    url: str
    engine: Engine
    app: Any


@contextmanager
def site_for(engine: Engine) -> Iterator[Site]:
    """Serve the engine on its own port, as `wisp serve` does."""
    app = create_app(ready(engine))
    with socket.create_server(("127.0.0.1", 0)) as listener:
        server = Server(app, app.state.service.under_way, grace_s=0.0)
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
        thread.start()
        try:
            yield Site(f"http://127.0.0.1:{listener.getsockname()[1]}/", engine, app)
        finally:
            server.should_exit = True
            thread.join()


# For the package, not for the session: while Playwright's loop is open, no other test can run another.
@pytest.fixture(scope="package")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    """Chromium, whose microphone hears a soft A4 over and over; a skip where it is not installed."""
    heard = tmp_path_factory.mktemp("microphone") / "heard.wav"
    soundfile.write(heard, tone(MICROPHONE_SECONDS), 16_000)
    expect.set_options(timeout=WAIT_MS)
    with sync_playwright() as playwright:
        browser = launched(playwright.chromium, heard)
        yield browser
        browser.close()


def launched(chromium: BrowserType, heard: Path) -> Browser:
    """Chromium, whose microphone hears this file over and over; a skip where it is not installed."""
    if CHROMIUM is None:
        pytest.skip("Chromium is not installed (Debian's package: chromium)")
    arguments = [
        "--no-sandbox",  # root has none
        "--use-fake-device-for-media-stream",
        "--use-fake-ui-for-media-stream",
        f"--use-file-for-fake-audio-capture={heard}",
    ]
    return chromium.launch(executable_path=CHROMIUM, args=arguments)


@pytest.fixture(scope="package")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An English-only model that says its sentence for every three seconds of sound."""
    return synthetic.save_synthetic(tmp_path_factory.mktemp("models") / "synthetic")


@pytest.fixture(scope="package")
def site(folder: Path) -> Iterator[Site]:
    """A server of that model."""
    with engine_for(settings_for(folder)) as engine, site_for(engine) as site:
        yield site


@pytest.fixture(scope="package")
def hostile_site(folder: Path) -> Iterator[Site]:
    """One whose guest fails on request, see tests/support/serving.py, and that takes one transcription at a time."""
    settings = settings_for(folder, workers=1, open_jobs=1, queue_length=0)
    with engine_for(settings, guest=HOSTILE_GUEST) as engine, site_for(engine) as site:
        yield site


@pytest.fixture
def open_page(browser: Browser) -> Iterator[OpenPage]:
    """open_page(site, **context options) → the page, once it knows the model.

    `may_fail=True` lets requests fail, and `is_ready=False` waits for nothing. At the end no page may have asked
    another origin, or logged an error: what breaks the content security policy is one.
    """
    with opener(browser) as open_one:
        yield open_one


@contextmanager
def opener(browser: Browser) -> Iterator[OpenPage]:
    """See open_page."""
    faults: list[str] = []
    with ExitStack() as stack:

        def open_one(site: Site, *, may_fail: bool = False, is_ready: bool = True, **options: Any) -> Page:
            context = browser.new_context(**{"permissions": ["microphone", "clipboard-read"], **options})
            stack.callback(context.close)
            page = context.new_page()
            page.set_default_timeout(WAIT_MS)

            def on_console(message: ConsoleMessage) -> None:
                if message.type in ("error", "warning") and not (may_fail and message.text.startswith(EXPECTED)):
                    faults.append(message.text)

            page.on("console", on_console)
            page.on("filechooser", lambda _: None)  # from now on, so that a dialog opened at once is seen
            page.on("pageerror", lambda error: faults.append(str(error)))
            own = (site.url, "blob:", "data:")
            page.on("request", lambda sent: None if sent.url.startswith(own) else faults.append(sent.url))
            page.goto(site.url)
            if is_ready:
                expect(page.locator("#model")).to_contain_text(f"Model {site.engine.spec.name}")
            return page

        yield open_one
    assert not faults
