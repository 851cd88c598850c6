"""Modal: the credentials and the environment of each component, by a real call."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator

from bridge import names
from bridge.components import Place, place_of, title
from bridge.doctor.finding import Finding, Grade, told
from bridge.doctor.patient import Patient
from bridge.errors import CredentialsRefused, InvalidSettings, RunnerUnavailable, SandboxRefused
from bridge.flow import on_own_loop
from bridge.runners.base import Runner
from bridge.settings import ModalPrefectOrchestratorConfig

OUTAGE_SECONDS = 5.0
"""How long Modal may be away: who asks how things are wants to hear that it is."""
PATIENCE_SECONDS = 30.0
"""The SDK alone tries for 56 s to connect."""
_CHECK = "modal"
_ACCOUNT = "Run `modal setup`, or set `--token_id` and `--token_secret` on the component"


def credentials(patient: Patient) -> Iterator[Finding]:
    """Whether Modal takes the credentials, and has the environment, of each component of this package."""
    places, unreadable = places_of(patient)
    yield from unreadable
    for place, whose in places.items():
        yield _at(place, whose, patient)


def places_of(patient: Patient) -> tuple[dict[Place, str], list[Finding]]:
    """Where the stack's sandboxes are, and whose they are, to begin a sentence with: "" where all are in one place.

    Also what is wrong with components of which that can't be read.
    """
    places: dict[Place, list[str]] = {}
    unreadable = []
    for component, config in patient.components:
        try:
            places.setdefault(place_of(config), []).append(title(component))
        except InvalidSettings as error:
            unreadable.append(told(_CHECK, Grade.PROBLEM, f"{title(component)}: {error}", _ACCOUNT))
    alone = len(places) == 1 and not unreadable
    return {place: "" if alone else f"{', '.join(whose)}: " for place, whose in places.items()}, unreadable


def _at(place: Place, whose: str, patient: Patient) -> Finding:
    def found(grade: Grade, what: str, fix: str = "") -> Finding:
        return Finding(_CHECK, grade, f"{whose}{what}", fix)

    if place.runner == "process":
        return found(Grade.OK, "not used: sandboxes are local processes, which need no account")
    environment = place.modal_environment
    try:
        on_own_loop(lambda: _ask(place.runner_for(outage=OUTAGE_SECONDS), environment))
    except CredentialsRefused as error:
        if place.token_id is None and _on_workers(patient):
            what = "this machine has no Modal account; the worker needs one"
            return found(Grade.NOTE, what, f"To look at Modal from here too: {_ACCOUNT[0].lower()}{_ACCOUNT[1:]}")
        return told(_CHECK, Grade.PROBLEM, f"{whose}{error}", _ACCOUNT)
    except SandboxRefused as error:
        fix = f"modal environment create {environment}" if environment else "Check `modal config show`"
        return found(Grade.PROBLEM, str(error).rstrip("."), fix)
    except (RunnerUnavailable, asyncio.TimeoutError) as error:
        what = str(error).rstrip(".") or f"Modal didn't answer within {PATIENCE_SECONDS:g} s"
        return found(
            Grade.UNKNOWN, what, "Check the network and https://status.modal.com, and MODAL_SERVER_URL if it is set"
        )
    where = f"environment `{environment}`" if environment else "the profile's environment"
    return found(Grade.OK, f"the credentials are good; {where} is there")


def _on_workers(patient: Patient) -> bool:
    """Whether runs are a worker's: it has an account of its own, unless the component brings one."""
    return any(
        isinstance(config, ModalPrefectOrchestratorConfig) and config.work_pool for _, config in patient.components
    )


async def _ask(runner: Runner, environment: str | None) -> None:
    async def ask() -> None:
        async with runner:
            await runner.running({names.TAG_SANDBOX: "doctor"}, environment)  # of which there is none: the call counts

    await asyncio.wait_for(ask(), PATIENCE_SECONDS)
