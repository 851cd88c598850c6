"""Talking to the step host of a sandbox on Modal: an ``exec`` of its client, whose stdout is the answer.

:mod:`bridge.host.client` is that client.
"""

from __future__ import annotations

from collections.abc import AsyncIterator

import modal

from bridge.errors import RunnerUnavailable
from bridge.runners.base import HostCall
from bridge.runners.modal_errors import SDK_ERRORS, ride_out, translated
from bridge.runners.modal_objects import PACKAGE_PATH
from bridge.runners.modal_sandbox import ModalSandbox

CLIENT_PROGRAM = f"{PACKAGE_PATH}/host/client.py"
BLIP_SECONDS = 10.0
"""How long an exec that can't be started is repeated here; the host knows a step by its key and runs it once."""
_LAST_WORDS = 500


async def talk(sandbox: ModalSandbox, call: HostCall) -> AsyncIterator[bytes]:
    """Ask, and yield the answer. Raises ``RunnerUnavailable``."""
    doing = f"The step host of sandbox {sandbox.id} can't be reached"
    secrets = [modal.Secret.from_dict(dict(call.secret_environment))] if call.secret_environment else []
    environment: dict[str, str | None] = dict(call.environment)

    async def start(handle: modal.Sandbox) -> modal.container_process.ContainerProcess[bytes]:
        return await handle.exec.aio(
            # Isolated and without site: neither the image's packages nor PYTHONPATH have a say in it.
            *("python", "-I", "-S", CLIENT_PROGRAM, call.socket, call.call.text()),
            env=environment,
            secrets=secrets,
            text=False,
        )

    async with sandbox.reached() as handle:
        try:
            process = await ride_out(lambda: start(handle), BLIP_SECONDS)
            async for data in process.stdout:
                yield data
            if await process.wait.aio() != 0:
                words = (await process.stderr.read.aio()).decode(errors="replace").strip()
                raise RunnerUnavailable(f"{doing}: {words[-_LAST_WORDS:]}")
        except SDK_ERRORS as error:
            raise RunnerUnavailable(str(translated(error, doing))) from error
