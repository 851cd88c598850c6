"""The private names of the Modal SDK that this package uses: all of them, and nothing else, are reached here.

Each stands in :data:`PRIVATE` with the reason; ``tests/contract/test_upstream_modal.py`` checks that the
installed SDK still has it. Works with modal 1.4.3 (sandboxes are one class) to 1.6 (one class for each backend).
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from typing import Any, cast

import modal
import modal.io_streams
from modal._utils import async_utils
from modal.config import config
from modal_proto import api_pb2

PRIVATE: dict[str, str] = {
    "modal._utils.async_utils.synchronizer": "to reach the object behind a public handle",
    "modal._utils.async_utils.synchronize_api": "to run our own generator on the SDK's event loop",
    "modal.config.config": "the token pair, to open more than one client with it: one client is one connection",
    "modal.io_streams._sandbox_logs_iterator": "V1 output that can be taken up again where it broke",
    "modal.Sandbox._get_task_id": "SDK 1.4 returns from create before a V1 sandbox has its machine",
    "modal_proto.api_pb2.GenericResult": "how a sandbox ended: returncode and exceptions merge six ends into two",
    "modal_proto.api_pb2.AppListRequest": "the apps of an environment: no public call lists them",
    "modal_proto.api_pb2.ImageJoinStreamingRequest": "the log of a failed build",
}
"""Dotted name -> why it is needed. Names that only some versions have are in the functions below."""

Status = api_pb2.GenericResult
KERNEL_OOM_KILL = 10
MEMORY_THRASHING_EVICTION = 9
MEMORY_MANAGER_EVICTION = 8
"""Numbers, since SDK 1.4 doesn't have their names; the server sends them to it all the same."""


# Typed views of the SDK's untyped helpers.
_inner = cast(Callable[[object], Any], async_utils.synchronizer._translate_in)
_on_sdk_loop = cast(Callable[[Callable[..., Any]], Any], async_utils.synchronize_api)


@dataclass(frozen=True, slots=True)
class Result:
    """How a sandbox ended: Modal's own status, and what it says to it."""

    status: int
    exit_code: int
    exception: str


def result_of(sandbox: modal.Sandbox) -> Result | None:
    """Return the result that the last ``wait`` or ``poll`` of this handle brought, or None while it runs."""
    inner = _inner(sandbox)
    result = inner._impl.result if hasattr(inner, "_impl") else inner._result
    if result is None or not result.status:
        return None
    return Result(result.status, result.exitcode, result.exception)


def is_v1(sandbox_id: str) -> bool:
    """Whether a sandbox belongs to the V1 backend: its id has 22 letters and digits after ``sb-``.

    The rule of ``modal/sandbox/_common.py``, ``_is_v1_sandbox_id``.
    """
    suffix = sandbox_id.removeprefix("sb-")
    return len(suffix) == 22 and suffix.isascii() and suffix.isalnum()


def token_pair() -> tuple[str, str] | None:
    """Return the token pair of Modal's own configuration, or None where it has none (OAuth, or nothing)."""
    token_id, token_secret = config.get("token_id"), config.get("token_secret")
    return (token_id, token_secret) if token_id and token_secret else None


async def scheduled(sandbox: modal.Sandbox) -> None:
    """Wait until a sandbox has its machine. Raises a Modal error if it ended before."""
    await sandbox._get_task_id.aio(raise_if_task_complete=True)


async def app_ids(client: modal.Client, environment: str | None) -> dict[str, str]:
    """Return name -> id of the apps of an environment that haven't been stopped."""
    stub = _inner(client)._stub
    request = api_pb2.AppListRequest(environment_name=environment or config.get("environment") or "")

    async def call() -> api_pb2.AppListResponse:
        return cast(api_pb2.AppListResponse, await stub.AppList(request))

    response = await _on_sdk_loop(call).aio()
    return {app.name: app.app_id for app in response.apps if app.name and app.state != api_pb2.APP_STATE_STOPPED}


async def build_log(client: modal.Client, image_id: str) -> str:
    """Return the log of a build that is over."""
    stub = _inner(client)._stub
    request = api_pb2.ImageJoinStreamingRequest(image_id=image_id, timeout=10, include_logs_for_finished=True)

    async def call() -> str:
        text = ""
        async for response in stub.ImageJoinStreaming.unary_stream(request):
            text += "".join(log.data for log in response.task_logs)
            if response.result.status or response.eof:
                break
        return text

    return cast(str, await _on_sdk_loop(call).aio())


def read_output(sandbox: modal.Sandbox, file_descriptor: int, position: str) -> AsyncIterator[tuple[bytes, str]]:
    """Yield the bytes of stdout (1) or stderr (2) from ``position`` on, each with the position after it.

    The SDK's own streams decode strictly (one bad byte ends them) and hold a line until its end comes, however
    long it is. Positions are opaque; "" is the start. Raises what the SDK raises.
    """
    return cast(AsyncIterator[tuple[bytes, str]], _read_output.aio(sandbox, file_descriptor, position))


async def _read_output_on_sdk_loop(sandbox: Any, file_descriptor: int, position: str) -> Any:
    streams = modal.io_streams
    reader = _inner(sandbox._stdout if file_descriptor == 1 else sandbox._stderr)
    parameters = getattr(reader._impl, "_params", None)
    if parameters is not None:  # V2: from the worker, by byte offset
        source = streams._stdio_stream_from_command_router(parameters, int(position or 0))
        async for data, offset in source:
            yield data, str(offset)
        return
    entry_id = position
    while True:  # V1: from the control plane, in requests of 55 s, by entry id
        items = streams._sandbox_logs_iterator(sandbox.object_id, file_descriptor, entry_id, sandbox._client)
        async for text, entry_id in items:
            if text is None:
                return
            if text:
                yield text, entry_id


_read_output = _on_sdk_loop(_read_output_on_sdk_loop)
