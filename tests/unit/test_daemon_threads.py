"""Threads that don't keep their process alive."""

from __future__ import annotations

import subprocess
import sys
import threading
from concurrent.futures import CancelledError

import pytest

from bridge.daemon_threads import DaemonThreads

LEAVES = """
import asyncio
import threading

from bridge.zenml_side.zenml_calls import ZenMLCalls

async def main():
    thread = ZenMLCalls()
    begun = threading.Event()

    def never_ends():
        begun.set()
        threading.Event().wait()

    asked = asyncio.ensure_future(thread.call(never_ends))
    await asyncio.to_thread(begun.wait)
    asked.cancel()
    await asyncio.wait({asked})
    thread.close()

asyncio.run(main())
"""


def test_a_request_that_nobody_waits_for_doesn_t_hold_up_the_end_of_the_process() -> None:
    done = subprocess.run([sys.executable, "-c", LEAVES], timeout=60, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_so_many_at_once_and_no_more_threads_than_needed() -> None:
    threads = DaemonThreads(2, "few")
    assert {threads.submit(threading.get_ident).result(10) for _ in range(3)} == {
        threads.submit(threading.get_ident).result(10)
    }
    meet = threading.Barrier(2)
    both = [threads.submit(meet.wait, 10) for _ in range(2)]
    assert sorted(future.result(10) for future in both) == [0, 1]
    go, begun = threading.Event(), threading.Semaphore(0)

    def waits() -> bool:
        begun.release()
        return go.wait(10)

    three = [threads.submit(waits) for _ in range(3)]
    assert all(begun.acquire(timeout=10) for _ in range(2))
    assert not begun.acquire(blocking=False)
    go.set()
    assert all(future.result(10) for future in three)
    threads.shutdown()


def test_errors_are_the_futures() -> None:
    threads = DaemonThreads(1, "wrong")
    with pytest.raises(ZeroDivisionError):
        threads.submit(lambda: 1 / 0).result(10)
    assert threads.submit(lambda: "and goes on").result(10) == "and goes on"
    threads.shutdown()


@pytest.mark.parametrize("cancel", [True, False])
def test_after_the_end_nothing_begins(cancel: bool) -> None:
    threads = DaemonThreads(1, "closed")
    go = threading.Event()
    at_work, waiting = threads.submit(go.wait, 10), threads.submit(lambda: "late")
    threads.shutdown(cancel_futures=cancel)
    with pytest.raises(RuntimeError, match="no more"):
        threads.submit(go.wait)
    go.set()
    assert at_work.result(10)
    if cancel:
        with pytest.raises(CancelledError):
            waiting.result(10)
    else:
        assert waiting.result(10) == "late"
