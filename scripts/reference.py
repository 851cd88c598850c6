"""Writes `docs/reference/` from the code: settings from the settings' classes, commands from the command line.

`python -m scripts.reference` writes; the tests compare.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click
from pydantic.fields import FieldInfo

from bridge.cli import main as command_line
from bridge.settings import (
    ModalPrefectOrchestratorConfig,
    ModalPrefectOrchestratorSettings,
    ModalPrefectStepOperatorConfig,
    ModalPrefectStepOperatorSettings,
)

FOLDER = Path(__file__).resolve().parents[1] / "docs" / "reference"
_WRITTEN = """\
## How they are written

In code, on a step and on a pipeline:

```python
from zenml import pipeline, step
from zenml.config import ResourceSettings

from bridge import ModalPrefectOrchestratorSettings


@step(
    settings={
        "orchestrator": ModalPrefectOrchestratorSettings(
            gpu=["H100", "A100"], volumes={"/data": "my-volume"}
        ),
        "resources": ResourceSettings(gpu_count=2, memory="16GB"),
    }
)
def train() -> None: ...


@pipeline(
    settings={
        "orchestrator": ModalPrefectOrchestratorSettings(execution_mode="per_step", max_parallelism=4)
    }
)
def training() -> None:
    train()
```

A dictionary does as well: `settings={"orchestrator": {"gpu": "A100"}}`. The step operator's are
`ModalPrefectStepOperatorSettings`, under the key `step_operator`.

On the component, in the command line; lists and mappings are JSON:

```console
$ zenml orchestrator update modal --gpu='["H100", "A100"]' --volumes='{"/data": "my-volume"}'
```

In a file, for `training.with_options(config_path="config.yaml")()` or for `--config config.yaml` of
`zenml pipeline snapshot create`:

```yaml
settings:
  orchestrator:
    execution_mode: per_step
    max_parallelism: 4
steps:
  train:
    settings:
      orchestrator:
        gpu: [H100, A100]
        volumes: {/data: my-volume}
      resources:
        gpu_count: 2
        memory: 16GB
```"""
_GENERATED = "<!-- Written by `python -m scripts.reference`: change the code, not this page. -->\n"


def settings_page() -> str:
    """The page about the settings of both components."""
    parts = [
        "# Settings",
        _GENERATED,
        "Settings stand on the component, on a pipeline and, where it makes sense, on a step. The nearer one wins; "
        "None never overrides, mappings are merged key by key. A value that can't be right is refused before anything "
        "starts; a GPU type, cloud or region that only Modal can judge, when the first sandbox is made.",
        "CPU, memory and the number of GPUs come from ZenML's `ResourceSettings`.",
        _WRITTEN,
        "## The orchestrator",
        *_fields(ModalPrefectOrchestratorSettings, ModalPrefectOrchestratorSettings.model_fields),
        "## The orchestrator, on the component alone",
        *_fields(
            ModalPrefectOrchestratorConfig,
            _of_component(ModalPrefectOrchestratorConfig, ModalPrefectOrchestratorSettings),
        ),
        "## The step operator",
        "The same as above, as far as they are about one sandbox: "
        + ", ".join(f"`{name}`" for name in ModalPrefectStepOperatorSettings.model_fields)
        + "; and on the component "
        + ", ".join(
            f"`{name}`" for name in _of_component(ModalPrefectStepOperatorConfig, ModalPrefectStepOperatorSettings)
        )
        + ". What means something else:",
        *_fields(
            ModalPrefectStepOperatorSettings,
            [
                name
                for name, field in ModalPrefectStepOperatorSettings.model_fields.items()
                if field.description != ModalPrefectOrchestratorSettings.model_fields[name].description
            ],
        ),
        *_fields(
            ModalPrefectStepOperatorConfig,
            [
                name
                for name in _of_component(ModalPrefectStepOperatorConfig, ModalPrefectStepOperatorSettings)
                if ModalPrefectStepOperatorConfig.model_fields[name].description
                != ModalPrefectOrchestratorConfig.model_fields[name].description
            ],
        ),
    ]
    return "\n\n".join(parts) + "\n"


def _of_component(config: Any, settings: Any) -> list[str]:
    return [name for name in config.model_fields if name in settings.COMPONENT_ONLY]


def _fields(model: Any, wanted: Any) -> Iterator[str]:
    for name in wanted:
        field: FieldInfo = model.model_fields[name]
        yield f"### `{name}`\n\n`{_type(field)}`, default `{_default(field)}`\n\n{field.description}"


def _type(field: FieldInfo) -> str:
    shown = field.annotation.__name__ if isinstance(field.annotation, type) else str(field.annotation)
    if "[" in str(field.annotation):  # list[str] is a type with a name, too
        shown = str(field.annotation)
    signs = {"Ge": "≥", "Gt": ">", "Le": "≤", "Lt": "<"}
    bounds = [
        f"{sign} {getattr(one, kind.lower())}"
        for one in field.metadata
        for kind, sign in signs.items()
        if type(one).__name__ == kind
    ]
    return ", ".join([shown.replace("typing.", "").replace("pydantic.types.", ""), *bounds])


def _default(field: FieldInfo) -> str:
    return repr(field.get_default(call_default_factory=True))


def commands_page() -> str:
    """The page about the commands."""
    parts = [
        "# Commands",
        _GENERATED,
        "Exit codes: 0 done, 1 something is wrong, 2 the command line was mistyped. For completion in bash: "
        '`eval "$(_MODAL_PREFECT_COMPLETE=bash_source modal-prefect)"`; zsh and fish likewise.',
        *_commands(command_line, "modal-prefect", None),
    ]
    return "\n\n".join(parts) + "\n"


def _commands(command: click.Command, name: str, parent: click.Context | None) -> Iterator[str]:
    context = click.Context(command, info_name=name, parent=parent, terminal_width=100)
    yield f"## {context.command_path}\n\n```text\n{command.get_help(context)}\n```"
    if isinstance(command, click.Group):
        for below in sorted(command.commands):
            yield from _commands(command.commands[below], below, context)


PAGES = {"settings.md": settings_page, "commands.md": commands_page}


def main(arguments: list[str]) -> int:
    """Write all pages; with ``--check`` only say which aren't what the code says."""
    if arguments == ["--check"]:
        stale = [name for name, page in PAGES.items() if (FOLDER / name).read_text(encoding="utf-8") != page()]
        for name in stale:
            print(f"docs/reference/{name} isn't what the code says: `make docs` writes it.", file=sys.stderr)
        return 1 if stale else 0
    FOLDER.mkdir(parents=True, exist_ok=True)
    for name, page in PAGES.items():
        (FOLDER / name).write_text(page(), encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
