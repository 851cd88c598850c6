"""Which differences between submitter and worker stop a run, and which are only said."""

from __future__ import annotations

import pytest

from bridge.errors import RunNotPossible
from bridge.versions import check_zenml, other_bridge
from tests.unit.snapshots import StepInput, snapshot

GIVEN = snapshot({"train": StepInput()})
"""Made by ZenML 0.98.0."""


@pytest.mark.parametrize("here", ["0.99.0", "0.97.3", "1.98.0"])
def test_zenml_of_another_series_is_refused(here: str) -> None:
    with pytest.raises(RunNotPossible) as caught:
        check_zenml(GIVEN, here)
    assert f"snapshot_id={GIVEN.id}" in str(caught.value)
    assert f"ZenML {here} is installed" in str(caught.value)
    assert 'pip install "zenml==0.98.0"' in str(caught.value)


@pytest.mark.parametrize("here", ["0.98.0", "0.98.7", "0.98.1rc1"])
def test_zenml_of_the_same_series_is_not(here: str) -> None:
    check_zenml(GIVEN, here)


def test_another_bridge_is_said() -> None:
    warning = other_bridge("0.3.0", "0.2.1")
    assert warning is not None
    assert "0.3.0" in warning
    assert "0.2.1" in warning
    assert "pip install zenml-modal-prefect==0.3.0" in warning


@pytest.mark.parametrize("deployed", [None, "0.2.1", "3f9c2ab", "main", "release-7"])
def test_the_same_bridge_and_a_users_own_versions_say_nothing(deployed: str | None) -> None:
    assert other_bridge(deployed, "0.2.1") is None
