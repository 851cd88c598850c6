"""Each bad input is refused with field, value and fix, before there is a plan."""

from __future__ import annotations

import pytest

from bridge.errors import InvalidSettings
from bridge.planning.layers import ComponentSettings
from bridge.planning.translate import translate
from bridge.settings import ModalPrefectOrchestratorConfig, ModalPrefectOrchestratorSettings
from tests.unit import bad_inputs
from tests.unit.bad_inputs import BadInput
from tests.unit.snapshots import NAME, StepInput, snapshot


def run(case: BadInput) -> None:
    """What happens from the registration of the component to the plan, in ZenML's order."""
    component = ModalPrefectOrchestratorConfig(**case.component)
    resolved = ModalPrefectOrchestratorSettings(**case.settings).model_dump(exclude_unset=True)
    for step in case.steps.values():
        ModalPrefectOrchestratorSettings(**step.settings)
    translate(
        snapshot(
            case.steps,
            settings=resolved,
            resources=case.resources,
            retry=case.retry,
            dynamic=case.dynamic,
            images=case.images,
        ),
        component=ComponentSettings.of(component),
        component_name=NAME,
        stack_name="stack",
    )


@pytest.mark.parametrize("case", bad_inputs.ALL, ids=lambda case: case.id)
def test_is_refused_by_name(case: BadInput) -> None:
    with pytest.raises(InvalidSettings) as caught:
        run(case)
    message = str(caught.value)
    for fragment in case.says:
        assert fragment in message
    assert bad_inputs.TOKEN not in message
    assert "\n" not in message


@pytest.mark.parametrize("case", bad_inputs.SETTINGS, ids=lambda case: case.id)
def test_translation_refuses_what_ZenML_let_through(case: BadInput) -> None:
    """A snapshot may hold settings that an older release took."""
    for on_pipeline in (True, False):
        name = next(iter(case.settings))
        run_level = name in ("execution_mode", "max_parallelism", "synchronous", "work_queue", "job_variables", "warm")
        if not on_pipeline and (run_level or name.startswith(("orphan", "create", "warm"))):
            continue
        if name not in ModalPrefectOrchestratorSettings.model_fields:
            continue
        stored = snapshot(
            {"train": StepInput(settings={} if on_pipeline else case.settings)},
            settings={"execution_mode": "per_step", **(case.settings if on_pipeline else {})},
        )
        with pytest.raises(InvalidSettings) as caught:
            translate(stored, component=ComponentSettings({}), component_name=NAME, stack_name="stack")
        message = str(caught.value)
        for fragment in (*case.says, "of the pipeline" if on_pipeline else "of step train"):
            assert fragment in message


def test_there_are_enough_of_them() -> None:
    assert len({case.id for case in bad_inputs.ALL}) == len(bad_inputs.ALL) >= 40
