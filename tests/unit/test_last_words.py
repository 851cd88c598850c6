"""What of a sandbox's output tells why it ended."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterable

import pytest

from bridge.flow_run.last_words import FAREWELL_LINES, KEPT_BYTES, KEPT_LINES, LastWords

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
HANDLED = """
import logging, sys
try:
    import no_such_module
except ImportError:
    logging.getLogger().exception("Going on without it.")
for epoch in range(EPOCHS):
    print("epoch", epoch)
sys.exit("no data")
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
        (LOGGED, f"{MISSING} … goodbye"),
        (HANDLED.replace("EPOCHS", "3"), f"{MISSING} … no data"),
        (HANDLED.replace("EPOCHS", str(FAREWELL_LINES)), "no data"),
        (CHAINED, "RuntimeError: no mean … at all"),
        pytest.param(
            GROUP,
            "ExceptionGroup: two (2 sub-exceptions)",
            marks=pytest.mark.skipif(sys.version_info < (3, 11), reason="new"),
        ),
        ("import sys; print('all is well'); sys.exit('no data')", "no data"),
        ("def", "SyntaxError: invalid syntax"),
    ],
    ids=[
        "traceback",
        "span after it",
        "words after it",
        "words soon after it",
        "many words after it",
        "chain",
        "group",
        "exit with a message",
        "no traceback",
    ],
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


def added(words: LastWords, lines: Iterable[str]) -> LastWords:
    for line in lines:
        words.add(line)
    return words


TRACEBACK = ("Traceback (most recent call last):", '  File "a.py", line 1', "KeyError: 'a'")


def test_so_many_lines_are_kept_and_no_more() -> None:
    words = added(LastWords(), [*TRACEBACK, *("  ." for _ in range(KEPT_LINES - 3))])
    assert words.telling() == "KeyError: 'a'"
    words.add("  end")
    assert words.telling() == "end"
    assert words.tail(2) == ["  .", "  end"]


@pytest.mark.parametrize("character", ["a", "é", "字", "🎉"])
@pytest.mark.parametrize("length", [60, 4_000, 1_000_000])
def test_so_many_bytes_are_kept_and_no_more(character: str, length: int) -> None:
    words = added(LastWords(), (character * length for _ in range(3 * KEPT_LINES)))
    kept = words.tail(KEPT_LINES)
    assert 0 < sum(sys.getsizeof(line) for line in kept) <= KEPT_BYTES
    words.add("end")
    assert words.telling() == "end"
    assert words.tail(2)[0] == kept[-1], "the line before it is still there"
