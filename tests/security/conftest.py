"""Servers of their own for the search: what other tests leave in theirs would be searched as well."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests import servers
from tests.integration.lab import STACK_CODE
from tests.loopback import LoopbackImage, LoopbackModal
from tests.security.marks import Marks, mark
from tests.security.private_index import PrivateIndex

WORD = "planted"
IMAGE = f"registry.example.com/{WORD}:1"
USER = "somebody"
USER_SECONDS = 400


@dataclass
class Scene:
    """Everything that takes part, and the values that nobody may find."""

    folder: Path
    marks: Marks
    prefect: servers.Server
    zenml: servers.Server
    modal: LoopbackModal
    index: PrivateIndex
    word: str
    terminal: list[tuple[str, bytes]] = field(default_factory=list)

    @property
    def home(self) -> Path:
        """The user's home folder, with all that their programs leave in it."""
        return self.folder / "home"

    @property
    def artifacts(self) -> Path:
        """What the artifact store keeps."""
        return self.folder / "artifacts"

    def environment(self) -> dict[str, str]:
        """The user's environment: logged in to ZenML by password, and with a secret that is none of our business."""
        for name in ("tmp", "work"):
            (self.home / name).mkdir(parents=True, exist_ok=True)
        return {
            **servers.clean_environment(),
            **servers.zenml_client_environment(self.home / "zenml", self.zenml),
            "HOME": str(self.home),
            "TMPDIR": str(self.home / "tmp"),
            "ZENML_STORE_USERNAME": USER,
            "ZENML_STORE_PASSWORD": self.marks.values["zenml_password"],
            "ZENML_LOGGING_VERBOSITY": "DEBUG",
            "PREFECT_API_URL": f"{self.prefect.url}/api",
            "PREFECT_HOME": str(self.home / "prefect"),
            "PREFECT_SERVER_ALLOW_EPHEMERAL_MODE": "false",
            "PREFECT_LOGGING_LEVEL": "DEBUG",
            "DO_NOT_TRACK": "1",
            "MODAL_SERVER_URL": self.modal.url,
            "MODAL_DISABLE_API_PROXY": "1",
            "MODAL_CONFIG_PATH": str(self.home / "modal.toml"),
            "MODAL_LOGLEVEL": "DEBUG",
            "AWS_SECRET_ACCESS_KEY": self.marks.values["shell_variable"],
            "MARK_STEP_VARIABLE": self.marks.values["step_variable"],
            "PYTHONPATH": f"{STACK_CODE}{os.pathsep}{servers.ROOT}",
        }

    def user(self, asked: Mapping[str, object], **variables: str) -> str:
        """Run a user's process to its end and return what it printed."""
        ran = subprocess.run(
            [sys.executable, "-m", "tests.security.user"],
            input=json.dumps(asked),
            env={**self.environment(), **variables},
            cwd=self.home / "work",
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=USER_SECONDS,
            check=False,
        )
        self.terminal.append(("terminal", ran.stdout.encode()))
        assert ran.returncode == 0, ran.stdout[-3000:]
        return ran.stdout


def create_user(zenml: servers.Server, password: str) -> None:
    """Make an administrator with that password, as the one that is there already."""
    with httpx.Client(base_url=f"{zenml.url}/api/v1", timeout=60) as client:
        token = client.post("/login", data={"username": "default", "password": ""}).raise_for_status().json()
        client.headers["Authorization"] = f"Bearer {token['access_token']}"
        user = {"name": USER, "password": password, "active": True, "is_admin": True}
        client.post("/users", json=user).raise_for_status()


