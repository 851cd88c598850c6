"""The first heartbeat of a step, which most steps don't need. Imports ZenML."""

from __future__ import annotations

import time
from typing import Any

import requests
from zenml.constants import HEARTBEAT

from bridge.host.fresh_keys import FreshKeys

FIRST_HEARTBEAT_SECONDS = 1.0
"""How long a step's process goes on before its first heartbeat, which ZenML's worker makes at once: a step that has
ended by then needs none, and the server has one request less of it. The others come every 15 s, as ever."""


class LateHeartbeat(FreshKeys):
    """Sends the requests of a step's process, the first heartbeat :data:`FIRST_HEARTBEAT_SECONDS` late."""

    _beats = False

    def send(self, request: requests.PreparedRequest, *args: Any, **options: Any) -> requests.Response:
        """Send it. Raises what requests raises."""
        if not self._beats and str(request.url).endswith(HEARTBEAT):
            self._beats = True
            time.sleep(FIRST_HEARTBEAT_SECONDS)  # a daemon of ZenML's sleeps here, which nobody waits for
        return super().send(request, *args, **options)
