"""The output of an attempt, kept and followed: nothing twice, nothing missing but what the bound costs."""

from __future__ import annotations

import asyncio
import itertools
import os
from pathlib import Path

import pytest

from bridge.host import journal, wire
from bridge.host.attempt import Attempt, Streams
from bridge.host.journal import Journal
from bridge.host.turns import Turns

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


async def test_a_slow_reader_gets_what_is_written_meanwhile_into_the_file_that_it_reads_and_the_next(
    tmp_path: Path,
) -> None:
    written = Journal(tmp_path / "journal")
    written.write(wire.STDOUT, BODY)
    frames = wire.FrameReader()
    found: list[wire.Frame] = []
    async for data in written.follow(0):
        if not found:  # while the reader has its first piece: what is left of this file, the next one, and some more
            for _ in range(2 * journal.FILE_BYTES // len(BODY)):
                written.write(wire.STDOUT, BODY)
            written.end(b"{}")
        found += frames.feed(data)
    assert len(os.listdir(tmp_path / "journal")) == 3, "nothing was dropped"
    assert len(bodies(found)) == (1 + 2 * journal.FILE_BYTES // len(BODY)) * len(BODY)


async def test_a_file_that_a_step_has_emptied_holds_nobody_up(tmp_path: Path) -> None:
    """What is gone is skipped, though more files have come since, and the host hears others meanwhile."""
    written = Journal(tmp_path / "journal")
    for _ in range(10):
        written.write(wire.STDOUT, BODY)
    (file,) = (tmp_path / "journal").iterdir()
    os.truncate(file, 0)
    following = asyncio.ensure_future(read(written))
    await asyncio.sleep(0)
    assert not following.done()
    written.end(b"{}")
    assert [frame.kind for frame in await following] == [wire.END]


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


async def test_what_is_gone_costs_output_and_not_the_end(tmp_path: Path) -> None:
    """A step may empty the folders of its sandbox."""
    written = Journal(tmp_path / "journal")
    for _ in range(3 * journal.FILE_BYTES // len(BODY)):
        written.write(wire.STDOUT, BODY)
    (first, *_) = sorted((tmp_path / "journal").iterdir())
    first.unlink()
    written.end(b"{}")
    frames = await read(written)
    assert 0 < len(frames) < 3 * journal.FILE_BYTES // len(BODY)
    assert (frames[-1].kind, frames[-1].position) == (wire.END, written.position)
    for path in (tmp_path / "journal").iterdir():
        path.unlink()
    assert [frame.kind for frame in await read(written)] == [wire.END]
    written.shrink()
    written.drop()


async def test_of_what_is_dropped_the_end_is_kept(tmp_path: Path) -> None:
    written = Journal(tmp_path / "journal")
    written.write(wire.STDOUT, BODY)
    written.end(b"{}")
    written.shrink()
    assert written.kept == wire.HEAD.size + len(BODY)
    written.drop()
    assert (written.kept, os.listdir(tmp_path / "journal")) == (0, [])
    (end,) = await read(written)
    assert (end.kind, end.position) == (wire.END, wire.HEAD.size + len(BODY))


class Chatty:
    """A step host whose steps say as much as they are told, and end well."""

    def __init__(self, size: int) -> None:
        self._size = size

    async def start(self, attempt: Attempt, streams: Streams) -> Chatty:
        command = ("head", "-c", str(self._size), "/dev/zero")
        self._process = await asyncio.create_subprocess_exec(*command, stdout=streams.stdout)
        return self

    @property
    def pid(self) -> int:
        return self._process.pid

    async def wait(self) -> int:
        return await self._process.wait()

    def signal(self, number: int) -> None:
        raise AssertionError("nobody ends it")

    async def close(self) -> None:
        """Nothing is left."""


async def test_however_many_steps_a_host_runs_the_room_of_the_earlier_ones_has_a_bound(tmp_path: Path) -> None:
    """A step said more than nothing, and each next one: what is kept of them all together stays the same."""
    steps, said = 24, 6 << 20
    turns = Turns("snapshot", Chatty(said), str(tmp_path / "turns"), 600)
    address = str(tmp_path / "host.sock")
    server = await asyncio.start_unix_server(turns.answer, address)

    async def ask(step: str) -> list[wire.Frame]:
        reader, writer = await asyncio.open_unix_connection(address)
        writer.write(wire.Call(step, step).line({}))
        frames, found = wire.FrameReader(), []
        while data := await reader.read(1 << 20):
            found += frames.feed(data)
        writer.close()
        return found

    for number in range(steps):
        assert len(bodies((await ask(str(number)))[1:])) == said
    kept = sum(path.stat().st_size for path in (tmp_path / "turns").rglob("output-*"))
    one = journal.FILES * journal.FILE_BYTES
    assert one - said < kept <= one + said + (1 << 20), "the last one's comes on top"
    assert len(bodies((await ask(str(steps - 2)))[1:])) == said, "the newest are there"
    assert [frame.kind for frame in await ask("0")] == [wire.ACCEPTED, wire.END], "of the oldest its end is"
    server.close()
    await turns.close()
