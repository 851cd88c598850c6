"""Carries out what is to strike the steps of a case, from another process than the flow's and the steps'."""

from __future__ import annotations

import signal
import threading
from pathlib import Path
from uuid import UUID

from prefect.client.orchestration import get_client
from prefect.client.schemas.responses import SetStateStatus
from prefect.states import Cancelling
from zenml.client import Client
from zenml.exceptions import IllegalOperationError
from zenml.utils import run_utils

from tests.chaos.case import AWAY, FLOW, FUNCTION, KILLED, LOST, STOP, WARM_TIMEOUT, Case
from tests.chaos.life import Flow
from tests.chaos.seen import Attempt, Strike
from tests.chaos.traces import attempts_of, is_running, now
from tests.chaos.yard import Yard
from tests.integration.lab import eventually

AWAY_SECONDS = 3.0
ALIVE = "prefect_flow_alive_at"
"""The run's metadata in which its flow writes when, where, and as which process of its flow run it lives."""
ENDS_WITHIN = 60.0
"""Seconds a stopped run may take to its end before the step that it waits for is let go: then it was lost."""


class Striker:
    """What strikes one run."""

    def __init__(self, case: Case, yard: Yard, folder: Path, flow: Flow, run_id: UUID, flow_run_id: UUID) -> None:
        self.case = case
        self.strikes: list[Strike] = []
        self._yard = yard
        self._folder = folder
        self._flow = flow
        self._run_id = run_id
        self._flow_run_id = flow_run_id
        self._pause = threading.Event()
        self._done: set[tuple[str, int]] = set()

    def look(self) -> None:
        """Strike whatever has begun and waits to be struck."""
        for step in self.case.steps:
            if not step.strikes:
                continue
            for attempt in attempts_of(self._folder, step.name):
                kind = step.strikes.get(attempt.number)
                if kind is not None and (step.name, attempt.number) not in self._done:
                    self._done.add((step.name, attempt.number))
                    self._strike(kind, step.name, attempt)

    def _strike(self, kind: str, step: str, attempt: Attempt) -> None:
        running, time = is_running(self._folder, step, attempt), now()
        refused = ""
        if kind in (*LOST, *KILLED):
            time = self._sandbox(kind, step, attempt) or time
        elif kind in FUNCTION:
            refused = self._function(kind)
        elif kind in FLOW:
            refused = self._kill_flow(kind, step, attempt)
        elif kind in AWAY:
            self._away(kind, step, attempt)
        elif kind in STOP:
            refused = self._stop(kind)
        else:
            self._yard.modal.set(**({"stream_delay": 0.5} if kind == "slow stream" else {"broken_streams": 2}))
        self.strikes.append(Strike(kind, step, attempt.number, attempt.sandbox, time, running, refused))
        if kind in STOP and not refused:
            eventually(self._flow.alive, lambda alive: not alive, ENDS_WITHIN)
        self._go(step, attempt)

    def _go(self, step: str, attempt: Attempt) -> None:
        (self._folder / f"go-{step}-{attempt.number}").touch()

    def _sandbox(self, kind: str, step: str, attempt: Attempt) -> float | None:
        if kind == "timeout" and self.case.has_timeout(self.case.step(step)):
            eventually(lambda: is_running(self._folder, step, attempt), lambda running: not running, 4 * WARM_TIMEOUT)
            return now()
        strike = getattr(self._yard.modal, "time_out" if kind == "timeout" else kind)
        strike(attempt.sandbox)
        return None

    def _function(self, kind: str) -> str:
        """Take the sandbox away in which the function of a dynamic pipeline runs."""
        mine = [box for box in self._yard.modal.sandboxes() if box.tags.get("zenml_run_id") == str(self._run_id)]
        running = [box.id for box in mine if not box.tags.get("zenml_step") and box.status == "running"]
        if not running:
            return "the function's sandbox is gone already"
        strike = {"evict function": self._yard.modal.evict, "lose function": self._yard.modal.lose}[kind]
        strike(running[0])
        return ""

    def _kill_flow(self, kind: str, step: str, attempt: Attempt) -> str:
        if Client().get_pipeline_run(self._run_id).status.is_finished:
            # A step has failed already: such a run isn't resumed, ZenML's replay is for that.
            return "the run has failed, so it can't be resumed"
        # Of one that was killed before its first sign of life nobody can tell that it is dead: `resume` has to wait.
        eventually(self._at_work, bool, 60)
        self._flow.kill()
        if kind == FLOW[1]:
            self._go(step, attempt)
            eventually(lambda: is_running(self._folder, step, attempt), lambda running: not running, 30)
        self._flow.go_on(self._run_id)
        if self.case.killed_again:
            self._kill_again(self.case.killed_again)
        if kind == FLOW[0]:
            eventually(self._goes_on, bool, 60)
        return ""

    def _kill_again(self, seconds: float) -> None:
        self._pause.wait(seconds)  # any moment of it is as good: while it begins, looks back, waits, or ends
        if not self._flow.alive():
            return
        self._flow.kill()
        with get_client(sync_client=True) as client:
            flow_run = client.read_flow_run(self._flow_run_id)
        if not flow_run.state.is_final():
            self._flow.lives = flow_run.run_count  # one that was killed before it had begun doesn't count
            self._flow.go_on(self._run_id, sure=True)

    def _goes_on(self) -> bool:
        """Whether the new process has begun, or has been refused: Prefect calls the flow run Running all the time."""
        with get_client(sync_client=True) as client:
            return client.read_flow_run(self._flow_run_id).run_count >= self._flow.lives or not self._flow.alive()

    def _at_work(self) -> bool:
        """Whether the newest process has given its sign of life, or has ended."""
        sign = str(Client().get_pipeline_run(self._run_id).run_metadata.get(ALIVE, ""))
        return sign.rpartition(" ")[2] == str(self._flow.lives) or not self._flow.alive()

    def _away(self, kind: str, step: str, attempt: Attempt) -> None:
        meanwhile = attempt.pid % 2 == 0
        if kind == "modal away":
            self._yard.modal.unavailable(AWAY_SECONDS)
        server = {"prefect away": self._yard.prefect, "zenml away": self._yard.zenml}.get(kind)
        if server is not None:
            server.stop(signal.SIGKILL)
        if meanwhile:
            self._go(step, attempt)
        self._pause.wait(AWAY_SECONDS)
        if server is not None:
            server.start()

    def _stop(self, kind: str) -> str:
        if kind == "interrupt":
            # Ctrl-C while `modal-prefect resume` only looks what there is ends that command, and nothing of the run.
            eventually(self._at_work, bool, 60)
            if not self._flow.alive():
                return "the flow's process has ended"
            self._flow.signal(signal.SIGINT if self.case.seed % 2 else signal.SIGTERM)
        elif kind == "cancel":
            with get_client(sync_client=True) as client:
                answer = client.set_flow_run_state(self._flow_run_id, Cancelling())
            if answer.status is not SetStateStatus.ACCEPT:
                return f"Prefect: {answer.details}"
        else:
            try:
                run_utils.stop_run(run=Client().get_pipeline_run(self._run_id), graceful=False)
            except IllegalOperationError as error:
                return str(error)
        return ""
