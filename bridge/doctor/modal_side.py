"""Modal: the credentials and the environment, by a real call."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator

from bridge import names
from bridge.doctor.finding import Finding, Grade, told
from bridge.doctor.patient import Patient
from bridge.errors import CredentialsRefused, RunnerUnavailable, SandboxRefused
from bridge.flow import on_own_loop
from bridge.runners import create
from bridge.runners.base import Runner
from bridge.runners.registry import RegistryCredentials
from bridge.settings import ModalPrefectOrchestratorConfig, ModalPrefectStepOperatorConfig

OUTAGE_SECONDS = 5.0
"""How long Modal may be away: who asks how things are wants to hear that it is."""
PATIENCE_SECONDS = 30.0
"""The SDK alone tries for 56 s to connect."""
_ACCOUNT = "Run `modal setup`, or set `--token_id` and `--token_secret` on the component"


def credentials(patient: Patient) -> Iterator[Finding]:
    """Whether Modal takes the credentials, and has the environment that the component names."""
    check, config = "modal", patient.config
    if config.runner == "process":
        yield Finding(check, Grade.OK, "not used: sandboxes are local processes, which need no account")
        return
    environment = modal_environment(config)
    # A worker has an account of its own, unless the component brings one.
    workers = isinstance(config, ModalPrefectOrchestratorConfig) and config.work_pool and not config.token_id
    try:
        on_own_loop(lambda: _ask(runner_of(patient, None), environment))
    except CredentialsRefused as error:
        if workers:
            what = "this machine has no Modal account; the worker needs one"
            yield Finding(
                check, Grade.NOTE, what, f"To look at Modal from here too: {_ACCOUNT[0].lower()}{_ACCOUNT[1:]}"
            )
        else:
            yield told(check, Grade.PROBLEM, str(error), _ACCOUNT)
    except SandboxRefused as error:
        fix = f"modal environment create {environment}" if environment else "Check `modal config show`"
        yield Finding(check, Grade.PROBLEM, str(error).rstrip("."), fix)
    except (RunnerUnavailable, asyncio.TimeoutError) as error:
        what = str(error).rstrip(".") or f"Modal didn't answer within {PATIENCE_SECONDS:g} s"
        fix = "Check the network and https://status.modal.com, and MODAL_SERVER_URL if it is set"
        yield Finding(check, Grade.UNKNOWN, what, fix)
    else:
        where = f"environment `{environment}`" if environment else "the profile's environment"
        yield Finding(check, Grade.OK, f"the credentials are good; {where} is there")


def modal_environment(config: object) -> str | None:
    """The Modal environment that a component names."""
    assert isinstance(config, (ModalPrefectOrchestratorConfig, ModalPrefectStepOperatorConfig))
    return config.modal_environment


def runner_of(patient: Patient, registry: RegistryCredentials | None) -> Runner:
    """The runner of the patient's component, with little patience; ``registry`` is who pulls its images."""
    config = patient.config
    return create(
        config.runner,
        token_id=config.token_id,
        token_secret=config.token_secret,
        registry_credentials=registry,
        outage=OUTAGE_SECONDS,
    )


async def _ask(runner: Runner, environment: str | None) -> None:
    async def ask() -> None:
        async with runner:
            await runner.running({names.TAG_SANDBOX: "doctor"}, environment)  # of which there is none: the call counts

    await asyncio.wait_for(ask(), PATIENCE_SECONDS)
