"""The processes that run one flow run, one after the other: each is killed, the next one goes on.

They are forked from a server that has everything imported: a life costs a second then, not ten.
"""

from __future__ import annotations

import multiprocessing
import os
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from uuid import UUID

from prefect.client.orchestration import get_client
from zenml.client import Client

from bridge.cleanup.lease import signer
from bridge.cleanup.signs_of_life import last_sign
from tests.integration.lab import PROJECT, STACK_CODE, Lab, Ran, eventually
from tests.integration.under import Under

_forks = multiprocessing.get_context("forkserver")
_forks.set_forkserver_preload(["tests.integration.first_life"])


def _begin(environment: dict[str, str], folder: str, stack: str, pipeline: str, options: Any, arguments: Any) -> None:
    _prepare(environment, folder)
    from tests.integration import first_life

    first_life.call(folder, stack, pipeline, options, arguments)


def _go_on(environment: dict[str, str], folder: str, some_id: UUID, options: list[str]) -> None:
    _prepare(environment, folder)
    from bridge.commands.resume import resume

    resume([str(some_id), "--here", *options], standalone_mode=True)


def _prepare(environment: dict[str, str], folder: str) -> None:
    os.environ.clear()
    os.environ.update(environment)
    sys.path[:0] = [str(STACK_CODE), str(PROJECT)]
    from zenml.utils import source_utils

    source_utils.set_custom_source_root(str(PROJECT))  # there is no main module that ZenML could take for the user's
    os.chdir(PROJECT)
    log = os.open(f"{folder}/flow.log", os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    for descriptor in (1, 2):
        os.dup2(log, descriptor)


class Lives:
    """One run, whose flow is killed now and then."""

    def __init__(self, lab: Lab, folder: Path) -> None:
        self.lab = lab
        self.folder = folder
        self.under = Under(lab, folder)
        self.number = 0
        self._life: Any = None

    def begin(
        self,
        pipeline: str,
        place: str,
        settings: Mapping[str, Any],
        configuration: Mapping[str, Any] | None = None,
        **arguments: Any,
    ) -> Lives:
        """Call a pipeline of ``crashes`` in a process of its own."""
        stack = self.lab.stack(place, **(configuration or {}))
        self.lab.activate(stack)
        return self._start(_begin, stack, pipeline, dict(settings), arguments)

    def go_on(self, *, by_flow_run: bool = False, sure: bool = False) -> Lives:
        """Type `modal-prefect resume` in a process of its own."""
        some_id = self.under.flow_run_id if by_flow_run else self.under.run_id
        return self._start(_go_on, some_id, ["--yes"] if sure else [])

    def _start(self, function: Any, *arguments: Any) -> Lives:
        assert self._life is None
        self.number += 1
        self._life = _forks.Process(target=function, args=(dict(os.environ), str(self.folder), *arguments), daemon=True)
        self._life.start()
        return self

    def kill(self) -> None:
        """SIGKILL; nothing if there is no process."""
        if self._life is not None:
            self._life.kill()
            self._life.join(20)
            self._life = None

    def interrupt(self, seconds: float = 60) -> None:
        """SIGTERM; returns once it is heeded."""
        self._life.terminate()
        heeded = "Interrupted: the run is being stopped"
        assert eventually(lambda: heeded in self.log or self._exit_code is not None, bool, seconds), self.log[-6000:]
        assert heeded in self.log, self.log[-6000:]

    def __enter__(self) -> Lives:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.kill()

    @property
    def log(self) -> str:
        """What all the processes have printed."""
        path = self.folder / "flow.log"
        return path.read_text(errors="replace") if path.exists() else ""

    def go(self, *names: str) -> None:
        """Let steps go on: `<step>-<attempt>`."""
        for name in names:
            (self.folder / f"go-{name}").touch()

    def fail(self, name: str) -> None:
        """Let an attempt fail, once it is told to go on."""
        (self.folder / f"fail-{name}").touch()

    def until(self, step: str, attempt: int = 1, seconds: float = 180) -> None:
        """Wait until the code of an attempt is under way."""
        begun = eventually(
            lambda: len(self.under.ran.traces(step)), lambda number: number >= attempt or self._exit_code, seconds
        )
        assert begun == attempt, self.log[-6000:]

    def until_logged(self, line: str, seconds: float = 180) -> None:
        """Wait until Prefect has a line of output."""
        from prefect.client.schemas.filters import LogFilter

        chosen = LogFilter(flow_run_id={"any_": [self.under.flow_run_id]})  # type: ignore[arg-type]
        with get_client(sync_client=True) as client:

            def there() -> bool:
                offset = 0
                while page := client.read_logs(chosen, limit=200, offset=offset):
                    if any(log.message.endswith(line) for log in page):
                        return True
                    offset += len(page)
                return False

            found = eventually(lambda: there() or self._exit_code, bool, seconds)
            assert found is True, f"{found}: {self.log[-6000:]}"

    @property
    def _exit_code(self) -> int | None:
        """The exit code of the process, where it has ended in an error."""
        return self._life.exitcode if self._life is not None else None

    def until_signed(self, seconds: float = 180) -> None:
        """Wait until this process has given a sign of life."""

        def life() -> int:
            return signer(last_sign(Client().get_pipeline_run(self.under.run_id)))[1]

        found = eventually(life, lambda found: found == self.number or self._exit_code, seconds)
        assert found == self.number, self.log[-6000:]

    def until_running(self, seconds: float = 180) -> None:
        """Wait until Prefect has seen as many processes begin as there were."""
        with get_client(sync_client=True) as client:

            def begun() -> int:
                return client.read_flow_run(self.under.flow_run_id).run_count

            found = eventually(begun, lambda found: found == self.number or self._exit_code, seconds)
            assert found == self.number, self.log[-6000:]

    def until_zenml(self, expected: Mapping[str, str], seconds: float = 180) -> None:
        """Wait until ZenML says this of the steps."""
        found = eventually(self._statuses, lambda found: found == expected or self._exit_code, seconds)
        assert found == expected, f"{found}: {self.log[-6000:]}"

    def _statuses(self) -> dict[str, str]:
        steps = Client().get_pipeline_run(self.under.run_id).steps
        return {name: step.status.value for name, step in steps.items()}

    def end_of_process(self, seconds: float = 60) -> None:
        """Wait for the end of a process that only submits."""
        self._life.join(seconds)
        self._life = None

    def end(self, seconds: float = 180) -> Ran:
        """Wait for the end of the last process and read both sides."""
        life, self._life = self._life, None
        life.join(seconds)
        assert not life.is_alive(), self.log[-6000:]
        return self.lab.read(Ran(self.folder), self.under.run_id)
