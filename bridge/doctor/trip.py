"""A round trip through a sandbox, which costs a second of a machine: is it made, what is in it, what can it reach?"""

from __future__ import annotations

import asyncio
import json
import sys
import time
import uuid
from collections.abc import Iterator
from dataclasses import dataclass, replace

import zenml
from packaging.requirements import Requirement
from zenml.client import Client
from zenml.enums import StoreType

from bridge.components import Place
from bridge.doctor.finding import Finding, Grade, told
from bridge.doctor.modal_side import OUTAGE_SECONDS, places_of
from bridge.doctor.patient import Patient
from bridge.errors import CapacityUnavailable, RunnerError, RunnerUnavailable
from bridge.flow_run.outcome import SandboxEnd
from bridge.images.registry_login import registry_of
from bridge.own_loop import on_own_loop
from bridge.plan import SandboxSpec
from bridge.runners.base import Runner, SandboxRequest
from bridge.versions import series

SECONDS = 600.0
"""How long it may take; the first pull of a large image takes minutes."""
_CHECK = "round trip"
_MARK = "modal-prefect doctor: "
_APP = "zenml-modal-prefect-doctor"
_LAST_WORDS = 300
_ZENMLS_IMAGE = f"zenmldocker/zenml:{zenml.__version__}-py{sys.version_info.major}.{sys.version_info.minor}"
# Standard library only, for whatever Python the image has. Arguments: an address to reach, then names of packages.
_PROGRAM = f"""
import importlib.metadata as m, json, sys, urllib.request
def version(name):
    try:
        return m.version(name)
    except m.PackageNotFoundError:
        return None
def reach(url):
    try:
        urllib.request.urlopen(url, timeout=15).close()
        return ""
    except Exception as error:
        return type(error).__name__ + ": " + str(error)
url, *names = sys.argv[1:]
print({_MARK!r} + json.dumps({{
    "python": sys.version.split()[0], "versions": {{name: version(name) for name in names}},
    "unreachable": reach(url) if url else "",
}}), flush=True)
"""


@dataclass(frozen=True)
class Seen:
    """How a sandbox ended, the lines that it wrote, and after how many seconds."""

    end: SandboxEnd
    lines: list[str]
    seconds: float


def round_trip(patient: Patient) -> Iterator[Finding]:
    """Make a sandbox as the stack's runs do, look around in it, and end it: one wherever the stack has sandboxes."""
    places, _ = places_of(patient)  # what can't be read is the matter of the check before
    for used in places:
        for finding in _through(used.place, patient):
            yield replace(finding, what=f"{used.whose}{finding.what}")


def _through(place: Place, patient: Patient) -> Iterator[Finding]:
    address = f"{patient.store.url}/health" if patient.store.type == StoreType.REST else ""
    needed = [Requirement(text) for text in sorted(patient.stack.requirements())]
    on_modal = place.runner == "modal"
    image = (patient.image or _newest_image(patient)) if on_modal else None
    if on_modal and image is None:
        # Nothing was built yet: what the stack needs comes into its images when they are.
        image, needed = _ZENMLS_IMAGE, []
    runner = place.runner_for(registry_of(patient.stack) if on_modal else None, OUTAGE_SECONDS)
    packages = dict.fromkeys(["zenml", *(one.name for one in needed)])
    try:
        seen = on_own_loop(lambda: _go(runner, image, place.modal_environment, (address, *packages)))
    except CapacityUnavailable as error:
        yield told(_CHECK, Grade.UNKNOWN, str(error), "Try again later")
        return
    except RunnerUnavailable as error:
        yield told(_CHECK, Grade.UNKNOWN, str(error), "Try again; if it stays so, look at https://status.modal.com")
        return
    except asyncio.TimeoutError:
        what = f"a sandbox of image {image} didn't come back within {SECONDS:g} s"
        yield Finding(_CHECK, Grade.UNKNOWN, what, "Look at Modal's dashboard, and at https://status.modal.com")
        return
    except RunnerError as error:
        # The end of a build's log may follow: the first line says it.
        what = str(error).splitlines()[0].rstrip(".")
        fix = "Name an image that exists with --image; one of the stack's registry is pulled with its credentials"
        yield Finding(_CHECK, Grade.PROBLEM, what, fix)
        return
    yield from judge(seen, image, address, needed)


def judge(seen: Seen, image: str | None, address: str, needed: list[Requirement]) -> Iterator[Finding]:
    """Yield what such a sandbox has shown: of that image, asked for ZenML's server at ``address`` and for packages."""
    where = f"image {image}" if image else "this environment"
    told_back = [line.removeprefix(_MARK) for line in seen.lines if line.startswith(_MARK)]
    if not told_back:
        words = " ".join(seen.lines)[-_LAST_WORDS:]
        what = f"a sandbox of {where} ended without an answer ({seen.end}): {words}"
        yield Finding(_CHECK, Grade.PROBLEM, what, "Its image needs a `python`; name another one with --image")
        return
    said = json.loads(told_back[0])
    bad = False
    for name, there, wanted in _unfit(said["versions"], needed):
        bad = True
        what = f"in a sandbox of {where} {name} is {there or 'missing'}, and {wanted} is needed"
        fix = f"Add it to the image: DockerSettings(requirements=['{wanted}']), or another parent_image"
        yield Finding(_CHECK, Grade.PROBLEM, what, fix)
    if problem := said["unreachable"]:
        bad = True
        what = f"a sandbox can't reach ZenML's server at {address.removesuffix('/health')} ({problem})"
        yield Finding(_CHECK, Grade.PROBLEM, what, "Give ZenML's server an address that is reachable from the internet")
    if not bad:
        what = (
            f"{seen.seconds:.1f} s through a sandbox of {where}: Python {said['python']}, ZenML's server within reach"
        )
        yield Finding(_CHECK, Grade.OK, what if address else what.partition(", ZenML")[0])


def _unfit(versions: dict[str, str | None], needed: list[Requirement]) -> Iterator[tuple[str, str | None, str]]:
    for requirement in [Requirement(f"zenml=={series(zenml.__version__)}.*"), *needed]:
        there = versions.get(requirement.name)
        if there is None or not requirement.specifier.contains(there, prereleases=True):
            yield requirement.name, there, f"{requirement.name}{requirement.specifier}"


def _newest_image(patient: Patient) -> str | None:
    """The image that the stack's newest build made; None where it has built none yet."""
    builds = Client().list_builds(stack_id=patient.stack_model.id, sort_by="desc:created", size=1, hydrate=True)
    for build in builds.items:
        for item in build.images.values():
            return item.image
    return None


async def _go(runner: Runner, image: str | None, environment: str | None, arguments: tuple[str, ...]) -> Seen:
    async def go() -> Seen:
        begun = time.monotonic()
        request = SandboxRequest(
            name=f"doctor-{uuid.uuid4().hex[:12]}",
            app=_APP,
            command=(runner.host_command()[0], "-c", _PROGRAM, *arguments),
            spec=SandboxSpec(image=image, modal_environment=environment, timeout=120),
        )
        async with runner:
            sandbox = await runner.start(request)
            try:
                lines = [line.text async for line in sandbox.output()]
                end = await sandbox.wait()
            finally:
                await sandbox.terminate()
            return Seen(end, lines, time.monotonic() - begun)

    return await asyncio.wait_for(go(), SECONDS)
