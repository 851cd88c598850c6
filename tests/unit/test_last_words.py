"""What of a sandbox's output tells why it ended."""

from __future__ import annotations

import subprocess
import sys

import pytest

from bridge.last_words import KEPT, LastWords

MISSING = "ModuleNotFoundError: No module named 'no_such_module'"
TRACED = """
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor, ConsoleSpanExporter

provider = TracerProvider()
provider.add_span_processor(BatchSpanProcessor(ConsoleSpanExporter()))
with provider.get_tracer("test").start_as_current_span("step mean", attributes={"zenml.step": "mean"}):
    import no_such_module
"""
LOGGED = """
import logging, sys
try:
    import no_such_module
except BaseException:
    logging.getLogger().exception("The step didn't succeed.")
    print("\\x1b[31mgoodbye\\x1b[0m", file=sys.stderr)
    sys.exit(1)
"""
CHAINED = """
try:
    1 / 0
except ZeroDivisionError as error:
    raise RuntimeError("no mean\\n  of nothing\\nat all") from error
"""
GROUP = """
raise ExceptionGroup("two", [ValueError("one"), KeyError("other")])
"""


def telling(*lines: str) -> str:
    words = LastWords()
    for line in lines:
        words.add(line)
    return words.telling()


@pytest.mark.parametrize(
    ("program", "said"),
    [
        ("import no_such_module", MISSING),
        (TRACED, MISSING),
        (LOGGED, MISSING),
        (CHAINED, "RuntimeError: no mean"),
        pytest.param(
            GROUP,
            "ExceptionGroup: two (2 sub-exceptions)",
            marks=pytest.mark.skipif(sys.version_info < (3, 11), reason="new"),
        ),
        ("import sys; print('all is well'); sys.exit('no data')", "no data"),
        ("def", "SyntaxError: invalid syntax"),
    ],
    ids=["traceback", "span after it", "words after it", "chain", "group", "exit with a message", "no traceback"],
)
def test_the_exception_is_found(program: str, said: str) -> None:
    """Whatever the process prints after it, on either stream."""
    ran = subprocess.run(
        [sys.executable, "-c", program], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False
    )
    assert ran.returncode == 1
    assert telling(*ran.stdout.splitlines()) == said, ran.stdout


def test_without_an_exception_it_is_the_last_line_with_anything_on_it() -> None:
    assert telling("loaded", "\x1b[31m killed \x1b[0m", "  ", "") == "killed"
    assert telling() == ""
    assert telling("Traceback (most recent call last):", '  File "cut.py", line 1, in <module>') == (
        'File "cut.py", line 1, in <module>'
    )


def test_so_much_is_kept_and_no_more() -> None:
    words = LastWords()
    for line in ("Traceback (most recent call last):", '  File "a.py", line 1', "KeyError: 'a'"):
        words.add(line)
    for number in range(KEPT - 3):
        words.add(f"{number}")
    assert words.telling() == "KeyError: 'a'"
    words.add("end")
    assert words.telling() == "end"
    assert words.tail(2) == [f"{KEPT - 4}", "end"]
