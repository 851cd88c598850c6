"""All checks in order, and how an error in one becomes a finding."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator

from bridge.doctor import clocks, installation, modal_side, prefect_side, registry, trip, zenml_side
from bridge.doctor.finding import Finding, Grade, told
from bridge.doctor.patient import Patient, Unmet
from bridge.errors import BridgeError, PrefectUnavailable, RunnerUnavailable

Check = Callable[[Patient], Iterable[Finding]]

_ZENML = "zenml server"
CHECKS: tuple[tuple[str, Check], ...] = (
    ("system", lambda patient: installation.system()),
    ("versions", lambda patient: installation.versions()),
    ("import name", lambda patient: installation.import_name()),
    (_ZENML, zenml_side.server),
    ("stack", zenml_side.stack),
    ("integrations", zenml_side.integrations),
    ("prefect api", prefect_side.api),
    ("work pool", prefect_side.work_pool),
    ("deployments", prefect_side.deployments),
    ("modal", modal_side.credentials),
    ("registry", registry.registry),
    ("clocks", clocks.clocks),
)
ROUND_TRIP: tuple[str, Check] = ("round trip", trip.round_trip)
_COULD_NOT_ASK = (PrefectUnavailable, RunnerUnavailable)


def examine(patient: Patient, *, run: bool = False) -> Iterator[Finding]:
    """Yield what each check finds, as it finds it; ``run`` makes a sandbox as well."""
    return examine_by((*CHECKS, ROUND_TRIP) if run else CHECKS, patient)


def examine_by(checks: Iterable[tuple[str, Check]], patient: Patient) -> Iterator[Finding]:
    """Yield what these checks find; one whose need isn't met is skipped, and an error of ours is a finding."""
    unmet: dict[str, str] = {}
    for name, check in checks:
        yield from _looked_at(name, check, patient, unmet)


def _looked_at(name: str, check: Check, patient: Patient, unmet: dict[str, str]) -> Iterator[Finding]:
    missing = next((need for need in _NEEDS.get(name, ()) if need in unmet), None)
    if missing is not None:
        unmet[name] = unmet[missing]
        if missing != _ZENML or name not in _WITHOUT_ZENML:
            yield Finding(name, Grade.SKIPPED, unmet[missing])
            return
        check = _WITHOUT_ZENML[name]
    try:
        for finding in check(patient):
            if finding.grade.is_bad:
                unmet.setdefault(name, f"mend {name} first")
            yield finding
    except Unmet as error:
        if name not in unmet:
            yield Finding(name, Grade.SKIPPED, str(error))
        unmet.setdefault(name, str(error))
    except BridgeError as error:
        unmet[name] = f"mend {name} first"
        grade = Grade.UNKNOWN if isinstance(error, _COULD_NOT_ASK) else Grade.PROBLEM
        yield told(name, grade, str(error), "Mend what the message says, and call doctor again")


_NEEDS: dict[str, tuple[str, ...]] = {
    "stack": (_ZENML,),
    "integrations": ("stack",),
    "prefect api": (_ZENML,),
    "work pool": ("prefect api",),
    "deployments": ("prefect api",),
    "modal": (_ZENML,),
    "registry": ("stack",),
    "clocks": (_ZENML,),
    "round trip": ("stack", "modal"),
}
"""Check -> those without which there is nothing for it to see."""

_WITHOUT_ZENML: dict[str, Check] = {
    "prefect api": prefect_side.own_api,
    "modal": modal_side.own_credentials,
    "clocks": clocks.prefects_clock,
}
"""Check -> what of it can be seen while ZenML can't be asked: how this machine itself is configured."""
