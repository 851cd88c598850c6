"""A Modal volume that several steps share, as a cache of models does."""

from __future__ import annotations

import pytest

from tests.integration.lab import Lab


@pytest.mark.slow
@pytest.mark.parametrize("backend", ["v2", "v1"])
def test_what_a_step_wrote_is_there_for_those_after_it(lab: Lab, backend: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also where warm sandboxes are on: a volume is written back when its sandbox ends, and read when one starts."""
    import cached

    monkeypatch.setenv("MODAL_SANDBOX_V2", "0" if backend == "v1" else "1")
    settings = {"execution_mode": "per_step", "volumes": {"/cache": "models"}}
    ran = lab.run(cached.cached, lab.stack("modal"), settings=settings)
    assert ran.error is None
    assert ran.run.steps["read"].output.load() == ["weights of left", "weights of right"]
    assert (lab.modal.volume("models") / "left").read_text() == "weights of left"
    assert len({box.id for box in lab.sandboxes(ran)}) == 3


READS = {"orchestrator": {"volumes": {"/cache": "read:ro"}}}


@pytest.mark.slow  # tests/contract/test_modal_runner.py reloads one
@pytest.mark.parametrize(("backend", "hold"), [("v2", False), ("v1", False), ("v2", True)])
def test_steps_that_only_read_take_turns(lab: Lab, backend: str, hold: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """The second sees what was written since the first, in the same sandbox; in a new one where a file is left open."""
    import cached

    monkeypatch.setenv("MODAL_SANDBOX_V2", "0" if backend == "v1" else "1")
    for file in lab.modal.volume("read").iterdir():
        file.unlink()
    settings = {"execution_mode": "per_step", "volumes": {"/cache": "read"}}
    reads = {"settings": READS}
    ran = lab.run(
        cached.read_again,
        lab.stack("modal"),
        settings=settings,
        options={"steps": {"look": reads, "look_again": reads}},
        hold=hold,
    )
    assert ran.error is None
    assert ran.run.steps["look"].output.load() == ["weights of one"]
    assert ran.run.steps["look_again"].output.load() == ["weights of one", "weights of two"]
    (first,), (second,) = ran.traces("look"), ran.traces("look_again")
    assert (first["sandbox"] == second["sandbox"]) is not hold
    assert dict(lab.modal.sandbox(first["sandbox"]).volumes) == {"/cache": "read, read-only"}
