"""The documentation's fenced blocks, as the tests read them: commands, their output, and why some aren't run."""

import re
from dataclasses import dataclass
from pathlib import Path

from tests.conftest import ROOT

PAGES = sorted(
    path
    for path in (*ROOT.glob("*.md"), *ROOT.glob("docs/*.md"), *ROOT.glob("*/README.md"), *ROOT.glob("*/*/README.md"))
    if not any(part.startswith((".", "node_modules")) or part == "target" for part in path.relative_to(ROOT).parts)
)
RUNNABLE = ("console", "sh", "bash", "python", "js")
FENCE = re.compile(r"^```(\w*)$")
NOT_RUN = re.compile(r"^<!-- not run: (.+) -->$")


@dataclass(frozen=True)
class Block:
    """A fenced block: where it begins, its language, its text, and why it isn't run; empty if it is."""

    page: str
    line: int
    language: str
    text: str
    not_run: str

    def __str__(self) -> str:
        return f"{self.page}:{self.line}"

    def steps(self) -> list[tuple[str, str]]:
        """Each command of a console block, and the output that the block shows."""
        steps: list[tuple[str, str]] = []
        is_continued = False
        for line in self.text.splitlines():
            if is_continued:
                steps[-1] = (f"{steps[-1][0]}\n{line}", "")
            elif line.startswith("$ "):
                steps.append((line.removeprefix("$ "), ""))
            else:
                assert steps, f"{self}: output before a command"
                steps[-1] = (steps[-1][0], f"{steps[-1][1]}{line}\n")
            is_continued = (line.startswith("$ ") or is_continued) and line.endswith("\\")
        return steps


def blocks(page: Path) -> list[Block]:
    """Every fenced block of a page, in order."""
    found: list[Block] = []
    lines = page.read_text("utf-8").splitlines()
    opened: int | None = None
    for number, line in enumerate(lines):
        if opened is None and line.startswith("```"):
            assert FENCE.match(line), f"{page.name}:{number + 1}: a fence with more than a language"
            opened = number
        elif opened is not None and line == "```":
            before = NOT_RUN.match(lines[opened - 1]) if opened else None
            found.append(
                Block(
                    str(page.relative_to(ROOT)),
                    opened + 1,
                    lines[opened].removeprefix("```"),
                    "\n".join(lines[opened + 1 : number]) + "\n",
                    before[1] if before else "",
                )
            )
            opened = None
    assert opened is None, f"{page.name}: a fence is not closed"
    return found


def shows(shown: str, output: str) -> bool:
    """Whether the output matches the page; `…` there matches anything, lines too, and a space matches several."""
    output = re.sub(r"^:\n+", "", output, flags=re.MULTILINE)  # an event stream's comments come as time passes
    parts = re.sub(r" +", " ", shown.rstrip()).split("…")
    return re.fullmatch(".*".join(map(re.escape, parts)), re.sub(r" +", " ", output.rstrip()), re.DOTALL) is not None
