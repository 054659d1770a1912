"""The documentation's links lead somewhere: files of this repository, headings of their pages."""

import re
from pathlib import Path

import pytest

from tests.conftest import ROOT
from tests.support.docs_blocks import PAGES

LINK = re.compile(r"(?<!!)\[[^\]]*\]\(([^)\s]+)\)")
IMAGE = re.compile(r"!\[[^\]]*\]\(([^)\s]+)\)")
HEADING = re.compile(r"^#+ (.+)$", re.MULTILINE)
FENCED = re.compile(r"^```.*?^```$", re.MULTILINE | re.DOTALL)


def prose(page: Path) -> str:
    """A page without its fenced blocks and code spans, in which brackets aren't links."""
    return re.sub(r"`[^`\n]*`", lambda span: "·" * len(span[0]), FENCED.sub("", page.read_text("utf-8")))


def anchors(page: Path) -> set[str]:
    """The anchors that GitHub gives a page: its headings in lower case, punctuation dropped, spaces as hyphens."""
    headings = HEADING.findall(FENCED.sub("", page.read_text("utf-8")))
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_every_link_leads_somewhere(page: Path) -> None:
    for link in (*LINK.findall(prose(page)), *IMAGE.findall(prose(page))):
        if re.match(r"https?://", link):
            continue  # this suite doesn't fetch other sites' pages
        name, _, anchor = link.partition("#")
        target = (page.parent / name).resolve() if name else page
        assert target.exists(), f"{page.name}: nothing at {link}"
        assert target.is_relative_to(ROOT), f"{page.name}: {link} leaves the repository"
        assert not anchor or anchor in anchors(target), f"{page.name}: {target.name} has no heading for #{anchor}"


def test_every_page_is_reached_from_the_readme() -> None:
    reached, waiting = set(), [ROOT / "README.md"]
    while waiting:
        page = waiting.pop()
        if page in reached:
            continue
        reached.add(page)
        links = (link.partition("#")[0] for link in LINK.findall(prose(page)) if not link.startswith("http"))
        targets = ((page.parent / link).resolve() for link in links if link)
        waiting += [
            target / "README.md" if target.is_dir() else target for target in targets if target.suffix in ("", ".md")
        ]
        waiting = [page for page in waiting if page.is_file()]
    missing = {str(page.relative_to(ROOT)) for page in set(PAGES) - reached}
    assert not missing, f"no link leads to {', '.join(sorted(missing))}"
