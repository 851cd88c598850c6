"""The line assembler: however a stream is cut into chunks, the lines are the same."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bridge.watching.output import MAX_LINE_LENGTH, LineAssembler


def assemble(chunks: list[bytes], limit: int = MAX_LINE_LENGTH) -> list[str]:
    assembler = LineAssembler("stdout", limit=limit)
    lines = [line for chunk in chunks for line in assembler.feed(chunk)]
    return [line.text for line in [*lines, *assembler.finish()]]


@pytest.mark.parametrize(
    ("written", "lines"),
    [
        (b"", []),
        (b"a\nb\n", ["a", "b"]),
        (b"a\n\nb", ["a", "", "b"]),
        (b"a\r\nb\r\n", ["a", "b"]),
        (b"10%\r50%\r100%\n", ["100%"]),
        (b"\r10%\r50%\r100%\ndone\n", ["100%", "done"]),
        (b"100%\r", ["100%"]),
        (b"a\r\r\nb", ["a", "b"]),
        (b"bad \xff\xfe byte\n", ["bad \ufffd\ufffd byte"]),
        (b"unfinished \xe2\x82", ["unfinished \ufffd"]),
        ("grüße €\n".encode(), ["grüße €"]),
        (b"nul \0\n", ["nul \ufffd"]),
    ],
)
def test_lines(written: bytes, lines: list[str]) -> None:
    assert assemble([written]) == lines
    assert assemble([bytes([byte]) for byte in written]) == lines


@given(st.lists(st.binary(max_size=12), max_size=12))
def test_chunks_do_not_matter(chunks: list[bytes]) -> None:
    assert assemble(chunks) == assemble([b"".join(chunks)])


def test_a_long_line_is_cut_and_says_so() -> None:
    exact, long = assemble([b"x" * 100 + b"\r\n" + b"y" * 101 + b"\n"], limit=100)
    assert exact == "x" * 100
    assert len(long) == 100
    assert "101 characters" in long


def test_a_line_without_end_costs_bounded_memory() -> None:
    assembler = LineAssembler("stdout")
    for _ in range(2_000):
        assert assembler.feed(b"z" * 10_000) == []
    assert sum(map(len, assembler._parts)) == MAX_LINE_LENGTH
    assert len(assembler._parts) == 2
    (line,) = assembler.finish()
    assert "20000000 characters" in line.text
