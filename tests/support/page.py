"""What a user does on the page and sees there."""

from playwright.sync_api import FilePayload, Locator, Page, expect


def choose(page: Page, *files: tuple[str, bytes]) -> None:
    """Choose files by the button, as with the system's dialog."""
    with page.expect_file_chooser() as chooser:
        page.get_by_role("button", name="Choose files").click()
    payloads: list[FilePayload] = [
        {"name": name, "mimeType": "audio/wav", "buffer": content} for name, content in files
    ]
    chooser.value.set_files(payloads)


def card(page: Page, name: str) -> Locator:
    """The part of the page about one recording."""
    return page.get_by_role("article", name=name)


def transcript(one: Locator) -> Locator:
    return one.get_by_role("log", name="Transcript").get_by_role("listitem")


def finished(page: Page, name: str) -> Locator:
    """The card of a recording, once it is transcribed."""
    one = card(page, name)
    expect(one.get_by_role("button", name="Transcribe again")).to_be_visible()
    return one
