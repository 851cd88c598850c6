"""Servers of their own for the search: what other tests leave in theirs would be searched as well."""

from __future__ import annotations

import base64
import json
import os
import subprocess
import sys
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any
from uuid import uuid4

import httpx
import pytest
from prefect.workers.process import ProcessWorker

from tests import servers
from tests.integration.lab import STACK_CODE, eventually
from tests.loopback import LoopbackImage, LoopbackModal
from tests.security.marks import Marks, mark
from tests.security.private_index import PrivateIndex
from tests.security.project.secretive import WORKSPACE_SECRET

BIN = Path(sys.executable).parent
WORD = "planted"
IMAGE = f"registry.example.com/{WORD}:1"
CALLER_IMAGE = f"registry.example.com/{WORD}-caller:1"
"""An image from which a step operator may be called: it has Modal's SDK."""
USER = "somebody"
MACHINE = "a-worker"
"""The service account of whoever logs in to ZenML with a key."""
POOL = "vault"
USER_SECONDS = 800


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

    @property
    def machine(self) -> Path:
        """The disk of whoever logs in with a key: a worker, or a user of another machine."""
        return self.folder / "machine"

    @property
    def by_password(self) -> dict[str, str]:
        """How a person logs in to ZenML."""
        return {"ZENML_STORE_USERNAME": USER, "ZENML_STORE_PASSWORD": self.marks.values["zenml_password"]}

    @property
    def by_key(self) -> dict[str, str]:
        """How a machine does."""
        return {"ZENML_STORE_API_KEY": self.marks.values["zenml_api_key"]}

    def environment(self, home: Path, login: Mapping[str, str]) -> dict[str, str]:
        """The environment of a program on the disk ``home``, with a secret in it that is none of our business."""
        for name in ("tmp", "work"):
            (home / name).mkdir(parents=True, exist_ok=True)
        of_zenml = servers.zenml_client_environment(home / "zenml", self.zenml)
        return {
            **servers.clean_environment(),
            **{name: value for name, value in of_zenml.items() if name not in self.by_password},
            **login,
            "HOME": str(home),
            "TMPDIR": str(home / "tmp"),
            "ZENML_LOGGING_VERBOSITY": "DEBUG",
            "PREFECT_API_URL": f"{self.prefect.url}/api",
            "PREFECT_API_AUTH_STRING": f"robot:{self.marks.values['prefect_password']}",
            "PREFECT_HOME": str(home / "prefect"),
            "PREFECT_SERVER_ALLOW_EPHEMERAL_MODE": "false",
            "PREFECT_LOGGING_LEVEL": "DEBUG",
            "DO_NOT_TRACK": "1",
            "MODAL_SERVER_URL": self.modal.url,
            "MODAL_DISABLE_API_PROXY": "1",
            "MODAL_CONFIG_PATH": str(home / "modal.toml"),
            "MODAL_LOGLEVEL": "DEBUG",
            "AWS_SECRET_ACCESS_KEY": self.marks.values["shell_variable"],
            "PYTHONPATH": f"{STACK_CODE}{os.pathsep}{servers.ROOT}",
        }

    def user(self, asked: Mapping[str, object], **variables: str) -> str:
        """Run a process of a user, who has a password, to its end and return what it printed."""
        return self._user(asked, self.home, {**self.environment(self.home, self.by_password), **variables})

    def user_with_key(self, asked: Mapping[str, object]) -> str:
        """The same, on another machine, from which a key logs in."""
        return self._user(asked, self.machine, self.environment(self.machine, self.by_key))

    def user_with_wrong_key(self, asked: Mapping[str, object]) -> str:
        """The same with a key that ZenML doesn't know; the process fails."""
        inside = self.marks.new("in_wrong_zenml_api_key")
        key = self.marks.values["wrong_zenml_api_key"] = api_key(str(uuid4()), inside)
        environment = self.environment(self.folder / "elsewhere", {"ZENML_STORE_API_KEY": key})
        return self._user(asked, self.folder / "elsewhere", environment, code=1)

    def _user(self, asked: Mapping[str, object], home: Path, environment: Mapping[str, str], code: int = 0) -> str:
        theirs = {f"MARK_{name}": self.marks.values[name.lower()] for name in ("STEP_VARIABLE", "RUN_VARIABLE")}
        ran = subprocess.run(
            [sys.executable, "-m", "tests.security.user"],
            input=json.dumps(asked),
            env={**environment, **theirs},
            cwd=home / "work",
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=USER_SECONDS,
            check=False,
        )
        self.terminal.append(("terminal", ran.stdout.encode()))
        assert ran.returncode == code, ran.stdout[-3000:]
        return ran.stdout

    @contextmanager
    def worker(self, **variables: str) -> Iterator[None]:
        """A worker of the pool, which has a key to ZenML; its log is on its disk."""
        environment = {**self.environment(self.machine, self.by_key), **variables, "PREFECT_WORKER_QUERY_SECONDS": "1"}
        pools = f"{self.prefect.url}/api/work_pools"
        pool = {
            "name": POOL,
            "type": "process",
            "base_job_template": ProcessWorker.get_default_base_job_template(),
        }
        assert httpx.post(f"{pools}/", json=pool, timeout=60).status_code in (201, 409), "made, or there already"

        def online() -> bool:
            there = httpx.post(f"{pools}/{POOL}/workers/filter", json={}, timeout=60).raise_for_status().json()
            return any(worker["status"] == "ONLINE" for worker in there)

        with (self.machine / "worker.log").open("ab") as log:
            argv = [str(BIN / "modal-prefect"), "worker", "--pool", POOL]
            process = subprocess.Popen(
                argv, env=environment, cwd=self.machine / "work", stdout=log, stderr=log, start_new_session=True
            )
        try:
            assert eventually(online, bool, 120), (self.machine / "worker.log").read_text()[-3000:]
            yield
        finally:
            process.terminate()
            try:
                process.wait(120)
            finally:
                process.kill()
                process.wait()


