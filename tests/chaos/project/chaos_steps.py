"""The user's code of a random pipeline: each step does what the case says, and writes down what it did."""

from __future__ import annotations

import json
import os
import signal
import sys
import time
from pathlib import Path
from typing import Any

from zenml import get_step_context, pipeline, step
from zenml.config.resource_settings import ResourceSettings
from zenml.config.retry_config import StepRetryConfig

WAITS = 300.0
"""Seconds that a step waits for what is to strike it."""


def write(path: Path, **line: object) -> None:
    """Append one line, at once: others read it while the step runs."""
    with path.open("a") as file:
        file.write(json.dumps({"time": time.time(), **line}) + "\n")


def read(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def started(pid: int) -> str:
    """When a process began, in the kernel's ticks; "" if it is gone or only waits to be reaped."""
    try:
        words = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except (FileNotFoundError, ProcessLookupError):
        return ""
    return "" if words[0] == "Z" else words[19]


@step(enable_cache=False)
def work(folder: str, before: int = 0) -> int:
    """Speaks, waits for what is to strike it, and ends as the case says."""
    name = get_step_context().step_run.name
    path = Path(folder) / f"{name}.jsonl"
    spec = next(spec for spec in json.loads((Path(folder) / "case.json").read_text())["steps"] if spec["name"] == name)
    earlier = read(path)
    number = sum(line["what"] == "begin" for line in earlier) + 1
    beside = [line["pid"] for line in earlier if line["what"] == "begin" and started(line["pid"]) == line["ticks"]]
    pid, sandbox = os.getpid(), os.environ.get("MODAL_SANDBOX_ID")
    write(path, what="begin", number=number, pid=pid, ticks=started(pid), sandbox=sandbox, beside=beside)
    half = spec["lines"] // 2
    say(name, number, range(half))
    if str(number) in spec["strikes"]:
        wait_for(Path(folder) / f"go-{name}-{number}")
    time.sleep(spec["seconds"])
    say(name, number, range(half, spec["lines"]))
    if sum(line["what"] == "fail" for line in earlier) < spec["failures"]:
        write(path, what="fail", number=number)
        fail(spec["how"])
    write(path, what="end", number=number)
    return number


def say(name: str, number: int, lines: range) -> None:
    for line in lines:
        print(f"{name} {number} line {line}")
    sys.stdout.flush()


def wait_for(path: Path) -> None:
    deadline = time.monotonic() + WAITS
    while not path.exists():
        if time.monotonic() > deadline:
            raise TimeoutError(path)
        time.sleep(0.02)


def fail(how: str) -> None:
    if how == "exit":
        os._exit(0)
    if how == "die":
        os.kill(os.getpid(), signal.SIGKILL)
    raise ValueError("as the case says")


@step(enable_cache=True)
def known(folder: str, value: int) -> int:
    """Its result is in ZenML's cache from the first run of all."""
    write(Path(folder) / "known.jsonl", value=value)
    return value


def options_of(spec: dict[str, Any]) -> dict[str, Any]:
    options: dict[str, Any] = {"settings": {}}
    if spec["retries"]:
        options["retry"] = StepRetryConfig(max_retries=spec["retries"], delay=spec["delay"], backoff=1)
    if spec["big"]:
        options["settings"]["resources"] = ResourceSettings(memory="2GiB")
    if spec["timeout"]:
        options["settings"]["orchestrator"] = {"timeout": spec["timeout"]}
    return options


@pipeline(enable_cache=True)
def chaos(folder: str, base: str, steps: list[dict[str, Any]]) -> None:
    """A case: the first upstream step is an input, the others are waited for."""
    made: dict[str, Any] = {}
    for spec in steps:
        above = [made[name] for name in spec["upstream"]]
        if spec["cached"]:
            made[spec["name"]] = known(base, 1, id=spec["name"], after=above)
            continue
        first = {"before": above[0]} if above else {}
        made[spec["name"]] = work.with_options(**options_of(spec))(folder, **first, id=spec["name"], after=above[1:])


@pipeline(dynamic=True, enable_cache=True)
def chaos_dynamic(folder: str, base: str, steps: list[dict[str, Any]]) -> None:
    """The same, each step in a sandbox of its own. Nobody loads a result, so ends are ZenML's runner's to see."""
    made: dict[str, Any] = {}
    for spec in steps:
        above = [made[name] for name in spec["upstream"]]
        if spec["cached"]:
            made[spec["name"]] = known.submit(base, 1, id=spec["name"], after=above)
            continue
        first = {"before": above[0]} if above else {}
        apart = work.with_options(runtime="isolated", **options_of(spec))
        made[spec["name"]] = apart.submit(folder, **first, id=spec["name"], after=above[1:])


@pipeline(enable_cache=True)
def first_of_all(base: str) -> None:
    """Fills the cache."""
    known(base, 1, id="known")


@pipeline(dynamic=True, enable_cache=True)
def first_of_all_dynamic(base: str) -> None:
    """Fills it for dynamic pipelines, where ZenML has another key for it."""
    known(base, 1, id="known")
