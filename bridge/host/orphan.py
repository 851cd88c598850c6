"""The sandbox's side of the lease (:mod:`bridge.cleanup.lease`): without its flow it tells ZenML, and ends.

It also ends where ZenML doesn't listen to it any more, since its token has died: nothing that it does could be
recorded, nor could it see whether its flow is there. Its exit code tells the flow.

A daemon thread in the program that a sandbox runs: it has to see the end of its flow while that program is in the
user's code. Imports ZenML.
"""

from __future__ import annotations

import logging
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Collection
from functools import partial
from uuid import UUID

from zenml.client import Client
from zenml.constants import ENV_ZENML_WORKLOAD_TOKEN_EXPIRATION_LEEWAY
from zenml.exceptions import AuthorizationException, CredentialsNotValid

from bridge import names
from bridge.cleanup import orphans
from bridge.cleanup.lease import Lease, period
from bridge.cleanup.signs_of_life import last_sign, last_sign_of_caller
from bridge.flow_run.outcome import TOKEN_REFUSED
from bridge.host import patience, refusal, tracing

GRACE_SECONDS = 10.0
"""From SIGTERM to the end of a step that is a program of its own."""
PATIENCE_SECONDS = 600.0
"""How long ZenML is told of the end; after that the sandbox ends untold, and costs nothing at least."""
_PAUSE_SECONDS = 2.0

_logger = logging.getLogger(__name__)


def watch(
    begin: Callable[[], Collection[str] | None],
    finish: Callable[[], object],
    *,
    cut_off: Callable[[], object] | None = None,
    last_word: bool = False,
) -> None:
    """Watch the lease, if this program is to have one: :data:`bridge.names.ENV_ORPHAN_TIMEOUT` says so.

    Both are called in another thread, once the flow is gone. ``begin`` is to start nothing more, and returns the steps
    that run here, None for all of the run; then ZenML is told of their end; then ``finish`` is to end them. Where ZenML
    refuses the token it isn't told, and ``cut_off``, if it is given, ends them instead.

    With ``last_word`` ZenML is told once more why the run failed, after ``finish`` has returned, and this process ends:
    for a program that itself tells ZenML how its run ended.
    """
    run_id = os.environ.get(names.ENV_RUN_ID)
    orphan_timeout = _lease(names.ENV_ORPHAN_TIMEOUT)
    if orphan_timeout is None or run_id is None:
        return

    def end(detail: str) -> None:
        running = begin()

        def tell() -> None:
            run = Client().zen_store.get_run(UUID(run_id))
            orphans.end(run, orphans.gone(run, detail), running)

        def explain() -> None:
            run = Client().zen_store.get_run(UUID(run_id))
            orphans.explain(run, orphans.gone(run, detail))

        _tell(tell)
        finish()
        if last_word:
            _tell(explain)
            _leave(1)

    def refused() -> None:
        begin()
        (cut_off or finish)()
        if last_word:
            _leave(TOKEN_REFUSED)

    _watch(orphan_timeout, lambda: last_sign(Client().zen_store.get_run(UUID(run_id))), end, refused)


def watch_step_run(step_run_id: UUID) -> None:
    """Watch the lease of a program that carries out a step run for a step operator, if it is to have one."""
    orphan_timeout = _lease(names.ENV_CALLER_TIMEOUT)
    if orphan_timeout is None:
        return

    def end(detail: str) -> None:
        _tell(lambda: orphans.end_step_run(step_run_id, orphans.caller_gone(detail)))
        _end_this_process(1)

    read = partial(_sign_of_caller, step_run_id)
    _watch(orphan_timeout, read, end, partial(_end_this_process, TOKEN_REFUSED))


def _sign_of_caller(step_run_id: UUID) -> str:
    return last_sign_of_caller(Client().zen_store.get_run_step(step_run_id))


def _lease(variable: str) -> str | None:
    # Taken away: the programs that this one starts are watched by this one.
    orphan_timeout = os.environ.pop(variable, None)
    if orphan_timeout is not None:
        try:
            # Opened here, once: two threads that open a store at the same moment get in each other's way.
            patience.open_store()
        except Exception as error:
            _logger.warning("ZenML's store can't be opened: %s: %s", type(error).__name__, error)
    return orphan_timeout


def _watch(
    orphan_timeout: str, read: Callable[[], str], end: Callable[[str], None], refused: Callable[[], None]
) -> None:
    """Read the last sign of life again and again, in another thread; ``end`` is told how long there was none.

    ``refused`` is called instead where ZenML refuses the token.
    """

    def work() -> None:
        if _refused_at_the_end(read, float(orphan_timeout)):
            _logger.error(
                "ZenML's server doesn't take this sandbox's token any more (see its %s): what runs here ends.",
                ENV_ZENML_WORKLOAD_TOKEN_EXPIRATION_LEEWAY,
            )
            refused()
            return
        _logger.warning("Nobody gave a sign of life for %s s: this sandbox ends.", orphan_timeout)
        end(f"It gave no sign of life for {orphan_timeout} s, its `orphan_timeout`")

    threading.Thread(target=work, name="orphan", daemon=True).start()


def watch_step(step: str) -> None:
    """Watch the lease of a program that is one attempt of a step."""

    watch(lambda: [step], partial(_end_this_process, 1), cut_off=partial(_end_this_process, TOKEN_REFUSED))


def _end_this_process(code: int) -> None:
    os.kill(os.getpid(), signal.SIGTERM)
    time.sleep(GRACE_SECONDS)  # the process ends meanwhile
    os._exit(code)


def _leave(code: int) -> None:
    """End this process from this thread, with what was said and traced so far."""
    tracing.flush()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def _refused_at_the_end(read: Callable[[], str], orphan_timeout: float) -> bool:
    """Return once the lease is over: whether since ZenML refuses the token. Else the flow gives no sign of life."""
    lease = Lease(orphan_timeout, time.monotonic())
    while True:
        time.sleep(period(orphan_timeout))  # nothing tells of a sign of life, ZenML has to be asked
        asked = time.monotonic()
        refused = False
        try:
            sign = _ask(read)
        except CredentialsNotValid as error:
            if refusal.came_with_the_end_of_the_run(error):
                return True
            _logger.warning("ZenML refuses this sandbox's token: %s", error)
            sign, refused = "", True  # maybe not for ever
        now = time.monotonic()
        if sign is None:
            lease.unanswered(now)
        elif lease.seen(sign, now, now - asked):
            return refused


def _ask(read: Callable[[], str]) -> str | None:
    """Return the last sign of life, or None where ZenML can't be asked. Raises ``CredentialsNotValid``."""
    try:
        return read()
    except CredentialsNotValid:
        raise
    except (KeyError, AuthorizationException) as error:
        # The run was deleted: no flow works on it.
        _logger.warning("ZenML knows nothing of the run any more: %s", error)
        return ""
    except Exception as error:
        _logger.warning("ZenML couldn't be asked for the flow: %s: %s", type(error).__name__, error)
        return None


def _tell(tell: Callable[[], None]) -> None:
    what = "ZenML couldn't be told of the end"
    try:
        patience.patiently(
            what,
            tell,
            lambda error: not isinstance(error, (KeyError, CredentialsNotValid)),
            PATIENCE_SECONDS,
            pause=_PAUSE_SECONDS,
        )
    except KeyError:
        return  # it was deleted
    except Exception as error:
        _logger.warning("%s: %s: %s", what, type(error).__name__, error)
