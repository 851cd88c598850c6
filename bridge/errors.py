"""The errors of this package.

::

    BridgeError
    ├── InvalidSettings       the user's input can't be honoured: field, value, and what to do
    │   └── NotTranslatable   something in the snapshot has no meaning here
    ├── RunNotPossible        the run can't start as things are: no such snapshot, owned by another flow
    │   └── RunIsOver         ZenML's run has ended, and nothing goes on with it
    ├── RunFailed             the run started and failed; carries the diagnosis
    ├── RunStopped            the run was stopped or cancelled
    ├── PrefectUnavailable    Prefect's API couldn't be asked: says nothing about any run
    └── RunnerError
        ├── RunnerUnavailable the runner couldn't be asked: says nothing about any sandbox
        ├── CapacityUnavailable  no machine for a sandbox within ``capacity_timeout``
        ├── SandboxRefused    the request is wrong and would be refused again
        ├── ImageNotBuilt     Modal could not build an image; ends with the output of the command that failed
        └── CredentialsRefused   the runner's credentials are missing or wrong
"""

from __future__ import annotations


def how_to_replay(run_id: object) -> str:
    """What to type to run what is left of a ZenML run in a new one. ZenML has no command for it, and its server
    replays no run of a custom flavour: the pipeline's own code does."""
    return f"`<pipeline>.replay(pipeline_run='{run_id}', skip_successful_steps=True)` in Python"


class BridgeError(Exception):
    """Anything this package raises on purpose."""


class InvalidSettings(BridgeError, ValueError):
    """A setting can't be honoured. The message names the field, its value, and the fix."""

    def __init__(self, where: str, value: object, problem: str, fix: str) -> None:
        super().__init__(f"{where}={value!r}: {problem.rstrip('.')}. {fix.rstrip('.')}.")
        self.where = where
        self.value = value
        self.problem = problem
        self.fix = fix

    def __reduce__(self) -> tuple[type[InvalidSettings], tuple[str, object, str, str]]:
        # Prefect sends exceptions between processes; an exception is made again of its arguments.
        return type(self), (self.where, self.value, self.problem, self.fix)


class NotTranslatable(InvalidSettings):
    """Something in a snapshot has no translation."""


class RunNotPossible(BridgeError):
    """The run can't start, and nothing of it was started."""


class RunIsOver(RunNotPossible):
    """ZenML's run ``run_id`` has ended. ``stopped`` says whether it was stopped, rather than failed."""

    def __init__(self, message: str, run_id: str, stopped: bool) -> None:
        super().__init__(message)
        self.run_id = run_id
        self.stopped = stopped

    def __reduce__(self) -> tuple[type[RunIsOver], tuple[str, str, bool]]:
        return type(self), (str(self), self.run_id, self.stopped)


class RunFailed(BridgeError, RuntimeError):
    """A run failed. The message is the diagnosis of its first failed step."""


class RunStopped(BridgeError, RuntimeError):
    """A run was stopped before its end."""


class PrefectUnavailable(BridgeError):
    """Prefect's API couldn't be asked, or refused to answer. Nothing is known of any run, nothing has failed by it."""


class RunnerError(BridgeError):
    """Anything a runner raises."""


class RunnerUnavailable(RunnerError):
    """The runner couldn't be asked. Nothing is known, nothing has failed: ask again."""


class CapacityUnavailable(RunnerError):
    """No machine of the kind that was asked for came free in time."""


class SandboxRefused(RunnerError):
    """The request is wrong: the same request would be refused again."""


class ImageNotBuilt(RunnerError):
    """An image can't be built as it is asked for. The message ends with the output of the command that failed."""


class CredentialsRefused(SandboxRefused):
    """The runner's credentials are missing or wrong."""
