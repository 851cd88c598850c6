"""Modal: the credentials of each component, and what it names there, by real calls."""

from __future__ import annotations

import asyncio
import shlex
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace

from zenml.models import ComponentResponse

from bridge import names
from bridge.components import OurConfig, Place, place_of, title
from bridge.doctor.finding import Finding, Grade, told
from bridge.doctor.patient import Patient
from bridge.errors import CredentialsRefused, InvalidSettings, RunnerUnavailable, SandboxRefused
from bridge.own_loop import on_own_loop
from bridge.plan import SandboxSpec, VolumeMount
from bridge.planning.validation import modal_builds_with
from bridge.runners.base import AsksAhead, Runner

OUTAGE_SECONDS = 5.0
"""How long Modal may be away: who asks how things are wants to hear that it is."""
PATIENCE_SECONDS = 30.0
"""The SDK alone tries for 56 s to connect."""
_CHECK = "modal"
_ACCOUNT = "Run `modal setup`, or set `--token_id` and `--token_secret` on the component"


@dataclass(frozen=True)
class Used:
    """A place, and the components of the stack whose sandboxes are there.

    ``whose`` names them, to begin a sentence with; it is "" where all components have their sandboxes in one place.
    """

    place: Place
    configs: tuple[OurConfig, ...]
    whose: str


def credentials(patient: Patient) -> Iterator[Finding]:
    """Whether Modal takes the credentials of each component, and has its environment, secrets and volumes."""
    used, unreadable = places_of(patient)
    yield from unreadable
    for one in used:
        for finding in _of(one, patient):
            yield replace(finding, what=f"{one.whose}{finding.what}")


def own_credentials(patient: Patient) -> Iterator[Finding]:
    """Whether Modal takes this machine's own credentials: all that can be asked without ZenML."""
    missing = "this machine has no Modal account; whether the stack needs it is in ZenML"
    for found in _at(Place("modal"), {}, missing):
        yield replace(found, what=f"{found.what}, as this machine is configured") if found.grade is Grade.OK else found


def places_of(patient: Patient) -> tuple[list[Used], list[Finding]]:
    """Where the stack's sandboxes are, and the components of which that can't be read, with what is wrong."""
    places: dict[Place, list[tuple[ComponentResponse, OurConfig]]] = {}
    unreadable = [
        Finding(_CHECK, Grade.SKIPPED, f"{title(component)}: its configuration has to be mended first")
        for component, _ in patient.unreadable
    ]
    for component, config in patient.components:
        try:
            places.setdefault(place_of(config), []).append((component, config))
        except InvalidSettings as error:
            unreadable.append(told(_CHECK, Grade.PROBLEM, f"{title(component)}: {error}", _ACCOUNT))
    alone = len(places) == 1 and not unreadable
    used = []
    for place, found in places.items():
        whose = "" if alone else f"{', '.join(title(component) for component, _ in found)}: "
        used.append(Used(place, tuple(config for _, config in found), whose))
    return used, unreadable


def _of(used: Used, patient: Patient) -> Iterator[Finding]:
    if used.place.runner == "process":
        yield Finding(_CHECK, Grade.OK, "not used: sandboxes are local processes, which need no account")
        return
    # A worker has an account of its own, unless the component brings one.
    workers = used.place.token_id is None and patient.work_pool is not None
    without = "this machine has no Modal account; the worker needs one" if workers else None
    yield from _at(used.place, _named(used, has_registry=patient.has_registry), without)


def _at(place: Place, named: Mapping[SandboxSpec, str], without: str | None) -> Iterator[Finding]:
    """What Modal says of a place, and of what is named there.

    ``without`` is what to say of a machine without an account where that needn't be wrong.
    """
    environment = place.modal_environment
    try:
        missing = on_own_loop(lambda: _ask(place.runner_for(outage=OUTAGE_SECONDS), environment, named))
    except CredentialsRefused as error:
        if without:
            fix = f"To look at Modal from here too: {_ACCOUNT[0].lower()}{_ACCOUNT[1:]}"
            yield Finding(_CHECK, Grade.NOTE, without, fix)
        else:
            yield told(_CHECK, Grade.PROBLEM, str(error), _ACCOUNT)
    except SandboxRefused as error:
        fix = f"modal environment create {environment}" if environment else "Check `modal config show`"
        yield Finding(_CHECK, Grade.PROBLEM, str(error).rstrip("."), fix)
    except (RunnerUnavailable, asyncio.TimeoutError) as error:
        what = str(error).rstrip(".") or f"Modal didn't answer within {PATIENCE_SECONDS:g} s"
        fix = "Check the network and https://status.modal.com, and MODAL_SERVER_URL if it is set"
        yield Finding(_CHECK, Grade.UNKNOWN, what, fix)
    else:
        where = f"environment `{environment}`" if environment else "the profile's environment"
        yield Finding(_CHECK, Grade.OK, f"the credentials are good; {where} is there")
        for what, fix in missing:
            yield Finding(_CHECK, Grade.NOTE if without else Grade.PROBLEM, what.rstrip("."), fix)


def _named(used: Used, *, has_registry: bool) -> dict[SandboxSpec, str]:
    """What the components at a place name there, each as a sandbox that has it alone, and how it is made."""
    environment = used.place.modal_environment
    there = f"--env {shlex.quote(environment)} " if environment else ""
    named = {}
    fields: dict[str, dict[str, None]] = {}
    for config in used.configs:
        # A secret of builds is asked for where Modal builds.
        builds = config.build_secrets if modal_builds_with(config, has_registry=has_registry) else ()
        for field, secrets in (("secrets", config.secrets), ("build_secrets", builds)):
            for name in secrets:
                fields.setdefault(name, {})[f"`{field}`"] = None
    for name, of in fields.items():
        spec = SandboxSpec(modal_environment=environment, secrets=(name,))
        named[spec] = f"modal secret create {there}{shlex.quote(name)} KEY=VALUE, or mend {' and '.join(of)}"
    for config in used.configs:
        for path, text in config.volumes.items():
            mount = VolumeMount.of(path, text)
            spec = SandboxSpec(modal_environment=environment, volumes=(mount,))
            named[spec] = f"modal volume create {there}{shlex.quote(mount.name)}, or mend `volumes`"
    return named


async def _ask(runner: Runner, environment: str | None, named: Mapping[SandboxSpec, str]) -> list[tuple[str, str]]:
    """Look an environment up, and what is named there; return what is missing, each with the fix."""

    async def ask() -> list[tuple[str, str]]:
        missing = []
        async with runner:
            await runner.running({names.TAG_SANDBOX: "doctor"}, environment)  # of which there is none: the call counts
            for spec, fix in named.items():
                try:
                    if isinstance(runner, AsksAhead):
                        await runner.check(None, [spec])
                except SandboxRefused as error:
                    missing.append((str(error), fix))
        return missing

    return await asyncio.wait_for(ask(), PATIENCE_SECONDS)
