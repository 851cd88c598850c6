"""What a check found: how bad it is, what it is, and what to do about it. Standard library only."""

from __future__ import annotations

import re
from dataclasses import dataclass
from enum import Enum


class Grade(str, Enum):
    """How bad a finding is."""

    OK = "ok"
    NOTE = "note"
    """Works, and somebody may wish it were otherwise."""
    PROBLEM = "problem"
    """Runs will fail, or never begin."""
    UNKNOWN = "unknown"
    """It couldn't be asked: says nothing but that."""
    SKIPPED = "skipped"
    """Not looked at, since something before it has to be mended first."""

    @property
    def is_bad(self) -> bool:
        """Whether an environment with such a finding isn't known to be fit."""
        return self in (Grade.PROBLEM, Grade.UNKNOWN)


_END_OF_SENTENCE = re.compile(r"\.\s+(?=[A-Z`])")


@dataclass(frozen=True, slots=True)
class Finding:
    """One finding. ``fix`` is what to do, in a sentence or two; "" where there is nothing to be done."""

    check: str
    grade: Grade
    what: str
    fix: str = ""


def told(check: str, grade: Grade, message: str, otherwise: str) -> Finding:
    """Make a finding of an error's message: by this package's rule what is wrong comes first, then what to do.

    ``otherwise`` is the fix where the message is one sentence.
    """
    what, *rest = _END_OF_SENTENCE.split(message.strip(), maxsplit=1)
    return Finding(check, grade, what.rstrip("."), rest[0] if rest else otherwise)
