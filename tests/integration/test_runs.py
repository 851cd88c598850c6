"""The main job, on both of Modal's backends and as local processes: a pipeline runs, both sides agree."""

from __future__ import annotations

import base64
import json
from typing import Any

import pytest
from zenml.utils import source_utils

from tests.integration.lab import PROJECT, Lab, Ran, eventually

PER_STEP = {"execution_mode": "per_step"}
PIPELINE = {"execution_mode": "pipeline"}


@pytest.fixture
def shapes(lab: Lab):  # type: ignore[no-untyped-def]
    import shapes

    return shapes


def all_of(steps: str, state: str) -> dict[str, str]:
    return dict.fromkeys(steps.split(), state)


def check_both(ran: Ran, zenml: str, prefect: str) -> None:
    """The run ended, on both sides, and everything of it."""
    assert (ran.status, ran.flow_run.state.name) == (zenml, prefect), ran.flow_run.state.message
    assert ran.run.end_time is not None
    assert ran.flow_run.name == ran.run.name
    assert {"zenml", f"zenml_run_id:{ran.run.id}"} <= set(ran.flow_run.tags)
    assert set(ran.flow_run.parameters) == {"snapshot_id", "run_id"}


class TestPerStep:
    @pytest.mark.at("modal-v2")  # test_gpu_examples.py has machines of V1 in this mode
    def test_a_diamond(self, lab: Lab, shapes, place: str) -> None:
        from zenml.client import Client

        ran = lab.run(shapes.diamond, lab.stack(place), settings=PER_STEP)
        assert ran.error is None
        check_both(ran, "completed", "Completed")
        assert flow_of(ran) == "diamond"
        assert ran.steps == all_of("one left right bottom", "completed")
        assert ran.states == all_of("one left right bottom", "Completed")
        assert ran.inputs == {"one": set(), "left": {"one"}, "right": {"one"}, "bottom": {"left", "right"}}
        assert "value 1" in lab.logs(ran.task_runs["one"])
        assert {f"zenml_stack:{ran.run.stack.name}", "zenml_user:default"} <= set(ran.flow_run.tags)
        assert str(ran.run.run_metadata["orchestrator_url"]) == f"{lab.prefect.url}/runs/flow-run/{ran.flow_run.id}"
        metadata = ran.run.steps["one"].run_metadata
        assert metadata["prefect_task_run_id"] == str(ran.task_runs["one"].id)
        if place == "modal":
            boxes = lab.sandboxes(ran)
            assert metadata["modal_sandbox_id"] in {box.id for box in boxes}
            assert str(metadata["modal_sandbox_url"]) == f"https://modal.com/id/{metadata['modal_sandbox_id']}"
            assert {box.app for box in boxes} == {"zenml-diamond"}
            expected = {
                "zenml_pipeline": "diamond",
                "zenml_run_id": str(ran.run.id),
                "zenml_server": str(Client().zen_store.get_store_info().id),
                "zenml_stack": ran.run.stack.name,
                "prefect_flow_run_id": str(ran.flow_run.id),
            }
            assert [{name: box.tags.get(name) for name in expected} for box in boxes] == [expected] * len(boxes)
            assert len(boxes) == 2, "one for each branch: the other steps take turns in them"
            assert {run_of_token(box) for box in boxes} == {str(ran.run.id)}
            assert {"AppCreate", "AppStop"}.isdisjoint(lab.modal.stats().calls), "a pipeline's app stays"

    @pytest.mark.at("process")
    def test_a_fan_out_never_exceeds_its_limit(self, lab: Lab, shapes, place: str) -> None:
        ran = lab.run(shapes.fan_out, lab.stack(place), settings={**PER_STEP, "max_parallelism": 4}, width=20)
        check_both(ran, "completed", "Completed")
        # Hosts that start at different speeds needn't ever all be busy at the same time.
        assert most_at_once(ran, [f"wide_{number}" for number in range(20)]) <= 4
        if place == "modal":
            assert len(lab.sandboxes(ran)) == 4

    @pytest.mark.at("process")
    def test_a_failure_spares_the_other_branch(self, lab: Lab, shapes, place: str) -> None:
        ran = lab.run(shapes.failing, lab.stack(place), settings=PER_STEP)
        check_both(ran, "failed", "Failed")
        assert "ValueError: as told" in str(ran.error)
        assert ran.steps == {"bad": "failed", "beside": "completed", "later": "completed"}
        expected = {"bad": "Failed", "below_bad": "NotRun", "beside": "Completed", "later": "Completed"}
        assert ran.states == expected
        assert "ValueError: as told" in ran.task_runs["bad"].state.message
        assert "upstream bad failed" in ran.task_runs["below_bad"].state.message

    @pytest.mark.at("process")
    def test_fail_fast_kills_the_siblings(self, lab: Lab, shapes, place: str) -> None:
        ran = lab.run(
            shapes.hanging_beside_failure, lab.stack(place), settings=PER_STEP, options={"execution_mode": "fail_fast"}
        )
        check_both(ran, "failed", "Failed")
        assert ran.steps == {"hung": "stopped", "bad": "failed"}
        assert ran.states == {"hung": "Cancelled", "bad": "Failed", "later": "NotRun"}
        assert len(ran.traces("hung", "begin")) == 1
        assert not lab.running(ran)

    @pytest.mark.slow
    def test_stop_on_failure_lets_the_siblings_end(self, lab: Lab, shapes, place: str) -> None:
        ran = lab.run(
            shapes.failing, lab.stack(place), settings=PER_STEP, options={"execution_mode": "stop_on_failure"}
        )
        check_both(ran, "failed", "Failed")
        assert ran.steps == {"bad": "failed", "beside": "completed"}
        assert ran.states == {"bad": "Failed", "below_bad": "NotRun", "beside": "Completed", "later": "NotRun"}

    @pytest.mark.slow  # test_ends.py has both
    @pytest.mark.parametrize("how", ["raise", "kill"])
    def test_a_retried_step(self, lab: Lab, shapes, place: str, how: str) -> None:
        ran = lab.run(shapes.retried, lab.stack(place), settings=PER_STEP, how=how, times=1, retries=2)
        check_both(ran, "completed", "Completed")
        assert ran.steps == {"fail_first": "completed", "after": "completed"}
        assert ran.task_runs["fail_first"].run_count == 2
        # Recorded behind the client's back, as the task runs are.
        states = eventually(lambda: states_of(ran.task_runs["fail_first"]), lambda found: "Completed" in found)
        shown = [name for name in states if name in ("Running", "AwaitingRetry", "Retrying", "Completed")]
        assert shown == ["Running", "AwaitingRetry", "Retrying", "Completed"], states
        assert len(ran.traces("fail_first")) == 2
        assert ran.run.steps["fail_first"].version == 2

    @pytest.mark.slow  # tests/host/test_pipeline.py has one, and test_ends.py infrastructure retries
    @pytest.mark.at("process")
    def test_a_step_that_uses_up_its_retries(self, lab: Lab, shapes, place: str) -> None:
        ran = lab.run(shapes.retried, lab.stack(place), settings=PER_STEP, how="raise", times=9, retries=1)
        check_both(ran, "failed", "Failed")
        assert ran.steps == {"fail_first": "failed"}
        assert len(ran.traces("fail_first")) == 2
        assert ran.states == {"fail_first": "Failed", "after": "NotRun"}

    @pytest.mark.at("modal-v2")
    def test_a_cached_step_starts_no_sandbox(self, lab: Lab, shapes, place: str) -> None:
        """Then the same in `pipeline` mode, whose steps have the same keys in ZenML's cache.

        The first run is told to keep its steps' output to itself.
        """
        value = 100 + ["modal", "process"].index(place)
        quiet = {**PER_STEP, "stream_logs": False}
        first = lab.run(shapes.cached, lab.stack(place), settings=quiet, value=value)
        # The same folder, since it is a parameter of the steps and so part of their cache key.
        again = lab.run(shapes.cached, lab.stack(place), settings=PER_STEP, value=value, into=first.folder)
        check_both(again, "completed", "Completed")
        assert again.steps == all_of("first second", "cached")
        assert again.states == all_of("first second", "Cached")
        assert len(first.traces("first")) == 1
        assert not lab.sandboxes(again)
        in_one = lab.run(shapes.cached, lab.stack(place), settings=PIPELINE, value=value, into=first.folder)
        check_both(in_one, "completed", "Completed")
        assert in_one.steps == all_of("first second", "cached")
        assert len(first.traces("first")) == 1
        # Two runs later, when whatever was sent has arrived.
        assert [lab.logs(first.task_runs[step], at_least=0) for step in ("first", "second")] == [[], []]

    @pytest.mark.slow
    @pytest.mark.parametrize("settings", [PER_STEP, PIPELINE], ids=["per_step", "pipeline"])
    def test_where_the_key_needs_the_user_s_code_the_sandbox_asks_the_cache(
        self, lab: Lab, settings: dict[str, str]
    ) -> None:
        stack = lab.stack("modal")
        source_utils.set_custom_source_root(str(PROJECT))
        import keyed

        keyed.ASKED.clear()
        value = 300 + [PER_STEP, PIPELINE].index(settings)
        pipeline = keyed.cached_by_its_own_key
        first = lab.run(pipeline, stack, settings=settings, value=value)
        again = lab.run(pipeline, stack, settings=settings, value=value, into=first.folder)
        check_both(again, "completed", "Completed")
        assert (first.steps, again.steps) == ({"own_key": "completed"}, {"own_key": "cached"})
        assert len(first.traces("own_key")) == 1
        assert len(lab.sandboxes(again)) == 1
        assert keyed.ASKED == [], "the user's function was called by the flow, which is this process"


