"""Recognisable values in every secret place, runs that succeed and fail, and then a search of everything that is left.

A word that isn't secret is planted along with them: where that isn't found, the search would prove nothing.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

import httpx
import pytest

from tests.integration.forwarder import Forwarder
from tests.security.conftest import CALLER_IMAGE, IMAGE, Scene
from tests.security.marks import forms
from tests.security.places import CommandLines, Piece, database, files, found_in, requests
from tests.security.private_index import PACKAGE
from tests.security.project.secretive import WORKSPACE_SECRET, digest

REQUIREMENTS = ".zenml_user_requirements"
OF_ZENML = {"credentials.yaml"}
"""Where ZenML itself keeps the login of its user."""

OF_ZENMLS_SETTINGS = ("ZenML's database", "the artifact store", "the terminal", "the user's disk", "a machine's disk")
"""Where ZenML shows `environment=` of a step or pipeline, a plain setting: in its database, and at DEBUG in its own
logs, which it keeps in the artifact store. `secrets=` is for secrets."""
PLAIN = ("step_variable", "run_variable")
"""What is set so."""
SENT_TO_PREFECT = ("prefect_key", "prefect_password")
"""What Prefect's own server, at DEBUG, writes into its log: each frame of its event streams, and their headers."""


NO_BUILD: dict[str, object] = {"skip_build": True}


def asked(
    scene: Scene, pipeline: str, stack: str, docker: dict[str, object] = NO_BUILD, **settings: object
) -> dict[str, object]:
    return {
        "pipeline": pipeline,
        "docker": docker,
        "stack": stack,
        "image": IMAGE,
        "word": scene.word,
        "expected": digest(scene.marks.values["zenml_secret"]),
        "settings": {"tags": {"note": scene.word}, "secrets": [WORKSPACE_SECRET], **settings},
    }


def places(scene: Scene, lines: CommandLines) -> dict[str, list[Piece]]:
    """Everything that may be searched, by place."""
    return {
        "Prefect's database": list(database(scene.folder / "prefect" / "prefect.db")),
        "ZenML's database": list(database(next((scene.folder / "zenml-server").rglob("zenml.db")))),
        "the artifact store": list(files(scene.artifacts)),
        "the terminal": scene.terminal,
        "the servers' logs": [(server.name, server.log.read_bytes()) for server in (scene.prefect, scene.zenml)],
        "command lines": list(lines.pieces()),
        "requests to Modal": list(requests(scene.modal.requests())),
        "the user's disk": list(files(scene.home, leave_out=OF_ZENML)),
        "a machine's disk": list(files(scene.machine, scene.folder / "elsewhere", leave_out=OF_ZENML)),
        "images": list(files(scene.modal.folder / "images")),
    }


PLANTED = {
    "Prefect's database": {"log", "artifact", "task_run_state", "task_run"},
    "ZenML's database": {"step_run", "pipeline_snapshot"},
    "the artifact store": None,
    "the terminal": {"terminal"},
    "the servers' logs": {"prefect server", "zenml server"},
    "command lines": {"argv"},
    "requests to Modal": {"SandboxCreateV2", "ImageGetOrCreate", "TaskExecStart"},
    "the user's disk": None,
    "images": None,
}
"""Where the word has to be found, at the least; None for anywhere in it."""
ANYWHERE = dict.fromkeys(PLANTED)
"""The same places, whatever in each of them has the word."""
PLANTED_WITH_A_WORKER = {
    **PLANTED,
    "Prefect's database": {"log", "artifact", "task_run_state", "task_run", "flow_run"},
    "a machine's disk": None,
}
"""The same where a worker carries out runs: their job variables are in Prefect's database."""
PLANTED_HERE = {
    place: wheres
    for place, wheres in PLANTED.items()
    if place not in ("the artifact store", "requests to Modal", "images")
}
"""The same where Modal has no part in it, and artifacts are on the user's disk."""


