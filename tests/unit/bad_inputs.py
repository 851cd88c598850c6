"""Everything a user can get wrong, as data: what is written where, and what the error has to say.

The unit tests feed them to the settings and the translation, the end-to-end tests to pipelines on a registered
stack. Each error names the field, its value and the fix: ``says`` holds a fragment for each of the three.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from tests.unit.snapshots import StepInput

TOKEN = "ak-0123456789"
PER_STEP = {"execution_mode": "per_step"}
ONE = {"train": StepInput()}


@dataclass(frozen=True)
class BadInput:
    """``component`` is the component's configuration, ``settings`` and ``resources`` are the pipeline's."""

    id: str
    says: tuple[str, str, str]
    component: Mapping[str, Any] = field(default_factory=dict)
    settings: Mapping[str, Any] = field(default_factory=dict)
    resources: Mapping[str, Any] = field(default_factory=dict)
    retry: Mapping[str, Any] | None = None
    steps: Mapping[str, StepInput] = field(default_factory=lambda: ONE)
    dynamic: bool = False
    images: Mapping[str, str] | None = None
    """Images by ZenML's key: only a stack that builds images has them."""
    zenml_takes: bool = True
    """False where ZenML itself refuses the pipeline before this package sees it."""


def _setting(id: str, field: str, value: object, fix: str, *, shown: str | None = None) -> BadInput:
    return BadInput(id, (field, shown or repr(value), fix), settings={field: value})


def _component(id: str, field: str, value: object, fix: str, *, shown: str | None = None) -> BadInput:
    return BadInput(id, (field, shown or repr(value), fix), component={field: value})


