"""Where and when figures come from."""

from __future__ import annotations

import os
import platform
from datetime import datetime, timezone
from typing import Any


def machine() -> dict[str, Any]:
    """Where and when the figures come from, and how busy it was."""
    return {
        "when": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "python": platform.python_version(),
        "machine": platform.machine(),
        "cores": os.cpu_count(),
        "load": [round(load, 1) for load in os.getloadavg()],
    }
