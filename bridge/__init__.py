"""The bridge that runs ZenML pipelines as Prefect flows in Modal sandboxes."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from bridge.settings import ModalPrefectOrchestratorSettings, ModalPrefectStepOperatorSettings

__all__ = ["ModalPrefectOrchestratorSettings", "ModalPrefectStepOperatorSettings"]


def __getattr__(name: str) -> object:
    # Only when asked for: importing the settings imports ZenML, and a sandbox that needs `bridge.plan` alone
    # shouldn't wait seconds for that.
    if name in __all__:
        from bridge import settings

        return getattr(settings, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
