"""`modal-prefect doctor` on what a component names on Modal: secrets and volumes."""

from __future__ import annotations

import json
import subprocess

import pytest

from bridge.doctor.finding import Grade
from tests.integration.beside import with_operators
from tests.integration.lab import Lab
from tests.integration.refusals import names_all
from tests.integration.test_doctor import look
from tests.integration.workers import BIN


def apps() -> set[str]:
    """Those in the Modal environment, as Modal's own command lists them."""
    command = [BIN / "modal", "app", "list", "--json", "--env", "main"]
    return {json.dumps(app) for app in json.loads(subprocess.check_output(command, text=True))}


MISSING = {"secrets": ["hf", "no-such-secret"], "volumes": {"/models": "models:ro", "/gone": "no-such-volume:ro"}}


def test_secrets_and_volumes_that_are_not_there(lab: Lab) -> None:
    """Those that are there aren't mentioned, and nothing is made on Modal."""
    before = apps()
    fine, secret, volume = look(lab.stack("modal", modal_environment="main", **MISSING))["modal"]
    assert [fine.grade, secret.grade, volume.grade] == [Grade.OK, Grade.PROBLEM, Grade.PROBLEM]
    names_all(secret.what, "Modal secret 'no-such-secret'")
    assert secret.fix.startswith("modal secret create --env main no-such-secret ")
    names_all(volume.what, "Modal volume 'no-such-volume'")
    assert volume.fix.startswith("modal volume create --env main no-such-volume,")
    assert apps() == before


def test_those_of_a_step_operator_beside_the_orchestrator(lab: Lab) -> None:
    token = dict(zip(("token_id", "token_secret"), lab.modal.token, strict=True))
    name, (operator,) = with_operators(lab.stack("process"), {**token, "secrets": ["no-such-secret"]})
    *_, problem = look(name)["modal"]
    assert problem.grade is Grade.PROBLEM
    names_all(problem.what, f"step operator `{operator}`", "no-such-secret")


def test_a_worker_may_have_them_in_its_own_account(lab: Lab) -> None:
    _, note = look(lab.stack("modal", work_pool="somewhere", secrets=["no-such-secret"]))["modal"]
    assert note.grade is Grade.NOTE


@pytest.mark.slow
def test_secrets_of_builds(lab: Lab) -> None:
    """Where Modal builds the images: by the stack's having no registry, or by the component's wish."""
    from zenml.client import Client
    from zenml.enums import StackComponentType

    given = {"build_secrets": ["hf", "no-such-index"]}
    (fine,) = look(stack := lab.stack("modal", **given))["modal"]
    assert fine.grade is Grade.OK, "ZenML builds them, which doesn't ask for Modal's secrets"
    mine = {"secrets": ["no-such-index"], "modal_environment": "main"}
    _, problem = look(lab.stack("modal", image_source="modal", **given, **mine))["modal"]
    assert problem.grade is Grade.PROBLEM
    names_all(problem.what, "Modal secret 'no-such-index'")
    assert problem.fix.startswith("modal secret create --env main no-such-index ")
    assert problem.fix.endswith("or mend `secrets` and `build_secrets`")
    parts = {kind: found[0].id for kind, found in Client().get_stack(stack).components.items()}
    del parts[StackComponentType.CONTAINER_REGISTRY]
    Client().create_stack(bare := f"bare-{stack}", components=parts)
    _, problem = look(bare)["modal"]
    assert problem.fix.endswith("or mend `build_secrets`")
