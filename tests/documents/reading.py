"""Reads the blocks of a page; the package's docstring in __main__.py says what they are."""

import importlib.util
import pathlib
import re
from collections.abc import Iterator
from typing import NamedTuple

REPOSITORY = pathlib.Path(__file__).resolve().parents[2]
PAGES = ["README.md", *(f"docs/{path.name}" for path in sorted((REPOSITORY / "docs").glob("*.md")))]
CONFIGS = [f"configs/{path.name}" for path in sorted((REPOSITORY / "configs").glob("[!_]*.py"))]
SHELL = ("", "sh", "bash")
COMMENT = re.compile(r"<!-- (run|not run|needs)\b(.*?) -->")


class Block(NamedTuple):
    """A block of a page: the line that it begins on, its language, the comment above it and its text."""

    page: str
    line: int
    language: str
    comment: str  # without its brackets; empty where there is none
    text: str
    fenced: bool

    @property
    def at(self) -> str:
        return f"{self.page}:{self.line}"


def text_of(page: str) -> str:
    return (REPOSITORY / page).read_text(encoding="utf-8")


def blocks(page: str) -> list[Block]:
    """All blocks of a page, fenced and indented. Raises ValueError for a fence that is left open."""
    found, lines, above, fenced = [], text_of(page).splitlines(), "", None
    for number, line in enumerate(lines, start=1):
        if line.startswith("```") and fenced is None:
            fenced = Block(page, number + 1, line[3:].strip(), above, "", fenced=True)
        elif line.startswith("```"):
            found.append(fenced)
            fenced = None
        elif fenced:
            fenced = fenced._replace(text=f"{fenced.text}{line}\n")
        comment = COMMENT.fullmatch(line.strip())
        above = f"{comment[1]}{comment[2]}" if comment else ""
    if fenced:
        raise ValueError(f"{fenced.at}: the fence is not closed")
    return found + list(_indented(page, prose(page).splitlines()))


def prose(page: str) -> str:
    """The text of a page with its fenced blocks blanked out line by line; of a config its header."""
    text = text_of(page)
    if page.endswith(".py"):
        return text.split('"""')[1]
    return re.sub(r"^```.*?^```$", lambda fence: "\n" * fence[0].count("\n"), text, flags=re.DOTALL | re.MULTILINE)


def _indented(page: str, lines: list[str]) -> Iterator[Block]:
    """Runs of indented commands, each with the lines that continue it."""
    number = 0
    while number < len(lines):
        first = number
        while number < len(lines) and re.match(r"    (python -m |pip |make )", lines[number]):
            while lines[number].endswith("\\"):
                number += 1
            number += 1
        if number > first:
            inside = "\n".join(line.removeprefix("    ") for line in lines[first:number])
            yield Block(page, first + 1, "", "", f"{inside}\n", fenced=False)
        number += 1


def is_header(block: Block) -> bool:
    return block.page.endswith(".py")


# ---- Python


def python(page: str) -> list[Block]:
    """The blocks of Python that can run here: those under `needs MODULE` are left out where it is missing."""

    def can(block: Block) -> bool:
        return not block.comment or importlib.util.find_spec(block.comment.removeprefix("needs ")) is not None

    return [block for block in blocks(page) if block.language == "python" and can(block)]


def run_python(page: str) -> dict:
    """Runs the blocks of a page one after the other, and returns the names that they leave."""
    names: dict = {}
    for block in python(page):
        exec(compile("\n" * (block.line - 1) + block.text, page, "exec"), names)
    return names
