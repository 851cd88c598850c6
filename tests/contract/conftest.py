from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.contract.modal_lab import BACKENDS, ENVIRONMENTS, IMAGES, SECRETS, VOLUMES
from tests.loopback import LoopbackModal


@pytest.fixture(params=BACKENDS)
def backend(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """The backend that sandboxes without a GPU go to: the SDK reads the variable at each create."""
    monkeypatch.setenv("MODAL_SANDBOX_V2", "1" if request.param == "v2" else "0")
    return str(request.param)


@pytest.fixture
def cloud(monkeypatch: pytest.MonkeyPatch) -> Iterator[LoopbackModal]:
    """A fresh Modal whose client this process is; the token is left to each test."""
    with LoopbackModal(IMAGES, secrets=SECRETS, volumes=VOLUMES, environments=ENVIRONMENTS) as modal:
        for name, value in modal.env.items():
            monkeypatch.setenv(name, value)
        yield modal


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Leave to `make test-all` the other backend of what is marked as `at` one of them, where there is another."""
    if len(BACKENDS) == 1:
        return
    for item in items:
        callspec, marker = getattr(item, "callspec", None), item.get_closest_marker("at")
        backend = callspec.params.get("backend") if callspec is not None else None
        if backend in BACKENDS and marker is not None and backend not in marker.args:
            item.add_marker(pytest.mark.slow)
