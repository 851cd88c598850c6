"""What each end of an attempt costs: the one table of the tests.

`test_ends.py` and `test_dynamic_ends.py` let these ends happen, and `tests/docs/test_semantics.py` compares the table
with that of `docs/semantics.md`.
"""

from __future__ import annotations

from dataclasses import dataclass

from bridge.flow_run.outcome import Cost


@dataclass(frozen=True)
class Ends:
    """``row`` is how `docs/semantics.md` calls the end, ``per_step`` and ``pipeline`` what it costs in these modes."""

    row: str
    per_step: Cost
    pipeline: Cost


ENDS = {
    "exit_late": Ends("ZenML has it completed, whatever the exit code", Cost.NOTHING, Cost.NOTHING),
    "exception": Ends("the step raised an exception", Cost.OWN_RETRY, Cost.OWN_RETRY),
    "exit": Ends("the process exited on its own, with 0 or not, without a report", Cost.OWN_RETRY, Cost.OWN_RETRY),
    "kill": Ends("the process was killed by a signal", Cost.OWN_RETRY, Cost.OWN_RETRY),
    "oom": Ends("out of memory", Cost.OWN_RETRY, Cost.OWN_RETRY),
    "timeout": Ends("timeout", Cost.OWN_RETRY, Cost.EVERYTHING),
    "terminate": Ends("terminated by somebody outside the run", Cost.OWN_RETRY, Cost.OWN_RETRY),
    "evict": Ends("evicted, lost", Cost.INFRASTRUCTURE_RETRY, Cost.INFRASTRUCTURE_RETRY),
    "lose": Ends("evicted, lost", Cost.INFRASTRUCTURE_RETRY, Cost.INFRASTRUCTURE_RETRY),
    "never_starts": Ends(
        "never started: image pull, capacity, init failure", Cost.INFRASTRUCTURE_RETRY, Cost.INFRASTRUCTURE_RETRY
    ),
}
"""By end: ``exit_late`` is an exit with 1 after ZenML has heard of the step's success."""
STRUCK = ("kill", "oom", "terminate", "evict", "lose")
"""Those that come from outside of the sandbox, which somebody has to strike."""
