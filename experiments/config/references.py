"""The publications that docstrings name as their sources; references.bib, beside this file, has their entries.

A docstring names a publication by "arXiv" or "doi" and its number, and the entry has that number as its `eprint` or
`doi`. The key of an entry is the first author's surname, the year and the first word of the title that is no article.
"""

import functools
import pathlib
import re
from typing import NamedTuple

FILE = pathlib.Path(__file__).with_suffix(".bib")
_NAMED = re.compile(r"\b(arXiv\s+\d{4}\.\d{4,5}|doi\s+10\.[^\s,;]+)")
_ENTRY = re.compile(r"^@\w+\{(?P<key>\w+),\n(?P<fields>.*?)^\}$", re.DOTALL | re.MULTILINE)
_FIELD = re.compile(r"^  (\w+) = \{(.*)\},$", re.MULTILINE)


class Reference(NamedTuple):
    """An entry of references.bib: its key, its fields as they are written, its first and last line from 1."""

    key: str
    fields: dict[str, str]
    lines: tuple[int, int]


@functools.cache
def references() -> dict[str, Reference]:
    """Returns all entries by what docstrings call them, such as "arXiv 2506.11039"."""
    text = FILE.read_text(encoding="utf-8")
    found = {}
    for match in _ENTRY.finditer(text):
        fields = dict(_FIELD.findall(match["fields"]))
        lines = (text.count("\n", 0, match.start()) + 1, text.count("\n", 0, match.end()) + 1)
        name = f"arXiv {fields['eprint']}" if "eprint" in fields else f"doi {fields['doi']}"
        found[name] = Reference(match["key"], fields, lines)
    return found


def named(text: str) -> list[str]:
    """Returns the publications that a text names, each once, in its order."""
    return list(dict.fromkeys(" ".join(name.split()) for name in _NAMED.findall(text)))


def cited(text: str) -> list[Reference]:
    """Returns the entries of the publications that a text names; those without an entry are left out."""
    return [references()[name] for name in named(text) if name in references()]
