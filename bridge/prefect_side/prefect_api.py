"""Which Prefect API a component uses, and what it means when that API doesn't answer."""

from __future__ import annotations

import contextlib
import logging
import threading
from collections.abc import Iterator
from typing import TYPE_CHECKING

import httpx
from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.exceptions import PrefectException
from prefect.settings import (
    PREFECT_API_KEY,
    PREFECT_API_URL,
    PREFECT_SERVER_EPHEMERAL_STARTUP_TIMEOUT_SECONDS,
    temporary_settings,
)

from bridge.errors import BridgeError, InvalidSettings, PrefectUnavailable
from bridge.planning import header_value

if TYPE_CHECKING:
    from bridge.settings import ModalPrefectOrchestratorConfig

# Its DEBUG records are every frame and header, with which Prefect's clients send the key or the password. Whoever asks
# ZenML for DEBUG gets those of all libraries, and ZenML keeps them with the run's logs.
logging.getLogger("websockets").setLevel(logging.INFO)

EPHEMERAL_STARTUP_SECONDS = 120
"""How long Prefect's temporary local server may take to come up."""

_RIGHT_URL = (
    "Check `prefect config view`, or set `prefect_api_url` on the orchestrator, `zenml orchestrator update <name> "
    "--prefect_api_url=<url>`; the URL ends with /api."
)


@contextlib.contextmanager
def prefect_settings(config: ModalPrefectOrchestratorConfig) -> Iterator[None]:
    """Use the Prefect API that the component names; where it names none, Prefect's own configuration.

    Raises ``InvalidSettings`` for what is no URL or no key.
    """
    updates = {}
    if config.prefect_api_key is not None and not header_value.is_sendable(config.prefect_api_key):
        fix = "Give the key as Prefect shows it; look at the end of the secret that holds it"
        raise InvalidSettings("prefect_api_key", "***", f"this is no key: {header_value.WHY}", fix)
    if config.prefect_api_url is not None:
        updates[PREFECT_API_URL] = config.prefect_api_url
    if config.prefect_api_key is not None:
        updates[PREFECT_API_KEY] = config.prefect_api_key
    if config.prefect_api_url is None and PREFECT_API_URL.value() is None:
        # Prefect starts a server of its own then, and gives up after 20 s: too soon for a first run, which makes the
        # database, on a busy laptop.
        patience = PREFECT_SERVER_EPHEMERAL_STARTUP_TIMEOUT_SECONDS
        updates[patience] = str(max(patience.value(), EPHEMERAL_STARTUP_SECONDS))
    if not updates:
        yield
        return
    with contextlib.ExitStack() as stack:
        try:
            stack.enter_context(temporary_settings(updates=updates))
        except ValueError:  # of which the words may show the key
            fix = "Write it as http://127.0.0.1:4200/api"
            raise InvalidSettings("prefect_api_url", config.prefect_api_url, "Prefect takes no such URL", fix) from None
        yield


def refuse_temporary_server(what: str) -> None:
    """Raise ``PrefectUnavailable`` where Prefect would start a server for this process alone: ``what`` is of no use."""
    if PREFECT_API_URL.value() is None:
        raise PrefectUnavailable(
            f"{what} needs a Prefect server that stays, and no PREFECT_API_URL is set here. Start one with `prefect "
            "server start`, and set its URL with `prefect config set PREFECT_API_URL=...`, or as "
            "`prefect_api_url` on the orchestrator."
        )


@contextlib.contextmanager
def prefect_api() -> Iterator[SyncPrefectClient]:
    """A client of Prefect's API.

    Whatever the API says of an object that doesn't exist has to be caught inside. All other errors of it become
    ``PrefectUnavailable``.
    """
    _refuse_what_can_not_be_sent()
    try:
        with _quietly(), get_client(sync_client=True) as client:
            yield client
    except BridgeError:
        raise
    except httpx.HTTPStatusError as error:
        raise PrefectUnavailable(f"{where_it_is()} {_refusal(error.response)}") from error
    except (PrefectException, httpx.HTTPError, httpx.InvalidURL, OSError, RuntimeError, ValueError) as error:
        raise PrefectUnavailable(
            f"{where_it_is()} can't be used ({type(error).__name__}: {error}). {_RIGHT_URL}"
        ) from error


@contextlib.contextmanager
def _quietly() -> Iterator[None]:
    """Keep from the terminal what httpx tells of every request of this thread: waiting makes one every two seconds."""
    here = threading.get_ident()

    def wanted(record: logging.LogRecord) -> bool:
        return record.thread != here or record.levelno >= logging.WARNING

    logger = logging.getLogger("httpx")
    logger.addFilter(wanted)
    try:
        yield
    finally:
        logger.removeFilter(wanted)


def _refuse_what_can_not_be_sent() -> None:
    key = PREFECT_API_KEY.value()
    if key is not None and not header_value.is_sendable(key):
        raise PrefectUnavailable(
            f"PREFECT_API_KEY is no key: {header_value.WHY}. Give it as Prefect shows it; look at the end of whatever "
            "holds it."
        )


def where_it_is() -> str:
    """Say which Prefect is asked."""
    return f"Prefect's API at {PREFECT_API_URL.value() or 'a temporary local server'}"


def _refusal(response: httpx.Response) -> str:
    said = f"answers {response.status_code} to {response.request.method} {response.request.url.path}"
    if response.status_code in (401, 403):
        return (
            f"refuses this client: it {said}. Set `prefect_api_key` on the orchestrator, or for a server with a "
            "password PREFECT_API_AUTH_STRING, or the headers that your proxy wants in PREFECT_CLIENT_CUSTOM_HEADERS."
        )
    if response.status_code in (404, 405):
        return f"can't be used: it {said}. Is the URL right? {_RIGHT_URL}"
    return f"can't be used: it {said} ({response.text[:500]}). Check the server's log, and that it isn't too old."