class TestPipeline:
    @pytest.mark.slow  # test_callers.py has it on processes, and test_gpu_examples.py a pipeline on Modal
    def test_a_diamond(self, lab: Lab, shapes, place: str) -> None:
        ran = lab.run(shapes.diamond, lab.stack(place), settings=PIPELINE)
        assert ran.error is None
        check_both(ran, "completed", "Completed")
        assert ran.steps == all_of("one left right bottom", "completed")
        assert ran.states == {"diamond": "Completed"}
        assert "[one] value 1" in lab.logs(ran.task_runs["diamond"])
        if place == "modal":
            (box,) = lab.sandboxes(ran)
            assert run_of_token(box) == str(ran.run.id)

    @pytest.mark.slow
    def test_a_chain(self, lab: Lab, shapes, place: str) -> None:
        ran = lab.run(shapes.chain, lab.stack(place), settings=PIPELINE, length=4)
        check_both(ran, "completed", "Completed")
        assert ran.steps == all_of("one add_1 add_2 add_3", "completed")
        begins = [float(ran.traces(step, "begin")[0]["time"]) for step in ("one", "add_1", "add_2", "add_3")]
        assert begins == sorted(begins)

    @pytest.mark.slow
    def test_a_fan_out_never_exceeds_its_limit(self, lab: Lab, shapes, place: str) -> None:
        ran = lab.run(shapes.fan_out, lab.stack(place), settings={**PIPELINE, "max_parallelism": 2}, width=4)
        check_both(ran, "completed", "Completed")
        assert most_at_once(ran, [f"wide_{number}" for number in range(4)]) == 2

    @pytest.mark.slow  # in `per_step` mode it is above, and tests/host/test_pipeline.py has steps that fail
    def test_a_failure_spares_the_other_branch(self, lab: Lab, shapes, place: str) -> None:
        ran = lab.run(shapes.failing, lab.stack(place), settings=PIPELINE)
        check_both(ran, "failed", "Failed")
        assert "ValueError: as told" in str(ran.error)
        assert ran.steps == {"bad": "failed", "beside": "completed", "later": "completed"}
        assert "ValueError: as told" in ran.task_runs["failing"].state.message

    @pytest.mark.at("process")
    def test_fail_fast_kills_the_siblings(self, lab: Lab, shapes, place: str) -> None:
        ran = lab.run(
            shapes.hanging_beside_failure, lab.stack(place), settings=PIPELINE, options={"execution_mode": "fail_fast"}
        )
        check_both(ran, "failed", "Failed")
        assert ran.steps == {"hung": "stopped", "bad": "failed"}

    @pytest.mark.slow  # tests/host/test_pipeline.py has both
    @pytest.mark.parametrize("how", ["raise", "kill"])
    def test_a_retried_step(self, lab: Lab, shapes, place: str, how: str) -> None:
        ran = lab.run(shapes.retried, lab.stack(place), settings=PIPELINE, how=how, times=1, retries=2)
        check_both(ran, "completed", "Completed")
        assert ran.steps == {"fail_first": "completed", "after": "completed"}
        assert ran.task_runs["retried"].run_count == 1
        assert len(ran.traces("fail_first")) == 2
        assert ran.run.steps["fail_first"].version == 2

    @pytest.mark.slow  # a run in this mode whose steps are in the cache is above
    def test_a_cached_pipeline(self, lab: Lab, shapes, place: str) -> None:
        value = 200 + ["modal", "process"].index(place)
        first = lab.run(shapes.cached, lab.stack(place), settings=PIPELINE, value=value)
        again = lab.run(shapes.cached, lab.stack(place), settings=PIPELINE, value=value, into=first.folder)
        check_both(again, "completed", "Completed")
        assert again.steps == all_of("first second", "cached")
        assert len(first.traces("first")) == 1


