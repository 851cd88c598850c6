"""How a process of the benchmark is asked and answers: JSON on stdin, and JSON into the file that argv names.

Not on stdout: ZenML and Prefect print there as they like.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any


def asked() -> dict[str, Any]:
    """What is wanted of this process."""
    found: dict[str, Any] = json.load(sys.stdin)
    return found


def answer(found: object) -> None:
    """Hand the result over."""
    Path(sys.argv[1]).write_text(json.dumps(found))