SETTINGS = [
    _setting("gpu list empty", "gpu", [], "Name at least one type"),
    _setting("gpu list empty as JSON", "gpu", "[]", "Name at least one type", shown="[]"),
    _setting("gpu blank", "gpu", "  ", "leave gpu out"),
    _setting("gpu with a count", "gpu", "A100:2", "ResourceSettings(gpu_count=2)"),
    _setting("gpu with a count in a list", "gpu", ["H100", "A100:4"], "ResourceSettings(gpu_count=4)"),
    _setting("gpu with a space", "gpu", "A100 80GB", "such as 'A100'"),
    _setting("gpu twice", "gpu", ["A100", "A100"], "Name each once"),
    _setting("gpu number", "gpu", 2, "Set gpu to a text or a list"),
    _setting("gpu broken JSON", "gpu", '["A100"', '["a", "b"]'),
    _setting("execution_mode unknown", "execution_mode", "per-step", "one of 'pipeline', 'per_step'"),
    _setting("execution_mode of ZenML", "execution_mode", "fail_fast", "@pipeline(execution_mode=...)"),
    _setting("timeout zero", "timeout", 0, "at least 1"),
    _setting("timeout negative", "timeout", -5, "at least 1"),
    _setting("timeout above Modal's", "timeout", 86401, "at most 86400"),
    _setting("timeout a word", "timeout", "1h", "a whole number"),
    _setting("timeout a fraction", "timeout", 1.5, "a whole number"),
    _setting("max_parallelism zero", "max_parallelism", 0, "at least 1"),
    _setting("max_parallelism a word", "max_parallelism", "all", "a whole number"),
    _setting("infrastructure_retries negative", "infrastructure_retries", -1, "at least 0"),
    _setting("capacity_timeout zero", "capacity_timeout", 0, "at least 1"),
    _setting("orphan_timeout zero", "orphan_timeout", 0, "at least 1"),
    _setting("warm_idle_timeout negative", "warm_idle_timeout", -1, "at least 0"),
    _setting("create_rate zero", "create_rate", 0, "greater than 0"),
    _setting("create_rate infinite", "create_rate", float("inf"), "greater than 0"),
    _setting("warm a word", "warm", "sometimes", "True or False"),
    _setting("synchronous a word", "synchronous", "later", "True or False"),
    _setting("secrets no JSON", "secrets", "one,two", '["a", "b"]'),
    _setting("secrets a mapping", "secrets", '{"a": "b"}', "a list of texts"),
    _setting("secret with a space", "secrets", ["my secret"], "name of a Modal Secret"),
    _setting("secret twice", "secrets", ["one", "one"], "Name each once"),
    _setting("volume path relative", "volumes", {"data": "v"}, "Start mount paths with /"),
    _setting("volume at root", "volumes", {"/": "v"}, "Mount below it"),
    _setting("volume at /tmp", "volumes", {"/tmp": "v"}, "Mount below it"),
    _setting("volume path not plain", "volumes", {"/a/../b": "v"}, "Write '/b'"),
    _setting("volume path twice", "volumes", {"/data": "a", "/data/": "b"}, "a path of its own"),
    _setting("volume without a name", "volumes", {"/data": ""}, "name of a Modal Volume"),
    _setting("one volume twice", "volumes", {"/a": "v", "/b": "v:ro"}, "Mount it once"),
    _setting("volume mounted in an unknown way", "volumes", {"/data": "a:rw"}, "name of a Modal Volume"),
    _setting("a bucket as a volume", "volumes", {"/data": "s3://my-bucket"}, "name of a Modal Volume"),
    _setting("volumes a list", "volumes", ["/data"], "to a mapping"),
    _setting("block_network a word", "block_network", "mostly", "True or False"),
    _setting("block_network of a Python step", "block_network", True, "Name what it may reach"),
    BadInput(
        "block_network with an allow list",
        ("outbound_cidr_allowlist", "['10.0.0.0/8']", "Take one of the two away"),
        settings={"block_network": True, "outbound_cidr_allowlist": ["10.0.0.0/8"]},
    ),
    _setting("an address without its prefix", "outbound_cidr_allowlist", ["10.0.0.1"], "as in '203.0.113.7/32'"),
    _setting("a network with host bits", "outbound_cidr_allowlist", ["10.0.0.1/8"], "Write networks as in"),
    _setting("a URL for a domain", "outbound_domain_allowlist", ["https://x.org/"], "no scheme, port or path"),
    _setting("a domain of one label", "outbound_domain_allowlist", ["localhost"], "Write 'zenml.example.com'"),
    _setting("a wildcard of one label", "outbound_domain_allowlist", ["*.org"], "Write 'zenml.example.com'"),
    _setting("a label too long", "outbound_domain_allowlist", [f"{'x' * 64}.org"], "Write 'zenml.example.com'"),
    _setting("an address for a domain", "outbound_domain_allowlist", ["10.0.0.1"], "outbound_cidr_allowlist"),
    _setting(
        "too many domains",
        "outbound_domain_allowlist",
        [f"x{number}.org" for number in range(101)],
        "100 at most",
    ),
    _setting("a domain twice", "outbound_domain_allowlist", ["x.org", "x.org"], "Name each once"),
    _setting("tag Modal refuses", "tags", {"team": "data science"}, "ASCII letters, digits"),
    _setting("tag of this package", "tags", {"zenml_run_id": "x"}, "Choose another key"),
    _setting("another tag of this package", "tags", {"zenml_sandbox": "x"}, "Choose another key"),
    _setting("tag a number", "tags", {"team": 7}, "to a mapping"),
    _setting("cloud blank", "cloud", "", "leave cloud out"),
    _setting("region list empty", "region", [], "leave region out"),
    _setting("region with a space", "region", "us east", "such as 'us-east'"),
    _setting("modal_environment an id", "modal_environment", "en-123", "modal environment list"),
    _setting("concurrency_limit blank", "concurrency_limit", " ", "leave concurrency_limit out"),
    _setting("work_queue blank", "work_queue", "", "leave work_queue out"),
    _setting("job_variables no JSON", "job_variables", "image=x", "to a mapping"),
    _setting("a typing error", "max_paralelism", 4, "Did you mean max_parallelism"),
    _setting("a secret as a plain setting", "cloud", "{{account.cloud}}", "Write the value itself"),
]

COMPONENTS = [
    _component("runner unknown", "runner", "docker", "one of 'modal', 'process'"),
    _component("image_source unknown", "image_source", "docker", "one of 'registry', 'modal'"),
    _component("component's gpu list empty", "gpu", "[]", "Name at least one type", shown="[]"),
    _component("component's timeout zero", "timeout", "0", "at least 1"),
    _component("component's max_parallelism zero", "max_parallelism", "0", "at least 1"),
    _component("token without its secret", "token_id", TOKEN, "--token_secret=", shown="token_secret=None"),
    _component("secret without its token", "token_secret", TOKEN, "--token_id=", shown="token_id=None"),
    BadInput(
        "token with a blank secret",
        ("token_secret", "''", "--token_secret="),
        component={"token_id": TOKEN, "token_secret": ""},
    ),
    _component("prefect_api_url without http", "prefect_api_url", "localhost:4200", "http://127.0.0.1:4200/api"),
    _component("work_pool blank", "work_pool", "", "leave work_pool out"),
]

RUN_LEVEL_ON_A_STEP = [
    BadInput(
        f"{name} on a step",
        (f"{name} of step train", repr(value), f"Set {name} on the pipeline"),
        steps={"train": StepInput(settings={name: value})},
    )
    for name, value in {
        "execution_mode": "per_step",
        "synchronous": False,
        "max_parallelism": 2,
        "warm": False,
        "warm_idle_timeout": 10,
        "orphan_timeout": 60,
        "create_rate": 2.0,
        "work_queue": "fast",
        "job_variables": {"image": "x"},
    }.items()
]

