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
