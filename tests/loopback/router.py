"""Modal's worker-side service: execs in a sandbox, and the output of sandboxes of the V2 backend."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping
from typing import Any

from grpclib import GRPCError, Status
from modal_proto import task_command_router_pb2 as proto

from tests.loopback import rules
from tests.loopback.process import Output
from tests.loopback.sandbox import Execution, LoopbackSandbox
from tests.loopback.world import World

Metadata = Mapping[str, str]


class Router:
    """The RPCs of ``TaskCommandRouter``."""

    def __init__(self, world: World) -> None:
        self.world = world

    async def SandboxStdioReadV2(
        self, request: proto.SandboxStdioReadV2Request, metadata: Metadata
    ) -> AsyncIterator[proto.SandboxStdioReadV2Response]:
        sandbox = self.world.by_task(request.task_id)
        errors = request.file_descriptor == proto.SANDBOX_STDIO_FILE_DESCRIPTOR_STDERR
        output = sandbox.stderr if errors else sandbox.stdout
        # modal/io_streams.py: an empty message is an error; `starting_offset` is new in SDK 1.5.
        has_offset = "starting_offset" in proto.SandboxStdioReadV2Response.DESCRIPTOR.fields_by_name
        async for offset, data in self._read(output, request.offset):
            extra = {"starting_offset": offset} if has_offset else {}
            yield proto.SandboxStdioReadV2Response(data=data, **extra)

    async def _read(self, output: Output, offset: int) -> AsyncIterator[tuple[int, bytes]]:
        faults = self.world.faults
        async for start, data in output.read(offset):
            if faults.stream_delay:
                await asyncio.sleep(faults.stream_delay)
            yield start, data
            if faults.broken_streams > 0:
                faults.broken_streams -= 1
                raise GRPCError(Status.UNAVAILABLE, "the stream broke: injected by the test")

    async def SandboxStdinWriteV2(
        self, request: proto.SandboxStdinWriteV2Request, metadata: Metadata
    ) -> proto.SandboxStdinWriteV2Response:
        process = await self._running(request.task_id).running()
        process.write(request.data, request.eof)
        return proto.SandboxStdinWriteV2Response()

    async def TaskExecStart(
        self, request: proto.TaskExecStartRequest, metadata: Metadata
    ) -> proto.TaskExecStartResponse:
        sandbox = self._running(request.task_id)
        if request.exec_id in sandbox.executions:
            return proto.TaskExecStartResponse()  # the SDK repeats it with one id
        environment = dict(request.env)
        for source in getattr(request, "secret_sources", ()):
            if source.WhichOneof("source") == "secret_id":
                environment.update(self.world.secrets[source.secret_id].values)
            else:
                environment.update(source.env.contents)
        for secret_id in request.secret_ids:
            environment.update(self.world.secrets[secret_id].values)
        try:
            execution = await sandbox.execute(request.exec_id, tuple(request.command_args), environment)
        except OSError as error:
            raise rules.not_found(f"failed to start {request.command_args[0]!r}: {error}") from error
        task = asyncio.create_task(self._live(execution, request.timeout_secs or None))
        self.world.tasks.add(task)
        task.add_done_callback(self.world.tasks.discard)
        return proto.TaskExecStartResponse()

    async def _live(self, execution: Execution, timeout: float | None) -> None:
        try:
            execution.code = await asyncio.wait_for(execution.process.wait(), timeout)
        except asyncio.TimeoutError:
            execution.code = -9
        await execution.process.finish()
        execution.finished.set()

    def _running(self, task_id: str) -> LoopbackSandbox:
        sandbox = self.world.by_task(task_id)
        if sandbox.is_ending:
            raise rules.not_found(f"Task {task_id} has ended")
        return sandbox

    def _execution(self, task_id: str, exec_id: str) -> Execution:
        executions = self.world.by_task(task_id).executions
        if exec_id not in executions:
            raise rules.not_found(f"Exec {exec_id} not found")
        return executions[exec_id]

    async def TaskExecStdioRead(
        self, request: proto.TaskExecStdioReadRequest, metadata: Metadata
    ) -> AsyncIterator[proto.TaskExecStdioReadResponse]:
        process = self._execution(request.task_id, request.exec_id).process
        errors = request.file_descriptor == proto.TASK_EXEC_STDIO_FILE_DESCRIPTOR_STDERR
        async for _, data in self._read(process.stderr if errors else process.stdout, request.offset):
            yield proto.TaskExecStdioReadResponse(data=data)

    async def TaskExecStdinWrite(
        self, request: proto.TaskExecStdinWriteRequest, metadata: Metadata
    ) -> proto.TaskExecStdinWriteResponse:
        self._execution(request.task_id, request.exec_id).process.write(request.data, request.eof)
        return proto.TaskExecStdinWriteResponse()

    async def TaskExecWait(self, request: proto.TaskExecWaitRequest, metadata: Metadata) -> proto.TaskExecWaitResponse:
        execution = self._execution(request.task_id, request.exec_id)
        await execution.finished.wait()
        return proto.TaskExecWaitResponse(**_exit_status(execution.code))

    async def TaskExecPoll(self, request: proto.TaskExecPollRequest, metadata: Metadata) -> proto.TaskExecPollResponse:
        execution = self._execution(request.task_id, request.exec_id)
        if not execution.finished.is_set():
            return proto.TaskExecPollResponse()
        return proto.TaskExecPollResponse(**_exit_status(execution.code))

    async def TaskReloadVolumes(self, request: Any, metadata: Metadata) -> Any:  # which SDK 1.4.3 doesn't know
        self._running(request.task_id).reload_volumes()
        return proto.TaskReloadVolumesResponse()

    async def SandboxWaitUntilReady(self, request: Any, metadata: Metadata) -> Any:
        self._running(request.task_id)
        return proto.SandboxWaitUntilReadyTcrResponse()


def _exit_status(code: int) -> dict[str, int]:
    return {"code": code} if code >= 0 else {"signal": -code}
