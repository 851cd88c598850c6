"""The output of an attempt, kept and followed: nothing twice, nothing missing but what the bound costs."""

from __future__ import annotations

import asyncio
import itertools
import os
from pathlib import Path

import pytest

from bridge.host import journal, wire
from bridge.host.journal import Journal

BODY = b"x" * 4000


async def read(written: Journal, position: int = 0) -> list[wire.Frame]:
    frames = wire.FrameReader()
    return [frame async for data in written.follow(position) for frame in frames.feed(data)]


def bodies(frames: list[wire.Frame]) -> bytes:
    return b"".join(frame.body for frame in frames if frame.kind != wire.END)


async def test_a_follower_sees_what_is_written_while_it_follows(tmp_path: Path) -> None:
    written = Journal(tmp_path / "journal")
    following = asyncio.ensure_future(read(written))
    for number in range(3):
        written.write(wire.STDOUT, b"%d\n" % number)
        await asyncio.sleep(0)
    assert not following.done()
    written.end(b"{}")
    frames = await following
    assert [frame.body for frame in frames] == [b"0\n", b"1\n", b"2\n", b"{}"]
    assert [frame.kind for frame in frames] == [wire.STDOUT] * 3 + [wire.END]


async def test_from_each_position_on_the_rest_follows(tmp_path: Path) -> None:
    written = Journal(tmp_path / "journal")
    for number in range(5):
        written.write(wire.STDERR, b"%d" % number)
    written.end(b"{}")
    frames = await read(written)
    for at, frame in enumerate(frames):
        assert bodies(await read(written, frame.position)) == bodies(frames[at + 1 :])


async def test_of_more_than_the_bound_the_first_and_the_newest_are_kept(tmp_path: Path) -> None:
    written = Journal(tmp_path / "journal")
    total = 100 << 20
    for number in range(total // len(BODY)):
        written.write(wire.STDOUT, b"%08d" % number + BODY[8:])
    written.end(b"{}")
    frames = await read(written)
    numbers = [int(frame.body[:8]) for frame in frames if frame.kind == wire.STDOUT]
    assert numbers[0] == 0
    assert numbers[-1] == total // len(BODY) - 1
    assert numbers == sorted(set(numbers))
    assert sum(path.stat().st_size for path in (tmp_path / "journal").iterdir()) <= journal.FILES * journal.FILE_BYTES
    gaps = [
        later.position - wire.HEAD.size - len(later.body) - earlier.position
        for earlier, later in itertools.pairwise(frames)
        if later.kind == wire.STDOUT
    ]
    assert sum(gap > 0 for gap in gaps) == 1, "the one cut shows in the positions"


async def test_an_earlier_attempt_keeps_no_more_than_its_last_file(tmp_path: Path) -> None:
    written = Journal(tmp_path / "journal")
    for _ in range(3 * journal.FILE_BYTES // len(BODY)):
        written.write(wire.STDOUT, BODY)
    written.end(b"{}")
    written.shrink()
    assert len(os.listdir(tmp_path / "journal")) == 1
    assert (await read(written))[-1].kind == wire.END


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="Linux")
async def test_a_full_disk_costs_output_and_not_the_end(tmp_path: Path) -> None:
    written = Journal(tmp_path / "journal")
    os.symlink("/dev/full", tmp_path / "journal" / f"output-{0:020d}")
    written.write(wire.STDOUT, b"lost")
    written.end(b"{}")
    assert written.lost == 4
    assert [frame.kind for frame in await read(written)] == [wire.END]