STEPS = [
    BadInput(
        "a step's gpu list empty",
        ("gpu", "[]", "Name at least one type"),
        steps={"train": StepInput(settings={"gpu": []})},
    ),
    BadInput(
        "gpu_count without a type",
        ("gpu_count of step train", "2", "ModalPrefectOrchestratorSettings(gpu='A100')"),
        steps={"train": StepInput(resources={"gpu_count": 2})},
    ),
    BadInput(
        "gpu_count of the pipeline without a type",
        ("gpu_count of", "2", "ModalPrefectOrchestratorSettings(gpu='A100')"),
        resources={"gpu_count": 2},
    ),
    BadInput(
        "memory zero",
        ("ResourceSettings.memory of step train", "'0GB'", "Ask for more"),
        steps={"train": StepInput(resources={"memory": "0GB"})},
    ),
    BadInput(
        "more retries than Prefect takes",
        ("retry.max_retries of step train", "51", "max_retries=50"),
        settings=PER_STEP,
        steps={"train": StepInput(retry={"max_retries": 51})},
    ),
    BadInput(
        "more retries of the pipeline than Prefect takes",
        ("retry.max_retries of step train", "60", "max_retries=50"),
        settings=PER_STEP,
        retry={"max_retries": 60},
    ),
    BadInput(
        "a backoff that explodes",
        ("retry of step train", "'backoff': 1000", "Lower the delay"),
        settings=PER_STEP,
        steps={"train": StepInput(retry={"max_retries": 50, "delay": 10, "backoff": 1000})},
    ),
    BadInput(
        "a dynamic pipeline with GPUs of no type",
        ("gpu_count of the pipeline", "2", "Name it in the settings"),
        resources={"gpu_count": 2},
        dynamic=True,
    ),
    BadInput(
        "a step in depends_on with a setting of the run",
        ("synchronous of step train", "False", "take it off the step"),
        steps={"train": StepInput(settings={"synchronous": False})},
        dynamic=True,
        zenml_takes=False,  # there is no such pipeline in the end-to-end tests
    ),
    BadInput("no steps", ("steps", "[]", "Call at least one step"), steps={}, zenml_takes=False),
    BadInput(
        "a command step",
        ("command of step train", "['true']", "from a Python step"),
        steps={"train": StepInput(command=["true"])},
        zenml_takes=False,
    ),
    BadInput(
        "an upstream step that doesn't exist",
        ("upstream steps of step train", "['nowhere']", "name one of them"),
        steps={"train": StepInput(upstream=["nowhere"])},
        zenml_takes=False,
    ),
    BadInput(
        "a cycle",
        ("upstream steps", "'left'", "Take one of their dependencies away"),
        steps={"left": StepInput(upstream=["right"]), "right": StepInput(upstream=["left"])},
        zenml_takes=False,
    ),
    BadInput(
        "a step that waits for itself",
        ("upstream steps", "'train'", "Take one of their dependencies away"),
        steps={"train": StepInput(upstream=["train"])},
        zenml_takes=False,
    ),
]

PIPELINE_MODE = [
    BadInput(
        "different GPU types in pipeline mode",
        ("gpu", "step big", "execution_mode='per_step'"),
        steps={"small": StepInput(settings={"gpu": "T4"}), "big": StepInput(settings={"gpu": "A100"})},
    ),
    BadInput(
        "the same GPU types in another order in pipeline mode",
        ("gpu", "('H100', 'A100')", "the same gpu"),
        steps={
            "one": StepInput(settings={"gpu": ["A100", "H100"]}),
            "two": StepInput(settings={"gpu": ["H100", "A100"]}),
        },
    ),
    BadInput(
        "different images in pipeline mode",
        ("image", "'registry/b@sha256:2'", "the same DockerSettings"),
        images={"orchestrator": "registry/a@sha256:1", "two.orchestrator": "registry/b@sha256:2"},
        steps={"one": StepInput(), "two": StepInput()},
    ),
    *(
        BadInput(
            f"{name} on a step in pipeline mode",
            (f"{name} of step train", repr(value), f"Set {name} on the pipeline"),
            steps={"train": StepInput(settings={name: value})},
        )
        for name, value in {
            "timeout": 60,
            "cloud": "aws",
            "region": "eu",
            "modal_environment": "dev",
            "secrets": ["huggingface"],
            "volumes": {"/data": "data"},
            "concurrency_limit": "database",
        }.items()
    ),
]

ALL = [*SETTINGS, *COMPONENTS, *RUN_LEVEL_ON_A_STEP, *STEPS, *PIPELINE_MODE]