def run_of_token(box: Any) -> str:
    """The run for which ZenML's server has minted the token that a sandbox was given: who has it can't be another's."""
    claims = box.environment["ZENML_STORE_API_TOKEN"].split(".")[1]
    return str(json.loads(base64.urlsafe_b64decode(claims + "=="))["pipeline_run_id"])


def flow_of(ran: Ran) -> str:
    """The name of the flow of a flow run."""
    from prefect.client.orchestration import get_client

    with get_client(sync_client=True) as client:
        return client.read_flow(ran.flow_run.flow_id).name


def states_of(task_run: Any) -> list[str]:
    """The names of the states that a task run has had, in their order."""
    from prefect.client.orchestration import get_client

    with get_client(sync_client=True) as client:
        found = client.read_task_run_states(task_run.id)
    return [str(state.name) for state in sorted(found, key=lambda state: state.timestamp)]


def most_at_once(ran: Ran, steps: list[str]) -> int:
    """How many of the steps' own codes ran at the same time, by their traces."""
    moments = [(line["time"], 1) for step in steps for line in ran.traces(step, "begin")]
    moments += [(line["time"], -1) for step in steps for line in ran.traces(step, "end")]
    running = most = 0
    for _, change in sorted(moments):
        running += change
        most = max(most, running)
    return most
