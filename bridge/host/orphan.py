"""The sandbox's side of the lease (:mod:`bridge.lease`): without its flow it tells ZenML, and ends.

A daemon thread in the program that a sandbox runs: it has to see the end of its flow while that program is in the
user's code. Imports ZenML.
"""

from __future__ import annotations

import logging
import os
import signal
import threading
import time
from collections.abc import Callable, Collection
from uuid import UUID

from zenml.client import Client
from zenml.exceptions import AuthorizationException

from bridge import names, orphans
from bridge.lease import Lease, last_sign, period

GRACE_SECONDS = 10.0
"""From SIGTERM to the end of a step that is a program of its own."""
PATIENCE_SECONDS = 600.0
"""How long ZenML is told of the end; after that the sandbox ends untold, and costs nothing at least."""
_PAUSE_SECONDS = 2.0

_logger = logging.getLogger(__name__)


def watch(begin: Callable[[], Collection[str] | None], finish: Callable[[], object]) -> None:
    """Watch the lease, if this program is to have one: :data:`bridge.names.ENV_ORPHAN_TIMEOUT` says so.

    Both are called in another thread, once the flow is gone. ``begin`` is to start nothing more, and returns the steps
    that run here, None for all of the run; then ZenML is told of their end; then ``finish`` is to end them.
    """
    # Taken away: the programs that this one starts are watched by this one.
    orphan_timeout, run_id = os.environ.pop(names.ENV_ORPHAN_TIMEOUT, None), os.environ.get(names.ENV_RUN_ID)
    if orphan_timeout is None or run_id is None:
        return
    try:
        # Opened here, once: two threads that open a store at the same moment get in each other's way.
        _ = Client().zen_store
    except Exception as error:
        _logger.warning("ZenML's store can't be opened: %s: %s", type(error).__name__, error)

    def work() -> None:
        _until_gone(UUID(run_id), float(orphan_timeout))
        running = begin()
        _logger.warning("Its flow gave no sign of life for %s s: this sandbox ends.", orphan_timeout)
        _tell(UUID(run_id), f"It gave no sign of life for {orphan_timeout} s, its `orphan_timeout`", running)
        finish()

    threading.Thread(target=work, name="orphan", daemon=True).start()


def watch_step(step: str) -> None:
    """Watch the lease of a program that is one attempt of a step."""

    def finish() -> None:
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(GRACE_SECONDS)  # the process ends meanwhile
        os._exit(1)

    watch(lambda: [step], finish)


def _until_gone(run_id: UUID, orphan_timeout: float) -> None:
    lease = Lease(orphan_timeout, time.monotonic())
    while True:
        time.sleep(period(orphan_timeout))  # nothing tells of a sign of life, ZenML has to be asked
        sign = _ask(run_id)
        now = time.monotonic()
        if sign is None:
            lease.unanswered(now)
        elif lease.seen(sign, now):
            return


def _ask(run_id: UUID) -> str | None:
    """Return the last sign of life, or None where ZenML can't be asked."""
    try:
        return last_sign(Client().zen_store.get_run(run_id))
    except (KeyError, AuthorizationException) as error:
        # The run was deleted, or ended so long ago that its token has: no flow works on it.
        _logger.warning("ZenML knows nothing of the run any more: %s", error)
        return ""
    except Exception as error:
        _logger.warning("ZenML couldn't be asked for the flow: %s: %s", type(error).__name__, error)
        return None


def _tell(run_id: UUID, detail: str, running: Collection[str] | None) -> None:
    give_up = time.monotonic() + PATIENCE_SECONDS
    while True:
        try:
            run = Client().zen_store.get_run(run_id)
            orphans.end(run, orphans.gone(run, detail), running)
            return
        except KeyError:
            return  # it was deleted
        except Exception as error:
            _logger.warning("ZenML couldn't be told of the end: %s: %s", type(error).__name__, error)
            if time.monotonic() > give_up:
                return
        time.sleep(_PAUSE_SECONDS)
