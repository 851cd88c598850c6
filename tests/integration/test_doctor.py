"""`modal-prefect doctor` against the real servers, and five common mistakes whose printed fix works."""

from __future__ import annotations

import contextlib
import io
import json
import os
import re
import shlex
import socket
import subprocess
from collections.abc import Iterator
from http.server import SimpleHTTPRequestHandler
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest
from click.testing import CliRunner

from bridge.cli import main
from bridge.doctor.finding import Finding, Grade
from tests.integration.conftest import forget_zenml
from tests.integration.lab import IMAGE, STACK_CODE, Lab
from tests.integration.refusals import message_of, names_all, nothing_begins
from tests.integration.workers import BIN, Worker, make_pool
from tests.serving import serving_at


def call(*arguments: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PYTHONPATH": str(STACK_CODE)}
    command = [BIN / "modal-prefect", *arguments]
    return subprocess.run(command, env=environment, check=False, capture_output=True, text=True)


def look(stack: str, **options: Any) -> dict[str, list[Finding]]:
    """The findings of each check."""
    from bridge.doctor.examination import examine
    from bridge.doctor.patient import Patient

    found: dict[str, list[Finding]] = {}
    for finding in examine(Patient(stack), **options):
        assert finding.fix or not finding.grade.is_bad, f"nothing to be done about it: {finding}"
        found.setdefault(finding.check, []).append(finding)
    return found


def bad(findings: dict[str, list[Finding]]) -> list[Finding]:
    return [finding for found in findings.values() for finding in found if finding.grade.is_bad]


def quoted(fix: str, starts: str, **blanks: str) -> list[str]:
    """The command that a fix quotes, as a shell would take it, once a reader has filled its ``blanks`` in."""
    command = next(part for part in fix.replace("`", "\0").split("\0") if starts in part)
    command = command[command.index(starts) :]
    for blank, value in blanks.items():
        assert f"<{blank}>" in command.replace(" ", "_"), command
        command = re.sub(rf"<{blank.replace('_', '[_ ]')}>", shlex.quote(value), command)
    assert not re.search(r"<[^>]*>", command), command
    return shlex.split(command)


def typed(command: list[str]) -> None:
    """Carry a command of ZenML out, by its own command line, in this process: a start of it takes seconds."""
    from zenml.cli.cli import cli

    assert command[0] == "zenml"
    with contextlib.redirect_stdout(io.StringIO()):
        cli.main(command[1:], standalone_mode=False)


@pytest.fixture
def closed_port() -> Iterator[int]:
    with socket.socket() as closed:  # bound, so that nobody else gets the port, and not listening
        closed.bind(("127.0.0.1", 0))
        yield closed.getsockname()[1]


class TestAnEnvironmentThatIsFine:
    def test_on_modal_with_a_round_trip(self, lab: Lab) -> None:
        """As a person calls it; the registry of the test stack exists for the loopback Modal alone."""
        stack, before = lab.stack("modal"), lab.modal.stats().created
        said = call("doctor", "--stack", stack, "--run", "--image", IMAGE, "--json")
        report = json.loads(said.stdout)
        grades = {one["check"]: one["grade"] for one in report["findings"]}
        assert {check for check, grade in grades.items() if grade != "ok"} == {"registry"}, said.stdout
        assert grades["registry"] == "unknown"
        assert (said.returncode, report["ok"]) == (1, False)
        (trip,) = [one for one in report["findings"] if one["check"] == "round trip"]
        names_all(trip["what"], IMAGE, "Python", "ZenML's server within reach")
        assert lab.modal.stats().created == before + 1
        assert not [
            box for box in lab.modal.sandboxes() if box.app == "zenml-modal-prefect-doctor" and box.status == "running"
        ]

    def test_the_exit_code(self, lab: Lab, caplog: pytest.LogCaptureFixture) -> None:
        said = CliRunner().invoke(main, ["doctor", "--stack", lab.stack("process")], catch_exceptions=False)
        assert (said.exit_code, said.stdout.splitlines()[-1]) == (0, "Nothing is wrong."), said.output
        assert "HTTP Request" not in caplog.text, "between the findings"

    @pytest.mark.slow  # the one above has all checks, tests/unit/test_doctor.py the words for people
    def test_as_processes_for_people(self, lab: Lab) -> None:
        lab.activate(lab.stack("process"))
        said = call("doctor", "--run")
        assert said.returncode == 0, said.stdout + said.stderr
        assert said.stdout.splitlines()[-1] == "Nothing is wrong."
        assert "✓ round trip" in said.stdout


class TestFiveCommonMistakes:
    def test_no_token(self, lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
        import inputs

        stack, token = lab.stack("modal"), lab.modal.token
        with monkeypatch.context() as without:
            without.delenv("MODAL_TOKEN_ID")
            without.delenv("MODAL_TOKEN_SECRET")
            (problem,) = look(stack)["modal"]
            with nothing_begins(lab):
                message = message_of(lab.run(inputs.given, stack, names=["train"]))
        assert problem.grade is Grade.PROBLEM
        for said in (problem.fix, message):
            names_all(said, "modal setup", "MODAL_TOKEN_ID and MODAL_TOKEN_SECRET", "token_id and token_secret")
        mended = lab.stack("modal", tags={"test": "no-token"})  # one of this test alone
        typed(quoted(problem.fix, "zenml orchestrator update", name=mended, id=token[0], secret=token[1]))
        with monkeypatch.context() as without:
            without.delenv("MODAL_TOKEN_ID")
            without.delenv("MODAL_TOKEN_SECRET")
            assert [one.grade for one in look(mended)["modal"]] == [Grade.OK]
        assert [one.grade for one in look(stack)["modal"]] == [Grade.OK], "the variables are back"

    def test_a_secret_that_is_not_there(self, lab: Lab) -> None:
        """It is no traceback: the field and the secret are named, and the other checks go on."""
        pair = {"token_id": "{{gone.token_id}}", "token_secret": "{{gone.token_secret}}"}
        findings = look(lab.stack("modal", **pair))
        (problem,) = findings["modal"]
        assert problem.grade is Grade.PROBLEM
        names_all(
            f"{problem.what} {problem.fix}",
            "token_id='{{gone.token_id}}'",
            "gone does not exist",
            "zenml secret create",
        )
        assert findings["prefect api"][0].grade is Grade.OK

    def test_a_local_artifact_store(self, lab: Lab) -> None:
        from zenml.client import Client
        from zenml.enums import StackComponentType

        client = Client()
        parts = {kind: components[0].id for kind, components in client.get_stack(lab.stack("modal")).components.items()}
        parts[StackComponentType.ARTIFACT_STORE] = client.get_stack_component(
            StackComponentType.ARTIFACT_STORE, "default"
        ).id
        name = f"local-{uuid4().hex[:6]}"
        client.create_stack(name, components=parts)
        (problem,) = look(name)["stack"]
        assert problem.grade is Grade.PROBLEM
        names_all(problem.what, "artifact_store=`default` is local")
        names_all(problem.fix, "Use a remote one", 'runner="process"')
        typed(quoted(problem.fix, "zenml stack update", artifact_store="shared"))
        assert [one.grade for one in look(name)["stack"]] == [Grade.OK]

        # The other way, on a component of this test alone.
        typed(["zenml", "stack", "update", name, "-a", "default"])
        ours = f"local-{uuid4().hex[:6]}"
        client.create_stack_component(ours, "modal-prefect", StackComponentType.ORCHESTRATOR, {"runner": "modal"})
        typed(["zenml", "stack", "update", name, "-o", ours])
        (problem,) = look(name)["stack"]
        typed(quoted(problem.fix, "zenml orchestrator update"))
        assert [one.grade for one in look(name)["stack"]] == [Grade.OK]

    def test_a_gpu_without_a_type(self, lab: Lab) -> None:
        import inputs
        from zenml.config import ResourceSettings

        from bridge.flow_run.open_run import load_snapshot, load_stack

        greedy = inputs.given.with_options(settings={"resources": ResourceSettings(gpu_count=1)})
        stack = lab.stack("modal")
        with nothing_begins(lab):
            message = message_of(lab.run(greedy, stack, names=["train"]))
        names_all(message, "gpu_count", "ModalPrefectOrchestratorSettings(gpu='A100')")
        said = message[message.index("ModalPrefectOrchestratorSettings(") :].partition(")")[0] + ")"
        mended = eval(said, {"ModalPrefectOrchestratorSettings": dict})
        ran = lab.run(greedy, stack, settings=mended, names=["train"])
        assert (ran.error, ran.status) == (None, "completed")
        snapshot = load_snapshot(ran.run.snapshot.id)
        assert str(load_stack(snapshot)[1].plan(snapshot).sandbox.resources.gpu) == "1 x A100"

    def test_no_work_pool_then_no_worker(self, lab: Lab, tmp_path: Path) -> None:
        pool = f"pool-{uuid4().hex[:6]}"
        stack = lab.stack("process", work_pool=pool)
        (problem,) = look(stack)["work pool"]
        names_all(problem.what, f"work_pool='{pool}'", "no such work pool")
        command = quoted(problem.fix, "prefect work-pool create")
        subprocess.run([BIN / command[0], *command[1:]], env=dict(os.environ), check=True, capture_output=True)

        (problem,) = look(stack)["work pool"]
        assert problem.grade is Grade.PROBLEM
        names_all(problem.what, "No worker is online")
        assert quoted(problem.fix, "modal-prefect worker") == ["modal-prefect", "worker", "--pool", pool]
        worker = Worker(pool, tmp_path / "worker", command=("modal-prefect", "worker")).start()  # that very command
        try:
            found = look(stack)
            assert not bad({"work pool": found["work pool"]})
            (note,) = [one for one in found["integrations"] if one.grade is Grade.NOTE]
            names_all(note.what, f"a worker of `{pool}`", "seen only from there")
            names_all(note.fix, "`modal-prefect doctor` where the worker runs")
            assert "HTTP Request" not in worker.log.read_text()  # it has asked for runs
        finally:
            worker.stop()

    def test_a_wrong_prefect_url(self, lab: Lab, closed_port: int) -> None:
        wrong = f"http://127.0.0.1:{closed_port}/api"
        stack = lab.stack("process", prefect_api_url=wrong)
        found = look(stack)
        (problem,) = found["prefect api"]
        assert problem.grade is Grade.UNKNOWN
        names_all(problem.what, wrong)
        names_all(problem.fix, "`prefect_api_url`", "the URL ends with /api")
        assert [one.grade for one in found["work pool"]] == [Grade.SKIPPED]
        # The orchestrators of these stacks are called as the stacks are.
        command = quoted(problem.fix, "zenml orchestrator update", name=stack, url=f"{lab.prefect.url}/api")
        typed(command)
        mended = look(stack)
        assert not bad(mended)
        names_all(mended["prefect api"][0].what, f"{lab.prefect.url}/api")


class TestZenMLsServerDoesNotAnswer:
    """What can be asked without it is asked: this machine's packages, its Prefect and its Modal account."""

    @pytest.fixture
    def away(self, lab: Lab, closed_port: int, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
        url = f"http://127.0.0.1:{closed_port}"
        with monkeypatch.context() as elsewhere:
            elsewhere.setenv("ZENML_STORE_URL", url)
            forget_zenml()
            yield url
        forget_zenml()

    def test_it_is_said_soon_and_the_rest_goes_on(
        self, lab: Lab, away: str, caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str]
    ) -> None:
        from bridge.doctor.examination import examine
        from bridge.doctor.patient import Patient

        found = {finding.check: finding for finding in examine(Patient("a-stack"), run=True)}
        problem = found["zenml server"]
        assert problem.grade is Grade.UNKNOWN
        assert problem.what.startswith(f"ZenML's server at {away} doesn't answer (")
        assert "HTTPConnectionPool" not in problem.what
        names_all(problem.fix, "`zenml login <url>`", "ZENML_STORE_URL")
        names_all(found["prefect api"].what, f"{lab.prefect.url}/api", "as this machine is configured")
        names_all(found["modal"].what, "the credentials are good", "as this machine is configured")
        assert {check for check, finding in found.items() if finding.grade is Grade.OK} == {
            *("system", "versions", "import name", "prefect api", "modal", "clocks")
        }
        skipped = {check for check, finding in found.items() if finding.grade is Grade.SKIPPED}
        assert skipped == {"stack", "integrations", "work pool", "deployments", "registry", "round trip"}
        retrying = caplog.text + "".join(capfd.readouterr())
        assert "Retrying" not in retrying, "soon: ZenML's own client tries for half a minute"

    def test_this_machine_has_no_account_and_no_prefect(self, away: str, monkeypatch: pytest.MonkeyPatch) -> None:
        """Neither is wrong: the stack's components may name others, or need none."""
        from prefect.settings import PREFECT_API_URL, temporary_settings

        monkeypatch.delenv("MODAL_TOKEN_ID")
        monkeypatch.delenv("MODAL_TOKEN_SECRET")
        with temporary_settings(restore_defaults={PREFECT_API_URL}):
            found = look("a-stack")
        assert [one.grade for one in found["modal"]] == [Grade.NOTE]
        names_all(found["modal"][0].what, "no Modal account", "whether the stack needs it is in ZenML")
        assert [one.grade for one in found["prefect api"]] == [Grade.SKIPPED]
        assert "clocks" not in found

    def test_something_that_is_no_server_of_zenml_answers(
        self, lab: Lab, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
    ) -> None:
        """Its page isn't quoted whole."""
        monkeypatch.chdir(tmp_path)
        with serving_at(SimpleHTTPRequestHandler) as address, monkeypatch.context() as elsewhere:
            elsewhere.setenv("ZENML_STORE_URL", f"http://{address}")
            forget_zenml()
            try:
                (problem,) = look("a-stack")["zenml server"]
            finally:
                elsewhere.undo()
                forget_zenml()
        assert problem.grade is Grade.UNKNOWN
        names_all(problem.what, f"http://{address}", "DOCTYPE")
        assert len(problem.what) < 300

    def test_something_else_answers_in_its_place(self) -> None:
        from bridge.doctor.zenml_side import no_answer

        class Gateway(SimpleHTTPRequestHandler):
            def do_GET(self) -> None:
                self.send_error(503)

        with serving_at(Gateway) as address:
            problem = no_answer(f"http://{address}")
        assert problem is not None
        names_all(problem.what, f"ZenML's server at http://{address} isn't there", "503")


class TestWhatElseIsWrong:
    def test_a_modal_environment_that_is_not_there(self, lab: Lab) -> None:
        (problem,) = look(lab.stack("modal", modal_environment="nowhere"))["modal"]
        assert problem.grade is Grade.PROBLEM
        assert problem.fix == "modal environment create nowhere"

    def test_an_image_that_is_not_there(self, lab: Lab) -> None:
        from bridge.doctor.patient import Patient
        from bridge.doctor.trip import round_trip

        (problem,) = round_trip(Patient(lab.stack("modal"), "registry.example.com/forgotten:1"))
        assert problem.grade is Grade.PROBLEM
        names_all(problem.what, "registry.example.com/forgotten:1")
        names_all(problem.fix, "--image")

    def test_before_the_first_build_the_stack_s_packages_are_nowhere_yet(self, lab: Lab) -> None:
        """Its images are to have Modal's SDK, and ZenML's own, which a sandbox has until then, hasn't got it."""
        from zenml.client import Client
        from zenml.enums import StackComponentType as Kind

        from bridge.doctor.patient import Patient
        from bridge.doctor.trip import _ZENMLS_IMAGE, round_trip

        name = f"unbuilt-{uuid4().hex[:6]}"
        Client().create_stack_component(name, "modal", Kind.STEP_OPERATOR, {})
        parts: dict[Any, Any] = {
            kind: components[0].id for kind, components in Client().get_stack(lab.stack("modal")).components.items()
        }
        Client().create_stack(name, components={**parts, Kind.STEP_OPERATOR: [name]})
        (found,) = round_trip(Patient(name))
        assert found.grade is Grade.OK, found
        names_all(found.what, _ZENMLS_IMAGE, "ZenML's server within reach")
        missing = [one.what for one in round_trip(Patient(name, IMAGE))]
        assert [one for one in missing if "modal is missing" in one], "a named image is asked for it"

    def test_a_deployment_of_an_older_release(self, lab: Lab) -> None:
        from prefect.client.orchestration import get_client

        from bridge import names

        pool, name = f"pool-{uuid4().hex[:6]}", f"older-{uuid4().hex[:6]}"
        make_pool(pool)
        stack = lab.stack("process", prefect_api_url=f"{lab.prefect.url}/api")
        with get_client(sync_client=True) as client:
            flow = client.create_flow_from_name(f"flow-{name}")
            deployment = client.create_deployment(
                flow,
                name,
                version="0.0.1",
                entrypoint=names.FLOW_ENTRYPOINT,
                work_pool_name=pool,
                tags=["zenml"],
                pull_steps=[],
            )
            try:
                found = [one for one in look(stack)["deployments"] if name in one.what]
            finally:
                client.delete_deployment(deployment)
        assert [one.grade for one in found] == [Grade.NOTE]
        names_all(found[0].what, f"flow-{name}/{name}", "0.0.1")
        names_all(found[0].fix, "Run the pipeline once")

    @pytest.mark.slow
    def test_a_component_whose_code_is_not_here(self, lab: Lab) -> None:
        """The other checks go on: what Prefect and Modal say doesn't depend on it."""
        without = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
        command = [BIN / "modal-prefect", "doctor", "--json", "--stack", lab.stack("modal")]
        said = subprocess.run(command, env=without, check=False, capture_output=True, text=True)
        found = {one["check"]: one for one in json.loads(said.stdout)["findings"]}
        assert (said.returncode, found["stack"]["grade"]) == (1, "problem")
        names_all(found["stack"]["what"], "shared_store")
        names_all(found["stack"]["fix"], "custom flavours")
        assert [found[check]["grade"] for check in ("integrations", "registry")] == ["skipped"] * 2
        assert [found[check]["grade"] for check in ("prefect api", "modal")] == ["ok"] * 2

    def test_a_stack_of_another_orchestrator_and_one_that_is_not_there(self, lab: Lab) -> None:
        lab.stack("process")
        (problem,) = look("default")["stack"]
        names_all(problem.fix, "zenml stack set", "zenml orchestrator flavor register bridge.flavors")
        (missing,) = look("nowhere")["stack"]
        names_all(missing.what, "--stack nowhere", "no such stack")
        assert missing.grade is Grade.PROBLEM
