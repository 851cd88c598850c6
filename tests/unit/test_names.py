"""Names that leave the code: always such as Modal and Prefect take, and different names never meet."""

from __future__ import annotations

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from modal._utils.name_utils import check_tag_dict, is_valid_object_name
from prefect import flow, task
from prefect.types import BANNED_CHARACTERS, Name
from pydantic import TypeAdapter

from bridge import flavors, names
from bridge.flow import zenml_pipeline

ANYTHING = st.one_of(
    st.text(),
    st.text(alphabet="ab-_./%&<> é\n", max_size=80),
    st.text(alphabet="abc", min_size=55, max_size=250),
    st.builds(names.modal_name, st.text()),
    st.builds(names.prefect_name, st.text()),
    st.from_regex(r"ap-[A-Za-z0-9]{22}", fullmatch=True),
)
SHAPES = [names.modal_name, names.modal_tag, names.prefect_name, names.app_name]


@given(ANYTHING)
@example("")
@example("ap-" + "a" * 22)
@example("é")
@example("-")
@example("a\n")
def test_modal_takes_every_name(name: str) -> None:
    for slug in (names.modal_name(name), names.app_name(name), names.sandbox_name("run", name, 1, 1)):
        assert is_valid_object_name(slug), slug
    check_tag_dict({names.TAG_PIPELINE: names.modal_tag(name)})


@given(ANYTHING)
@example("")
@example("&" * 300)
def test_prefect_takes_every_name(name: str) -> None:
    slug = names.prefect_name(name)
    assert TypeAdapter(Name).validate_python(slug) == slug
    assert not set(BANNED_CHARACTERS).intersection(slug)
    assert 0 < len(slug) <= names.PREFECT_NAME_LENGTH


def test_prefects_own_check_agrees() -> None:
    name = names.prefect_name("50% of <a> & b/c")

    @flow(name=name)
    def some_flow() -> None: ...

    @task(name=name)
    def some_task() -> None: ...

    assert (some_flow.name, some_task.name) == (name, name)


@pytest.mark.parametrize("shape", SHAPES)
@given(one=ANYTHING, other=ANYTHING)
@example(one="a b", other="a-b")
@example(one="a/b", other="a%b")
@example(one="x" * 300, other="x" * 301)
@example(one="a b", other=names.modal_name("a b"))
@example(one="a/b", other=names.prefect_name("a/b"))
@example(one="zenml-" + "x" * 80, other="x" * 80)
@example(one="ap-" + "a" * 22, other="ap-" + "a" * 22 + "/")
@example(one="ap-" + "a" * 22, other=names.modal_name("ap-" + "a" * 22))
def test_different_names_never_meet(shape: object, one: str, other: str) -> None:
    assert callable(shape)
    assert (shape(one) == shape(other)) == (one == other)


@pytest.mark.parametrize("name", ["training", "train-model_2.5", "a" * 64, "run-1764462629", "try-0123abcdef"])
def test_a_good_name_stays(name: str) -> None:
    assert names.modal_name(name) == name
    assert names.prefect_name(name) == name


def test_what_Prefect_takes_stays_for_Prefect() -> None:
    assert names.prefect_name("größe und farbe: 100") == "größe und farbe: 100"


def test_a_slug_is_stable_and_readable() -> None:
    """Apps are found again by it: a change here loses sandboxes of runs that are under way."""
    assert names.modal_name("train model/ä") == "train-model--2fd3ade05f"
    assert names.app_name("training") == "zenml-training"


@given(st.lists(st.tuples(ANYTHING, st.one_of(st.none(), ANYTHING), st.integers(1, 9), st.integers(1, 9)), unique=True))
def test_each_attempt_has_a_sandbox_of_its_own(attempts: list[tuple[str, str | None, int, int]]) -> None:
    assert len({names.sandbox_name(*attempt) for attempt in attempts}) == len(attempts)


def test_sandbox_of_the_pipeline_is_none_of_a_step() -> None:
    assert names.sandbox_name("run", None, 1, 1) != names.sandbox_name("run", "", 1, 1)
    assert names.sandbox_name("run", "a", 1, 1) == names.sandbox_name("run", "a", 1, 1)


def test_flow_run_tags() -> None:
    assert names.flow_run_tags("r", "p", "s", "u") == [
        *("zenml", "zenml_run_id:r", "zenml_pipeline:p", "zenml_stack:s", "zenml_user:u")
    ]
    assert names.flow_run_tags("r", "p", "s", None)[-1] == "zenml_stack:s"


def test_zenml_finds_the_flavours_where_its_database_has_them() -> None:
    sources = (names.ORCHESTRATOR_FLAVOR_SOURCE, names.STEP_OPERATOR_FLAVOR_SOURCE)
    made = (flavors.ModalPrefectOrchestratorFlavor, flavors.ModalPrefectStepOperatorFlavor)
    assert sources == tuple(f"{flavor.__module__}.{flavor.__qualname__}" for flavor in made)
    assert sources == ("bridge.flavors.ModalPrefectOrchestratorFlavor", "bridge.flavors.ModalPrefectStepOperatorFlavor")


def test_contracts_strings() -> None:
    """What stacks, dashboards and scripts rely on (CONTRACT.md)."""
    assert (*("modal-prefect", "zenml-modal-prefect", "modal-prefect"),) == (
        names.FLAVOR,
        names.DISTRIBUTION,
        names.DEPLOYMENT,
    )
    assert [*("modal_sandbox_id", "modal_sandbox_url", "prefect_task_run_id")] == [
        names.METADATA_SANDBOX_ID,
        names.METADATA_SANDBOX_URL,
        names.METADATA_TASK_RUN_ID,
    ]
    tags = {names.TAG_RUN_ID, names.TAG_PIPELINE, names.TAG_SERVER, names.TAG_STACK, names.TAG_FLOW_RUN_ID}
    assert tags == {"zenml_run_id", "zenml_pipeline", "zenml_server", "zenml_stack", "prefect_flow_run_id"}
    assert names.TAG_STEP == "zenml_step"
    parameters = (names.PARAMETER_SNAPSHOT_ID, names.PARAMETER_RUN_ID)
    assert parameters == ("snapshot_id", "run_id") == tuple(zenml_pipeline.parameters.properties)
    assert (names.STATE_CACHED, names.STATE_SKIPPED, names.STATE_NOT_RUN) == ("Cached", "Skipped", "NotRun")
