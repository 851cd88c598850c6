"""Where sandboxes run: ``modal``, ``process``, ``scripted``."""

from __future__ import annotations

from bridge.plan import RunnerKind
from bridge.runners.base import OUTAGE_SECONDS, Runner
from bridge.runners.registry import Registry


def create(
    kind: RunnerKind,
    *,
    token_id: str | None = None,
    token_secret: str | None = None,
    registry: Registry | None = None,
    create_rate: float = 4.0,
    outage: float = OUTAGE_SECONDS,
) -> Runner:
    """Make the runner that a stack's orchestrator is configured for.

    Args:
        kind: The orchestrator's ``runner``.
        token_id: Modal token; without the pair Modal's own configuration is used.
        token_secret: Modal token.
        registry: A container registry whose images need a user and a password.
        create_rate: Most sandboxes created per second.
        outage: Seconds that Modal may be away before the runner says so.
    """
    if kind == "modal":
        from bridge.runners.modal import ModalRunner  # the Modal SDK takes a second to import

        return ModalRunner(
            token_id=token_id,
            token_secret=token_secret,
            registry=registry,
            create_rate=create_rate,
            outage=outage,
        )
    from bridge.runners.process import ProcessRunner

    return ProcessRunner()
