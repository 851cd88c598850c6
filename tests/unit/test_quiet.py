"""What a program shows of the requests that its libraries make: nothing, unless somebody has asked for it."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

PROGRAM = """
import logging
{before}
from bridge.watching.quiet import only_warn_of_requests

only_warn_of_requests()
only_warn_of_requests()
{after}
import zenml.logger

zenml.logger.init_logging()
logging.getLogger("httpx").info("HTTP Request: GET /")
logging.getLogger("httpx").warning("slow")
print("filters", len(logging.getLogger("httpx").filters))
"""
ZENML = "import zenml.client"


@pytest.mark.parametrize(
    ("before", "after", "verbosity", "told"),
    [
        (ZENML, "", "INFO", False),
        ("", ZENML, "INFO", False),
        (ZENML, "", "DEBUG", True),
        ("", ZENML, "DEBUG", True),
        ("logging.getLogger('httpx').setLevel(logging.INFO)", "", "INFO", True),
    ],
    ids=["ZenML is there", "ZenML comes", "at DEBUG", "at DEBUG later", "asked for by name"],
)
def test_a_line_for_each_request_is_what_somebody_asks_for(before: str, after: str, verbosity: str, told: bool) -> None:
    environment = {**os.environ, "ZENML_LOGGING_VERBOSITY": verbosity}
    ran = subprocess.run(
        [sys.executable, "-c", PROGRAM.format(before=before, after=after)],
        env=environment,
        capture_output=True,
        text=True,
        check=True,
    )
    shown = ran.stdout + ran.stderr
    assert ("HTTP Request: GET /" in shown) is told, shown
    assert "slow" in shown
    assert "filters 1" in shown
