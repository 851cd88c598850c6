"""Whether a token can be sent at all. Libraries quote a header that they can't send in their error: the whole token.

A line end comes easily into one that was read from a file or from a Kubernetes secret. Standard library only.
"""

from __future__ import annotations

import re

_SENDABLE = re.compile(r"[\x21-\x7e]+")

WHY = "it is blank, or it holds a blank, a line end or a character beyond ASCII, and so can't be sent"


def is_sendable(token: str) -> bool:
    """Whether a token consists of characters that a header may hold, and doesn't begin or end with others."""
    return _SENDABLE.fullmatch(token) is not None