def api_key(key_id: str, secret: str) -> str:
    """A key as ZenML makes them: an id and the secret itself."""
    return "ZENKEY_" + base64.b64encode(json.dumps({"id": key_id, "key": secret}).encode()).decode()


def inside_of(key: str) -> str:
    """The secret itself that is in a key."""
    secret: str = json.loads(base64.b64decode(key.partition("_")[2]))["key"]
    return secret


def create_key(zenml: servers.Server, password: str) -> str:
    """Make a service account and return the key with which it logs in."""
    with servers.zenml_api(zenml, USER, password) as client:
        account = {"name": MACHINE, "full_name": "", "active": True}
        made = client.post("/service_accounts", json=account).raise_for_status().json()
        path = f"/service_accounts/{made['id']}/api_keys"
        key: str = client.post(path, json={"name": "key"}).raise_for_status().json()["body"]["key"]
        return key


def create_user(zenml: servers.Server, password: str) -> None:
    """Make an administrator with that password, as the one that is there already."""
    with servers.zenml_api(zenml) as client:
        user = {"name": USER, "password": password, "active": True, "is_admin": True}
        client.post("/users", json=user).raise_for_status()


@pytest.fixture(scope="module")
def scene(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Scene]:
    folder = tmp_path_factory.mktemp("security")
    marks = Marks()
    token = (marks.new("modal_token_id", "ak-"), marks.new("modal_token_secret", "as-"))
    credentials = ("robot", marks.new("registry_password"))
    for name in ("zenml_password", "zenml_secret", "workspace_secret", "prefect_key", "prefect_password"):
        marks.new(name)
    for name in ("shell_variable", "step_variable", "run_variable"):
        marks.new(name)
    zenml = servers.zenml_server(folder)
    zenml.argv = ["debug" if word == "warning" else word for word in zenml.argv]
    zenml.environment = {**zenml.environment, "ZENML_LOGGING_VERBOSITY": "DEBUG"}
    zenml.environment = {**zenml.environment, "ZENML_SECRETS_STORE_TYPE": "sql"}
    zenml.environment["ZENML_SECRETS_STORE_ENCRYPTION_KEY"] = mark("encryption")  # else its secrets are only encoded
    prefect = servers.prefect_server(folder)
    prefect.environment = {**prefect.environment, "PREFECT_SERVER_LOGGING_LEVEL": "DEBUG"}
    image = LoopbackImage(
        python=servers.ROOT / ".venv-sandbox" / "bin" / "python",
        files={"/opt/stack-code": STACK_CODE},
        env={"PYTHONPATH": "/opt/stack-code", "ZENML_ANALYTICS_OPT_IN": "false"},
        credentials=credentials,
    )
    of_caller = dict(image.env)
    caller = replace(image, python=Path(sys.executable), env=of_caller)
    password, wrong = marks.new("index_password"), marks.new("wrong_index_password")

    def of_workspace(index: PrivateIndex) -> dict[str, dict[str, str]]:
        urls = {name: {"UV_INDEX_URL": index.url(value)} for name, value in (("index", password), ("wrong", wrong))}
        return {**urls, WORKSPACE_SECRET: {"IN_WORKSPACE": marks.values["workspace_secret"]}}

    with (
        PrivateIndex(password) as index,
        LoopbackModal(
            {IMAGE: image, CALLER_IMAGE: caller}, token=token, tape=True, secrets=of_workspace(index)
        ) as modal,
    ):
        # Where Modal is; never whose account it is, which the component says.
        of_caller |= {name: value for name, value in modal.env.items() if "TOKEN" not in name}
        try:
            with ThreadPoolExecutor(2) as pool:
                list(pool.map(servers.Server.start, (zenml, prefect)))
            create_user(zenml, marks.values["zenml_password"])
            key = marks.values["zenml_api_key"] = create_key(zenml, marks.values["zenml_password"])
            marks.values["in_zenml_api_key"] = inside_of(key)
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
            "pooled": {"orchestrator": {**right, "work_pool": POOL}, "registry": "registry"},
            "pooled_wrong_registry": {"orchestrator": {**right, "work_pool": POOL}, "registry": "wrong_registry"},
            "pooled_of_the_machine": {"orchestrator": {"runner": "modal", "work_pool": POOL}, "registry": "registry"},
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
                "operator": {
                    **{name: right[name] for name in ("token_id", "token_secret")},
                    "secrets": [WORKSPACE_SECRET],
                },
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
