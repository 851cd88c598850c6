"""Values that are recognised wherever they turn up, and the forms in which they may."""

from __future__ import annotations

import base64
import json
import secrets
import urllib.parse
from dataclasses import dataclass, field


def mark(what: str, before: str = "") -> str:
    """Return a new value that looks like nothing else; ``before`` is how a token of its kind begins."""
    return f"{before}MARK{secrets.token_hex(12)}{what}"


@dataclass
class Marks:
    """What is searched for: name -> value. Names stand in reports, values never do."""

    values: dict[str, str] = field(default_factory=dict)

    def new(self, name: str, before: str = "") -> str:
        """Make a value of that name."""
        self.values[name] = mark(name.replace("_", ""), before)
        return self.values[name]

    def needles(self) -> dict[bytes, str]:
        """Return every form of every value -> the value's name."""
        return {form: name for name, value in self.values.items() for form in forms(value)}


def forms(value: str) -> set[bytes]:
    """Return the bytes in which a value may stand somewhere."""
    raw = value.strip().encode()
    found = {raw, urllib.parse.quote(value.strip(), safe="").encode(), json.dumps(value.strip())[1:-1].encode()}
    found |= {raw.hex().encode(), raw.hex().upper().encode(), raw.decode().encode("utf-16-le")}
    for shift in range(3):
        # Within something longer: the letters that depend on nothing but the value.
        for encode in (base64.b64encode, base64.urlsafe_b64encode):
            text = encode(b"\0" * shift + raw)
            found.add(text[4 if shift else 0 : -4])
    return found
