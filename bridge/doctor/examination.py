"""All checks in order, and how an error in one becomes a finding."""

from __future__ import annotations

import contextvars
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import Future
from dataclasses import dataclass, field

from bridge.daemon_threads import DaemonThreads
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
_SIDE_BY_SIDE = frozenset({"prefect api", "work pool", "deployments", "modal", "registry", "clocks", "round trip"})
"""Those that ask servers: several that don't answer cost one wait. The others load code, which isn't for threads."""


def examine(patient: Patient, *, run: bool = False) -> Iterator[Finding]:
    """Yield what each check finds, in their order, once that is known; ``run`` makes a sandbox as well."""
    return examine_by((*CHECKS, ROUND_TRIP) if run else CHECKS, patient)


@dataclass
class _Look:
    """What one check found, and what those that need it say where they can't look for that."""

    findings: list[Finding] = field(default_factory=list)
    unmet: str | None = None


def examine_by(checks: Iterable[tuple[str, Check]], patient: Patient) -> Iterator[Finding]:
    """Yield what these checks find; one whose need isn't met is skipped, and an error is a finding."""
    looks: dict[str, Future[_Look]] = {}
    threads = DaemonThreads(len(_SIDE_BY_SIDE), "zenml-modal-prefect-doctor")
    begun: list[Future[_Look]] = []
    try:
        for name, check in checks:
            needs = {need: looks[need] for need in _NEEDS.get(name, ()) if need in looks}
            if name in _SIDE_BY_SIDE:
                looks[name] = threads.submit(contextvars.copy_context().run, _look, name, check, patient, needs)
            else:
                looks[name] = Future()
                looks[name].set_result(_look(name, check, patient, needs))
            begun.append(looks[name])
            if name not in _SIDE_BY_SIDE:
                yield from _found(begun)
        yield from _found(begun)
    finally:
        threads.shutdown()


def _found(begun: list[Future[_Look]]) -> Iterator[Finding]:
    """Yield what these found, and forget them."""
    while begun:
        yield from begun.pop(0).result().findings


def _look(name: str, check: Check, patient: Patient, needs: Mapping[str, Future[_Look]]) -> _Look:
    look = _Look()
    for need, of in needs.items():
        look.unmet = of.result().unmet
        if look.unmet is None:
            continue
        if need == _ZENML and name in _WITHOUT_ZENML:
            check = _WITHOUT_ZENML[name]
            break
        look.findings.append(Finding(name, Grade.SKIPPED, look.unmet))
        return look
    try:
        for finding in check(patient):
            look.findings.append(finding)
            if finding.grade.is_bad:
                look.unmet = look.unmet or f"mend {name} first"
    except Unmet as error:
        if look.unmet is None:
            look.findings.append(Finding(name, Grade.SKIPPED, str(error)))
            look.unmet = str(error)
    except BridgeError as error:
        look.unmet = f"mend {name} first"
        grade = Grade.UNKNOWN if isinstance(error, _COULD_NOT_ASK) else Grade.PROBLEM
        look.findings.append(told(name, grade, str(error), "Mend what the message says, and call doctor again"))
    except Exception as error:
        # Libraries raise what they like in an environment that is half configured, and so does a mistake of ours; the
        # other checks have something to say all the same.
        look.unmet = f"mend {name} first"
        what = f"the check broke off ({type(error).__name__}: {(str(error).splitlines() or [''])[0]})"
        fix = "Mend what the error names; if that is nothing of this environment, it is a mistake of ours: report it"
        look.findings.append(Finding(name, Grade.UNKNOWN, what, fix))
    return look


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