def run_tokens(scene: Scene, environments: Iterable[Mapping[str, str]], runs: int) -> None:
    """Add the tokens that were minted for so many runs, or more: they are in the sandboxes' environments."""
    found = {
        value
        for environment in environments
        for name, value in environment.items()
        if name.startswith("ZENML_STORE_") and ("TOKEN" in name or "KEY" in name)
    }
    assert len(found) >= runs, "not every run had a sandbox with a token"
    scene.marks.values |= {f"zenml_run_token_{digest(value)[:8]}": value for value in found}


def of_modal(scene: Scene) -> list[Mapping[str, str]]:
    """The environments of Modal's sandboxes."""
    return [box.environment for box in scene.modal.sandboxes()]


def plant(scene: Scene) -> None:
    """Put the word where no run brings it."""
    (scene.home / "work" / "left.txt").write_text(scene.word)
    for server in (scene.prefect, scene.zenml):
        httpx.get(f"{server.url}/{scene.word}", timeout=60)  # which it logs, whatever it answers
    folder = scene.modal.folder / "images" / "left"
    folder.mkdir(exist_ok=True)
    (folder / "left.txt").write_text(scene.word)


def search(scene: Scene, lines: CommandLines, planted: Mapping[str, set[str] | None] = PLANTED) -> None:
    """Assert that the word is found in every place, and nothing that is secret anywhere."""
    everything = places(scene, lines)
    word = dict.fromkeys(forms(scene.word), scene.word)
    for place, wheres in planted.items():
        found = {where for _, where in found_in(everything[place], word)}
        assert found >= (wheres or set()), (place, found)
        assert found, place
    assert leaks(scene, everything) == {}


def leaks(scene: Scene, everything: dict[str, list[Piece]]) -> dict[tuple[str, str], str]:
    """What secret value was found in which place: (place, value's name) -> where in it."""
    needles = scene.marks.needles()
    found = {(place, name): where for place, pieces in everything.items() for name, where in found_in(pieces, needles)}
    for place in OF_ZENMLS_SETTINGS:
        for name in PLAIN:
            found.pop((place, name), None)
    for name in SENT_TO_PREFECT:
        if found.get(("the servers' logs", name)) == "prefect server":
            del found["the servers' logs", name]
    return found


def repeated(scene: Scene, words: str) -> dict[str, set[str]]:
    """In which tables the words of an error stand, by server: there its text is searched for secrets, too."""
    needle = {words.encode(): words}
    databases = {"Prefect": scene.folder / "prefect" / "prefect.db"}
    databases["ZenML"] = next((scene.folder / "zenml-server").rglob("zenml.db"))
    return {name: {where for _, where in found_in(database(path), needle)} for name, path in databases.items()}


@pytest.fixture
def lines(scene: Scene) -> Iterator[CommandLines]:
    with CommandLines() as lines:
        argv = [sys.executable, "-c", "import sys; sys.stdin.read()", scene.word]
        with subprocess.Popen(argv, stdin=subprocess.PIPE) as planted:
            yield lines
            assert planted.stdin is not None
            planted.stdin.close()


@pytest.mark.timeout(600)
def test_nothing_secret_is_left_after_runs(scene: Scene, lines: CommandLines) -> None:
    """Steps in shared and in own sandboxes, a whole pipeline in one; some succeed, one raises, one dies."""
    told = scene.user(
        {
            "runs": [
                asked(scene, "per_step", "right", execution_mode="per_step"),
                asked(scene, "at_once", "right", execution_mode="pipeline"),
            ]
        }
    )
    assert all("RunFailed" in part for part in told.split("=== ")[1:]), told[-3000:]
    assert len(scene.modal.sandboxes()) >= 4
    run_tokens(scene, of_modal(scene), runs=2)
    plant(scene)
    search(scene, lines)


@pytest.mark.slow  # a static pipeline's own sandboxes are searched above
@pytest.mark.timeout(600)
def test_nothing_secret_is_left_by_a_dynamic_pipeline(scene: Scene, lines: CommandLines) -> None:
    """The sandbox of its function, one that a step operator makes from there, and an isolated step's, which raises."""
    before = len(scene.modal.sandboxes())
    told = scene.user({"runs": [{**asked(scene, "dynamic", "operates"), "image": CALLER_IMAGE}]})
    assert "RunFailed" in told, told[-3000:]
    boxes = scene.modal.sandboxes()[before:]
    assert len(boxes) == 3
    assert len([box for box in boxes if "zenml_step_operator" in box.tags]) == 1
    run_tokens(scene, (box.environment for box in boxes), runs=1)
    plant(scene)
    search(scene, lines, ANYWHERE)


