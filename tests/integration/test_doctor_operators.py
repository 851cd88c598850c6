"""`modal-prefect doctor` on stacks in which a step operator of ours stands beside our orchestrator."""

from __future__ import annotations

import base64
import json
import sqlite3
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import pytest

from bridge.doctor.finding import Grade
from tests.databases import PLACES
from tests.integration.beside import with_operators
from tests.integration.lab import IMAGE, Lab
from tests.integration.refusals import names_all
from tests.integration.test_doctor import look


def token_of(lab: Lab) -> dict[str, str]:
    return dict(zip(("token_id", "token_secret"), lab.modal.token, strict=True))


def test_each_component_s_account_and_environment_are_asked(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    """The orchestrator needs none; one operator brings a token, one relies on this machine's, which has none."""
    ours = lab.stack("process")
    name, operators = with_operators(
        ours, token_of(lab), {}, {**token_of(lab), "modal_environment": "nowhere"}, {"token_id": "{{gone.id}}"} | LOST
    )
    monkeypatch.delenv("MODAL_TOKEN_ID")
    monkeypatch.delenv("MODAL_TOKEN_SECRET")
    found = look(name)["modal"]
    assert [one.grade for one in found] == [Grade.PROBLEM, Grade.OK, Grade.OK, Grade.PROBLEM, Grade.PROBLEM]
    lost, local, fine, nobody, nowhere = found
    names_all(lost.what + lost.fix, f"step operator `{operators[3]}`", "{{gone.id}}", "zenml secret create")
    assert local.what.startswith(f"orchestrator `{ours}`: not used")
    assert fine.what.startswith(f"step operator `{operators[0]}`: the credentials are good")
    names_all(nobody.what + nobody.fix, f"step operator `{operators[1]}`", "modal setup")
    names_all(nowhere.what, f"step operator `{operators[2]}`", "nowhere")
    assert nowhere.fix == "modal environment create nowhere"


LOST = {"token_secret": "{{gone.secret}}"}


@pytest.mark.slow  # the one above has those that differ
def test_equal_ones_are_asked_once(lab: Lab) -> None:
    name, _ = with_operators(lab.stack("modal", **token_of(lab)), token_of(lab), token_of(lab))
    (found,) = look(name)["modal"]
    assert (found.grade, found.what) == (Grade.OK, "the credentials are good; the profile's environment is there")


def test_a_stack_fits_both(lab: Lab) -> None:
    """A step operator that is called from Modal needs a token of its own; the orchestrator alone is fine."""
    ours = lab.stack("modal")
    name, (operator,) = with_operators(ours, {})
    (problem,) = look(name)["stack"]
    assert problem.grade is Grade.PROBLEM
    names_all(problem.what, "token_id=None", f"step operator `{operator}`")
    name, operators = with_operators(ours, token_of(lab), {"runner": "process"})
    (fine,) = look(name)["stack"]
    assert fine.grade is Grade.OK
    names_all(
        fine.what,
        f"orchestrator `{ours}`, runner modal",
        f"step operator `{operators[0]}`, runner modal",
        f"step operator `{operators[1]}`, runner process",
    )


def test_what_is_wrong_for_both_is_told_of_both(lab: Lab) -> None:
    """The fix names the component."""
    from zenml.client import Client
    from zenml.enums import StackComponentType

    ours = lab.stack("modal")
    name, (operator,) = with_operators(ours, token_of(lab))
    Client().update_stack(name, component_updates={StackComponentType.ARTIFACT_STORE: ["default"]})
    first, second = look(name)["stack"]
    names_all(first.what + first.fix, "artifact_store=`default` is local", f"orchestrator `{ours}`")
    names_all(second.what + second.fix, "artifact_store=`default` is local", f"step operator `{operator}`")


def test_the_registry_is_asked_for_the_step_operator(lab: Lab) -> None:
    """That of the test stacks exists for the loopback Modal alone."""
    ours = lab.stack("process")
    name, _ = with_operators(ours, {"runner": "process"})
    assert [one.grade for one in look(name)["registry"]] == [Grade.OK]
    name, _ = with_operators(ours, token_of(lab))
    assert [one.grade for one in look(name)["registry"]] == [Grade.UNKNOWN]


def test_a_round_trip_through_each_place(lab: Lab) -> None:
    from bridge.doctor.patient import Patient
    from bridge.doctor.trip import round_trip

    ours, before = lab.stack("process"), lab.modal.stats().created
    name, (operator,) = with_operators(ours, token_of(lab))
    local, *remote = round_trip(Patient(name, IMAGE))
    assert lab.modal.stats().created == before + 1
    names_all(local.what, f"orchestrator `{ours}`: ", "this environment")
    assert remote, "the image lacks what a step operator is called with"
    for one in remote:
        names_all(one.what, f"step operator `{operator}`: ", IMAGE)


@contextmanager
def broken(folder: Path, component: str) -> Iterator[None]:
    """A configuration that this release refuses, as an older one may have left it: ZenML's server takes none such."""
    with closing(sqlite3.connect(folder / PLACES["zenml"], timeout=30)) as database:
        ((found,),) = database.execute("select configuration from stack_component where name = ?", [component])
        refused = base64.b64encode(json.dumps({**json.loads(base64.b64decode(found)), "timeout": 0}).encode())
        change = "update stack_component set configuration = ? where name = ?"
        with database:
            database.execute(change, [refused, component])
        try:
            yield
        finally:  # other tests have it in their stacks
            with database:
                database.execute(change, [found, component])


@pytest.mark.slow
def test_a_step_operator_whose_configuration_is_refused(lab: Lab, folder: Path) -> None:
    """Prefect and the orchestrator's Modal are looked at all the same."""
    ours = lab.stack("modal", prefect_api_url=f"{lab.prefect.url}/api", **token_of(lab))
    name, (operator,) = with_operators(ours, token_of(lab))
    with broken(folder, operator):
        found = look(name)
    (problem,) = found["stack"]
    assert problem.grade is Grade.PROBLEM
    names_all(problem.what, f"step operator `{operator}`", "timeout=0")
    skipped, fine = found["modal"]
    assert [skipped.grade, fine.grade] == [Grade.SKIPPED, Grade.OK]
    names_all(skipped.what, f"step operator `{operator}`")
    assert fine.what.startswith(f"orchestrator `{ours}`: the credentials are good")
    assert [one.grade for check in ("prefect api", "work pool", "clocks") for one in found[check]] == [Grade.OK] * 3
    assert found["deployments"]
    assert Grade.SKIPPED not in {one.grade for one in found["deployments"]}


@pytest.mark.slow
def test_an_orchestrator_whose_configuration_is_refused(lab: Lab, folder: Path) -> None:
    """The step operator's Modal is looked at all the same, and the clock of ZenML's server."""
    ours = lab.stack("process")
    name, (operator,) = with_operators(ours, token_of(lab))
    with broken(folder, ours):
        found = look(name)
    assert [one.grade for one in look(name)["stack"]] == [Grade.OK], "it is whole again"
    names_all(found["stack"][0].what, f"orchestrator `{ours}`", "timeout=0")
    names_all(found["prefect api"][0].what, "timeout=0")
    assert [one.what for one in found["modal"]][1].startswith(f"step operator `{operator}`: the credentials are good")
    assert [one.grade for one in found["clocks"]] == [Grade.OK]