@pytest.fixture(scope="module")
def scene(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Scene]:
    folder = tmp_path_factory.mktemp("security")
    marks = Marks()
    token = (marks.new("modal_token_id", "ak-"), marks.new("modal_token_secret", "as-"))
    credentials = ("robot", marks.new("registry_password"))
    for name in ("zenml_password", "zenml_secret", "prefect_key", "shell_variable", "step_variable"):
        marks.new(name)
    zenml = servers.zenml_server(folder)
    zenml.environment = {**zenml.environment, "ZENML_SECRETS_STORE_TYPE": "sql"}
    zenml.environment["ZENML_SECRETS_STORE_ENCRYPTION_KEY"] = mark("encryption")  # else its secrets are only encoded
    prefect = servers.prefect_server(folder)
    image = LoopbackImage(
        python=servers.ROOT / ".venv-sandbox" / "bin" / "python",
        files={"/opt/stack-code": STACK_CODE},
        env={"PYTHONPATH": "/opt/stack-code", "ZENML_ANALYTICS_OPT_IN": "false"},
        credentials=credentials,
    )
    password, wrong = marks.new("index_password"), marks.new("wrong_index_password")
    index = PrivateIndex(password)
    of_workspace = {name: {"UV_INDEX_URL": index.url(value)} for name, value in (("index", password), ("wrong", wrong))}
    with index, LoopbackModal({IMAGE: image}, token=token, tape=True, secrets=of_workspace) as modal:
        try:
            with ThreadPoolExecutor(2) as pool:
                list(pool.map(servers.Server.start, (zenml, prefect)))
            create_user(zenml, marks.values["zenml_password"])
            scene = Scene(folder, marks, prefect, zenml, modal, index, WORD)
            (folder / "artifacts").mkdir()
            scene.user({"register": registration(scene), "runs": []})
            yield scene
        finally:
            for server in (zenml, prefect):
                server.stop()


def registration(scene: Scene) -> dict[str, Any]:
    """The stacks: their tokens are references to ZenML secrets."""
    values = scene.marks.values
    wrong = {
        name: scene.marks.new(name, before)
        for name, before in (("wrong_modal", "as-"), ("wrong_registry", ""), ("wrong_prefect", ""), ("broken", "as-"))
    }
    right = {
        "runner": "modal",
        "token_id": "{{modal.id}}",
        "token_secret": "{{modal.secret}}",
        "prefect_api_key": "{{prefect.key}}",
    }
    return {
        "artifacts": f"shared://{str(scene.artifacts).lstrip('/')}",
        "secrets": {
            "modal": {"id": values["modal_token_id"], "secret": values["modal_token_secret"]},
            "prefect": {"key": values["prefect_key"]},
            "registry": {"username": "robot", "password": values["registry_password"]},
            "marked_secret": {"IN_SECRET": values["zenml_secret"]},
            "wrong": {
                "modal": wrong["wrong_modal"],
                "prefect": wrong["wrong_prefect"],
                "broken": wrong["broken"] + "\n",
                "not_ascii": wrong["broken"] + "é",
            },
            "wrong_registry": {"username": "robot", "password": wrong["wrong_registry"]},
        },
        "registries": ["registry", "wrong_registry"],
        "stacks": {
            "right": {"orchestrator": right, "registry": "registry"},
            "builds": {
                "orchestrator": {**right, "image_source": "modal", "build_secrets": ["index"]},
                "registry": "registry",
            },
            "builds_in_vain": {
                "orchestrator": {**right, "image_source": "modal", "build_secrets": ["wrong"]},
                "registry": "registry",
            },
            "operates": {
                "orchestrator": right,
                "operator": {name: right[name] for name in ("token_id", "token_secret")},
                "registry": "registry",
            },
            "of_the_machine": {"orchestrator": {"runner": "modal"}, "registry": "registry"},
            "here": {"orchestrator": {"runner": "process", "prefect_api_key": "{{prefect.key}}"}},
            "wrong_modal": {"orchestrator": {**right, "token_secret": "{{wrong.modal}}"}, "registry": "registry"},
            "broken_modal": {"orchestrator": {**right, "token_secret": "{{wrong.broken}}"}, "registry": "registry"},
            "odd_modal": {"orchestrator": {**right, "token_secret": "{{wrong.not_ascii}}"}, "registry": "registry"},
            "wrong_registry_stack": {"orchestrator": right, "registry": "wrong_registry"},
            "wrong_prefect": {
                "orchestrator": {
                    **right,
                    "prefect_api_key": "{{wrong.prefect}}",
                    "prefect_api_url": "{{elsewhere.url}}",
                },
                "registry": "registry",
            },
            "broken_prefect": {
                "orchestrator": {**right, "prefect_api_key": "{{wrong.broken}}"},
                "registry": "registry",
            },
            "odd_prefect": {
                "orchestrator": {**right, "prefect_api_key": "{{wrong.not_ascii}}"},
                "registry": "registry",
            },
        },
    }