@pytest.mark.slow  # two minutes: what a run leaves behind without a worker is searched above
@pytest.mark.timeout(1200)
def test_nothing_secret_is_left_by_a_worker(scene: Scene, lines: CommandLines) -> None:
    """Runs in a deployment of Prefect's, sent and carried out by who logs in to ZenML with a key; then wrong tokens.

    The worker's own Modal token is wrong, so what fails of it fails in the flow: in Prefect's states and ZenML's
    exceptions.
    """
    values = scene.marks.values
    wrong = {"MODAL_TOKEN_ID": values["modal_token_id"], "MODAL_TOKEN_SECRET": values["wrong_modal"]}
    job: dict[str, object] = {"job_variables": {"env": {"FROM_JOB": scene.word}}}
    with scene.worker(**wrong, PREFECT_API_KEY=values["prefect_key"]):
        told = scene.user_with_key(
            {
                "runs": [
                    asked(scene, "per_step", "pooled", execution_mode="per_step", **job),
                    asked(scene, "one_step", "pooled_of_the_machine"),
                    asked(scene, "one_step", "pooled_wrong_registry"),
                ]
            }
        )
    parts = told.split("=== ")[1:]
    assert all("RunFailed" in part for part in parts), told[-3000:]
    assert "Token ID not found" in parts[1], parts[1][-3000:]
    assert "authentication required" in parts[2], parts[2][-3000:]
    for words in ("Token ID not found", "authentication required"):
        found = repeated(scene, words)
        assert {"flow_run_state", "log"} <= found["Prefect"], found
        assert "pipeline_run" in found["ZenML"], found
    run_tokens(scene, of_modal(scene), runs=1)
    plant(scene)
    search(scene, lines, PLANTED_WITH_A_WORKER)


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_nothing_secret_is_left_by_local_sandboxes(scene: Scene, lines: CommandLines) -> None:
    """Their environments are this machine's processes': nothing of them is written down."""
    told = scene.user(
        {
            "runs": [
                asked(scene, "per_step", "here", execution_mode="per_step"),
                asked(scene, "per_step", "here", execution_mode="per_step", warm=False),
                asked(scene, "at_once", "here", execution_mode="pipeline"),
            ]
        }
    )
    assert all("RunFailed" in part for part in told.split("=== ")[1:]), told[-3000:]
    ours = (given for given in lines.environments() if given.get("ZENML_STORE_URL") == scene.zenml.url)
    run_tokens(scene, ours, runs=3)
    plant(scene)
    search(scene, lines, PLANTED_HERE)


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_nothing_secret_is_left_by_images_that_modal_builds(scene: Scene, lines: CommandLines) -> None:
    """A package of a private index, whose password only a Modal secret has: the right one, then a wrong one.

    The third is a dynamic pipeline, whose variable makes it other layers.
    """
    docker = {"requirements": [f"{PACKAGE}==1.0"], "install_stack_requirements": False}
    runs = [asked(scene, "one_step", stack, docker) for stack in ("builds", "builds_in_vain")]
    runs.append(asked(scene, "isolated_step", "builds", {**docker, "environment": {"OTHER": "1"}}))
    told = scene.user({"runs": runs})
    right, wrong, dynamic = told.split("=== ")[1:]
    assert "Traceback" not in right + dynamic, (right + dynamic)[-3000:]
    assert scene.index.served > 0
    installs = f"-r {REQUIREMENTS}"
    layers = [image for image in scene.modal.images() if any(command.endswith(installs) for command in image.commands)]
    assert [image.failure is None for image in layers] == [True, False, True]
    assert "exit code" in wrong, wrong[-3000:]
    assert f"{PACKAGE}==1.0" in wrong
    assert scene.index.refused > 0
    run_tokens(scene, of_modal(scene), runs=2)
    plant(scene)
    search(scene, lines, ANYWHERE)


