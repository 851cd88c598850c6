"""What ZenML has answered one process of a step host, passed on to the others as files. Standard library only.

A run that has begun and a step run that has succeeded needn't be asked for again by whoever needs them next: the host
about the step's end, and the processes of later steps. Of the kinds that are kept nothing changes any more but what
their readers (:mod:`bridge.host.run_of_step`) ask for all the same. A file that isn't there, or can't be read, means
that ZenML is asked.

Code of the user's in a step's process could write these files as well. It could tell ZenML the same, with the run's
token, which is in its environment; so nothing is believed here that it couldn't make true.
"""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Callable
from contextlib import suppress
from hashlib import sha256
from pathlib import Path

from bridge.flow_run.outcome import Reported, StepRecord

RUN = "run"
_logger = logging.getLogger(__name__)


class PassedOn:
    """The files of one step host, in a folder that exists. What is in them is JSON, as ZenML's server sent it."""

    def __init__(self, folder: str) -> None:
        self._folder = Path(folder)

    def of(self, step: str | None) -> bytes | None:
        """The step run of a step that succeeded, or the run, which is None's; None where it can't be read here."""
        try:
            return self._path(step).read_bytes()
        except FileNotFoundError:
            return None  # nobody has passed it on
        except OSError as error:
            _logger.info("What another step passed on can't be read, so ZenML is asked: %s", error)
            return None

    def keep(self, step: str | None, told: Callable[[], str]) -> None:
        """Pass it on, unless somebody has, or there is no room."""
        path = self._path(step)
        if not path.exists():
            _write(path, told())

    def _path(self, step: str | None) -> Path:
        # A step's name may be longer than a file's, and hold what a file's can't.
        return self._folder / (RUN if step is None else sha256(step.encode()).hexdigest())


def tell_end(path: str, record: StepRecord) -> None:
    """Pass on to the host what ZenML answered to the end of a step, unless there is no room."""
    _write(Path(path), json.dumps(as_json(record)))


def told_end(path: str) -> StepRecord | None:
    """What :func:`tell_end` wrote, which is gone then; None where nothing can be read."""
    try:
        text = Path(path).read_text()
        os.unlink(path)
        return record_of(json.loads(text))
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:
        _logger.info("What a step passed on of its end can't be read, so ZenML is asked: %s", error)
        return None


def as_json(record: StepRecord) -> dict[str, str | int | None]:
    """What :func:`record_of` reads."""
    return {"reported": record.reported.value, "step_run_id": record.step_run_id, "version": record.version}


def record_of(said: object) -> StepRecord:
    """Read a record from JSON. Raises ``ValueError`` where it is none."""
    if not isinstance(said, dict):
        raise ValueError(f"not a record: {said!r}")
    step_run_id, version = said.get("step_run_id"), said.get("version")
    if not isinstance(step_run_id, str) or not isinstance(version, int):
        raise ValueError(f"not a record: {said!r}")
    return StepRecord(Reported(said.get("reported")), step_run_id, version)


def _write(path: Path, text: str) -> None:
    """Write a file that is there whole or not at all: whoever writes it may be killed, and a disk be full."""
    unfinished = path.with_name(f"{path.name}.{os.getpid()}")
    try:
        unfinished.write_text(text)
        os.replace(unfinished, path)
    except OSError as error:
        _logger.info("What ZenML has answered can't be passed on, so it will be asked again: %s", error)
        with suppress(OSError):
            unfinished.unlink(missing_ok=True)
