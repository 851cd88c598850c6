"""Console blocks and files of a page, as a reader would type and save them."""

from __future__ import annotations

import re
import textwrap
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

_BLOCK = re.compile(
    r"^(?:<!-- (?P<note>[^>]*) -->\n)?(?P<margin> *)```(?P<language>\w*)(?P<options>[^\n]*)\n"
    r"(?P<text>.*?)^(?P=margin)```$",
    re.MULTILINE | re.DOTALL,
)
_TITLE = re.compile(r'title="([^"]+)"')


@dataclass(frozen=True)
class Block:
    """A fenced block. ``options`` is what follows the language, ``note`` a comment before it, for tests alone."""

    language: str
    options: str
    text: str
    note: str = ""

    @property
    def title(self) -> str | None:
        """The file that the reader saves it as."""
        found = _TITLE.search(self.options)
        return found[1] if found else None

    @property
    def commands(self) -> list[str]:
        """What is typed, without the prompt and comments."""
        lines = self.text.replace("\\\n", " ").splitlines()
        return [line[2:].partition("  #")[0].strip() for line in lines if line.startswith("$ ")]


def blocks(page: Path) -> Iterator[Block]:
    """The blocks of a page, in order; those in a list without their margin."""
    for found in _BLOCK.finditer(page.read_text(encoding="utf-8")):
        yield Block(found["language"], found["options"].strip(), textwrap.dedent(found["text"]), found["note"] or "")