@pytest.mark.timeout(600)
@pytest.mark.slow  # the right ones are looked for in the same places
def test_wrong_secrets_are_not_repeated(scene: Scene, lines: CommandLines) -> None:
    """What makes a run fail is said without being shown, with all the causes of the error."""
    stacks = {
        "wrong_modal": "Token ID not found",
        "broken_modal": "token_secret",
        "odd_modal": "token_secret",
        "wrong_registry_stack": "authentication required",
        "wrong_prefect": "refuses this client",
        "broken_prefect": "prefect_api_key",
        "odd_prefect": "prefect_api_key",
    }
    right = {"authorization": f"Bearer {scene.marks.values['prefect_key']}"}
    with Forwarder(scene.prefect.url, required=right) as forwarder:
        secrets = {"elsewhere": {"url": f"{forwarder.url}/api"}}
        registered = {"artifacts": "", "secrets": secrets, "registries": [], "stacks": {}}
        runs = [asked(scene, "one_step", stack) for stack in stacks]
        examined = [stack for stack in stacks if stack != "wrong_registry_stack"]  # which nobody asks beforehand
        told, _, doctor = scene.user({"register": registered, "runs": runs, "examined": examined}).partition("=== doc")
    assert "CredentialsNotValid" in scene.user_with_wrong_key({"runs": [asked(scene, "one_step", "right")]})
    assert doctor.count("tor on ") == len(examined)
    parts = told.split("=== one_step on ")[1:]
    assert [part.split()[0] for part in parts] == list(stacks)
    for part, words in zip(parts, stacks.values(), strict=True):
        assert words in part, part[-3000:]
    # The registry is asked by the flow; the others are refused before there is one.
    found = repeated(scene, "authentication required")
    assert {"flow_run_state", "log"} <= found["Prefect"], found
    assert "pipeline_run" in found["ZenML"], found
    plant(scene)
    search(scene, lines, ANYWHERE)


@pytest.mark.timeout(600)
@pytest.mark.slow
def test_what_a_step_can_get_by_asking(scene: Scene, lines: CommandLines, tmp_path: Path) -> None:
    """It is given no token but its run's, and with that ZenML tells it what it tells the run's user."""
    values = scene.marks.values
    tried = {
        "static": ("one_asks", "right"),
        "dynamic": ("function_asks", "right"),
        "with an operator": ("function_asks", "operates"),
        "Modal's own configuration": ("one_asks", "of_the_machine"),
    }
    runs = [{**asked(scene, *which), "expected": str(tmp_path / name)} for name, which in tried.items()]
    configured = {"MODAL_TOKEN_ID": values["modal_token_id"], "MODAL_TOKEN_SECRET": values["modal_token_secret"]}
    told = scene.user({"runs": runs}, **configured, PREFECT_API_KEY=values["prefect_key"])
    assert "Traceback" not in told, told[-3000:]
    given = {"run_variable", "workspace_secret"}
    ours = {digest(values[name]) for name in values if name not in given and not name.startswith("zenml_run_token")}
    modal = digest(values["modal_token_secret"])
    found = {name: json.loads((tmp_path / name).read_text()) for name in tried}
    for name, what in found.items():
        assert not ours & set(what["variables"]), name
        assert what["secrets"]["modal.secret"] == modal, name
        assert what["secrets"]["prefect.key"] == digest(values["prefect_key"]), name
        assert what["secrets"]["registry.password"] == digest(values["registry_password"]), name
        assert what["secrets"]["marked_secret.IN_SECRET"] == digest(values["zenml_secret"]), name
    tokens = {name: (what["orchestrator"], what["operators"]) for name, what in found.items()}
    assert tokens == {
        "static": (modal, []),
        "dynamic": (modal, []),
        "with an operator": (modal, [modal]),
        "Modal's own configuration": (None, []),
    }
    run_tokens(scene, of_modal(scene), runs=len(tried))
    plant(scene)
    search(scene, lines, ANYWHERE)
