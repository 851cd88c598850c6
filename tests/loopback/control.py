"""Modal's control plane: apps, secrets, images, volumes, and sandboxes on both backends (V1 and V2 RPCs)."""

from __future__ import annotations

import asyncio
import base64
import codecs
import json
import time
from collections import Counter
from collections.abc import AsyncIterator, Mapping
from decimal import Decimal
from typing import Any

from google.protobuf import empty_pb2
from grpclib import GRPCError, Status
from modal_proto import api_pb2

from tests.loopback import rules
from tests.loopback.images import BuildUnsupported, BuiltImage
from tests.loopback.sandbox import LoopbackSandbox, Result
from tests.loopback.world import App, Secret, World, new_id

Metadata = Mapping[str, str]
BUILDER_VERSION = "2025.06"
LIST_PAGE = 100
PRICE = Decimal("0.25")
"""What a sandbox costs here, in dollars."""
RATES = {
    "cpu_hour_cost": "0.0473",
    "cpu_hour_cost_sandbox": "0.1419",
    "mem_gib_hour_cost": "0.008",
    "mem_gib_hour_cost_sandbox": "0.024",
    "gpu_hour_cost_a100_40gb": "2.1",
    "gpu_hour_cost_h100": "3.95",
    "volume_storage_gib_month_cost": "0.09",
}
"""Some of what `modal billing rates --json` printed for users in autumn 2026: names for sure, numbers for the tests."""
CREATE_IF_MISSING = api_pb2.OBJECT_CREATION_TYPE_CREATE_IF_MISSING
ANONYMOUS = (
    api_pb2.OBJECT_CREATION_TYPE_ANONYMOUS_OWNED_BY_APP,
    api_pb2.OBJECT_CREATION_TYPE_EPHEMERAL,
)


def jwt(subject: str) -> str:
    """A token that says when it expires; nobody checks its signature (modal/_utils/auth_token_manager.py)."""
    claims = {"sub": subject, "exp": time.time() + 3600}
    parts = ({"alg": "none"}, claims)
    encoded = [base64.urlsafe_b64encode(json.dumps(part).encode()).rstrip(b"=").decode() for part in parts]
    return ".".join([*encoded, "loopback"])


class Objects:
    """The RPCs about everything but sandboxes."""

    def __init__(self, world: World) -> None:
        self.world = world
        self._building = asyncio.Lock()

    async def ClientHello(self, request: Any, metadata: Metadata) -> api_pb2.ClientHelloResponse:
        return api_pb2.ClientHelloResponse(image_builder_version=BUILDER_VERSION)

    async def AuthTokenGet(self, request: Any, metadata: Metadata) -> api_pb2.AuthTokenGetResponse:
        return api_pb2.AuthTokenGetResponse(token=jwt("client"))

    async def WorkspaceNameLookup(self, request: Any, metadata: Metadata) -> api_pb2.WorkspaceNameLookupResponse:
        return api_pb2.WorkspaceNameLookupResponse(username="loopback")

    async def WorkspaceBillingRates(self, request: Any, metadata: Metadata) -> Any:
        return api_pb2.WorkspaceBillingRatesResponse(rates=RATES)

    async def EnvironmentGetOrCreate(
        self, request: api_pb2.EnvironmentGetOrCreateRequest, metadata: Metadata
    ) -> api_pb2.EnvironmentGetOrCreateResponse:
        name = self.world.environment(request.deployment_name)
        settings = api_pb2.EnvironmentSettings(image_builder_version=BUILDER_VERSION)
        return api_pb2.EnvironmentGetOrCreateResponse(
            environment_id=f"en-{name}", metadata=api_pb2.EnvironmentMetadata(name=name, settings=settings)
        )

    async def AppGetOrCreate(
        self, request: api_pb2.AppGetOrCreateRequest, metadata: Metadata
    ) -> api_pb2.AppGetOrCreateResponse:
        environment = self.world.environment(request.environment_name)
        rules.check_name(request.app_name, "App")
        for app in self.world.apps.values():
            if (app.name, app.environment) == (request.app_name, environment):
                return api_pb2.AppGetOrCreateResponse(app_id=app.id)
        if request.object_creation_type != CREATE_IF_MISSING:
            raise rules.not_found(f"App {request.app_name!r} not found")
        app = App(new_id("ap"), request.app_name, environment)
        self.world.apps[app.id] = app
        return api_pb2.AppGetOrCreateResponse(app_id=app.id)

    async def AppList(self, request: api_pb2.AppListRequest, metadata: Metadata) -> api_pb2.AppListResponse:
        environment = self.world.environment(request.environment_name, metadata.get("x-modal-token-id", ""))
        item = api_pb2.AppListResponse.AppListItem
        apps = [app for app in self.world.apps.values() if app.environment == environment]
        return api_pb2.AppListResponse(
            apps=[
                item(app_id=app.id, name=app.name, description=app.name, state=api_pb2.APP_STATE_DEPLOYED)
                for app in apps
            ]
        )

    async def AppStop(self, request: api_pb2.AppStopRequest, metadata: Metadata) -> empty_pb2.Empty:
        app = self.world.app(request.app_id)
        for sandbox in self.world.sandboxes.values():
            if sandbox.app_id == app.id:
                sandbox.end(Result.GENERIC_STATUS_TERMINATED)
        del self.world.apps[app.id]
        return empty_pb2.Empty()

    async def SecretGetOrCreate(
        self, request: api_pb2.SecretGetOrCreateRequest, metadata: Metadata
    ) -> api_pb2.SecretGetOrCreateResponse:
        self.world.environment(request.environment_name)
        if request.object_creation_type in ANONYMOUS:
            secret = Secret(new_id("st"), "", dict(request.env_dict))
            self.world.secrets[secret.id] = secret
            return _secret_response(secret)
        for secret in self.world.secrets.values():
            if secret.name == request.deployment_name:
                missing = [key for key in request.required_keys if key not in secret.values]
                if missing:
                    # modal/secret.py, from_name: "the server asserts these keys exist on the Secret".
                    raise rules.not_found(f"Secret is missing key(s): {', '.join(missing)}")
                return _secret_response(secret)
        raise rules.not_found(f"Secret {request.deployment_name!r} not found")

    async def VolumeGetOrCreate(
        self, request: api_pb2.VolumeGetOrCreateRequest, metadata: Metadata
    ) -> api_pb2.VolumeGetOrCreateResponse:
        self.world.environment(request.environment_name)
        volume = next((v for v in self.world.volumes.values() if v.name == request.deployment_name), None)
        if volume is None:
            if request.object_creation_type not in (CREATE_IF_MISSING, *ANONYMOUS):
                raise rules.not_found(f"Volume {request.deployment_name!r} not found")
            volume = self.world.add_volume(request.deployment_name)
        return api_pb2.VolumeGetOrCreateResponse(
            volume_id=volume.id, version=1, metadata=api_pb2.VolumeMetadata(version=1, name=volume.name)
        )

    async def MountBatchedCheckExistence(self, request: Any, metadata: Metadata) -> Any:
        missing = [digest for digest in request.sha256_hex_hashes if not self.world.images.has(digest)]
        return api_pb2.MountBatchedCheckExistenceResponse(missing_sha256_hex_hashes=missing)

    async def MountPutFile(
        self, request: api_pb2.MountPutFileRequest, metadata: Metadata
    ) -> api_pb2.MountPutFileResponse:
        # SDK 1.4 asks with this RPC whether a file exists: then it has neither data nor a blob.
        if request.WhichOneof("data_oneof") == "data":
            try:
                self.world.images.put(request.sha256_hex, request.data)
            except ValueError as error:
                # modal/_utils/blob_utils.py, FileUploadSpec: a file goes by the hash of its content.
                raise rules.invalid(str(error)) from error
        return api_pb2.MountPutFileResponse(exists=self.world.images.has(request.sha256_hex))

    async def MountGetOrCreate(
        self, request: api_pb2.MountGetOrCreateRequest, metadata: Metadata
    ) -> api_pb2.MountGetOrCreateResponse:
        mount = self.world.images.mount(request.files)
        handle = api_pb2.MountHandleMetadata(content_checksum_sha256_hex=mount.id)
        return api_pb2.MountGetOrCreateResponse(mount_id=mount.id, handle_metadata=handle)

    async def ImageGetOrCreate(
        self, request: api_pb2.ImageGetOrCreateRequest, metadata: Metadata
    ) -> api_pb2.ImageGetOrCreateResponse:
        self.world.app(request.app_id)
        images = self.world.images
        async with self._building:
            known = images.known(request.image)
            if known is not None and not request.force_build:
                return api_pb2.ImageGetOrCreateResponse(image_id=known.id, result=_build_result(known))
            secrets: dict[str, str] = {}
            for secret_id in request.image.secret_ids:
                secrets |= self._secret(secret_id).values
            try:
                image = await asyncio.to_thread(images.build, request.image, self._credentials(request.image), secrets)
            except BuildUnsupported as error:
                raise GRPCError(Status.UNIMPLEMENTED, str(error)) from error
        return api_pb2.ImageGetOrCreateResponse(image_id=image.id)  # "building": the client joins it

    def _credentials(self, image: api_pb2.Image) -> tuple[str, str] | None:
        config = image.image_registry_config
        if not config.secret_id:
            return None
        values = self.world.secrets[config.secret_id].values
        return values.get("REGISTRY_USERNAME", ""), values.get("REGISTRY_PASSWORD", "")

    async def ImageJoinStreaming(
        self, request: api_pb2.ImageJoinStreamingRequest, metadata: Metadata
    ) -> AsyncIterator[api_pb2.ImageJoinStreamingResponse]:
        image = self._image(request.image_id)
        log = api_pb2.TaskLogs(data=image.log, file_descriptor=api_pb2.FILE_DESCRIPTOR_STDOUT)
        yield api_pb2.ImageJoinStreamingResponse(task_logs=[log], entry_id="1")
        yield api_pb2.ImageJoinStreamingResponse(result=_build_result(image), eof=True)

    async def ImageFromId(self, request: api_pb2.ImageFromIdRequest, metadata: Metadata) -> api_pb2.ImageFromIdResponse:
        return api_pb2.ImageFromIdResponse(image_id=self._image(request.image_id).id)

    def _secret(self, secret_id: str) -> Secret:
        if secret_id not in self.world.secrets:
            raise rules.not_found(f"Secret {secret_id} not found")
        return self.world.secrets[secret_id]

    def _image(self, image_id: str) -> BuiltImage:
        if image_id not in self.world.images.built:
            raise rules.not_found(f"Image {image_id} not found")
        return self.world.images.built[image_id]


def _secret_response(secret: Secret) -> api_pb2.SecretGetOrCreateResponse:
    response = api_pb2.SecretGetOrCreateResponse(secret_id=secret.id)
    response.metadata.name = secret.name
    if hasattr(response.metadata, "keys"):  # newer SDKs infer a registry's kind of credentials from them
        response.metadata.keys.extend(secret.values)
    return response


def _build_result(image: BuiltImage) -> api_pb2.GenericResult:
    failed = image.failure is not None
    return Result(status=Result.GENERIC_STATUS_FAILURE if failed else Result.GENERIC_STATUS_SUCCESS)


class Control(Objects):
    """All of the control plane."""

    def __init__(self, world: World, router_url: str) -> None:
        super().__init__(world)
        self._router_url = router_url

    # Creating.

    async def SandboxCreate(
        self, request: api_pb2.SandboxCreateRequest, metadata: Metadata
    ) -> api_pb2.SandboxCreateResponse:
        values: dict[str, str] = {}
        for secret_id in request.definition.secret_ids:
            values.update(self._secret(secret_id).values)
        sandbox = await self._create(1, request, values, metadata)
        return api_pb2.SandboxCreateResponse(sandbox_id=sandbox.id)

    async def SandboxCreateV2(self, request: Any, metadata: Metadata) -> api_pb2.SandboxCreateV2Response:
        # modal/sandbox/_impl_v2.py, create: "GPUs … are not supported by V2 Sandboxes".
        if request.definition.resources.gpu_config.gpu_type:
            raise rules.invalid("GPUs are not supported by V2 Sandboxes")
        sandbox = await self._create(2, request, self._v2_environment(request), metadata)
        # The answer says where the sandbox runs: it can't come before that is known.
        await sandbox.placed_or_ended()
        response = api_pb2.SandboxCreateV2Response(sandbox_id=sandbox.id, task_id=sandbox.task_id)
        if hasattr(response, "command_router_access"):
            response.command_router_access.CopyFrom(
                api_pb2.CommandRouterAccess(url=self._router_url, jwt=jwt(sandbox.task_id))
            )
        return response

    def _v2_environment(self, request: Any) -> dict[str, str]:
        values: dict[str, str] = {}
        # Newer than 1.6.0: one list in order (modal/secret.py, _secret_sources). 1.6.0: ids, and one map for the rest.
        sources = list(getattr(request, "secret_sources", ()))
        for source in sources:
            by_id = source.WhichOneof("source") == "secret_id"
            values.update(self._secret(source.secret_id).values if by_id else dict(source.env.contents))
        if not sources:
            for secret_id in request.definition.secret_ids:
                values.update(self._secret(secret_id).values)
            values.update(getattr(request, "ephemeral_secrets", api_pb2.StringMap()).contents)
        return values

    async def _create(
        self, backend: int, request: Any, values: Mapping[str, str], metadata: Metadata
    ) -> LoopbackSandbox:
        # A client that goes away in the middle doesn't undo what it asked for.
        task = asyncio.create_task(self._create_to_the_end(backend, request, values, metadata))
        self.world.creating.add(task)
        task.add_done_callback(self.world.creating.discard)
        return await asyncio.shield(task)

    async def _create_to_the_end(
        self, backend: int, request: Any, values: Mapping[str, str], metadata: Metadata
    ) -> LoopbackSandbox:
        faults, world = self.world.faults, self.world
        # modal/_utils/grpc_utils.py, _retry_transient_errors: all attempts of one call carry one key.
        key = metadata.get("x-idempotency-key", "")
        if faults.create_delay:
            await asyncio.sleep(faults.create_delay)
        if faults.create_errors:
            raise GRPCError(faults.create_errors.popleft(), "create failed: injected by the test")
        if key and key in world.by_key:
            sandbox = world.sandbox(world.by_key[key])
        else:
            if faults.throttled():
                # The words that users report; github.com/thinking-machines-lab/tinker-cookbook issue 302.
                raise GRPCError(Status.RESOURCE_EXHAUSTED, "Sandbox creation rate limit exceeded")
            sandbox = self._checked_create(backend, request, values)
            world.by_key[key] = sandbox.id
        if faults.lost_replies > 0:
            faults.lost_replies -= 1
            raise GRPCError(Status.UNAVAILABLE, "the reply was lost: injected by the test")
        return sandbox

    def _checked_create(self, backend: int, request: Any, values: Mapping[str, str]) -> LoopbackSandbox:
        world, definition = self.world, request.definition
        app = world.app(request.app_id)
        rules.check_definition(definition)
        tags = {tag.tag_name: tag.tag_value for tag in getattr(request, "tags", ())}
        rules.check_tags(tags)
        if backend == 2 and self.world.faults.refuse_when_full and not world.has_place("", 0):
            # What Modal really says then isn't known; this is what modal/sandbox/_impl_v1.py raises for V1.
            raise GRPCError(Status.RESOURCE_EXHAUSTED, "Insufficient capacity to create sandbox.")
        image = self._image(definition.image_id)
        if image.failure is not None:
            # modal/_image.py, _load: who makes sandboxes waits for the build, and raises its failure.
            raise GRPCError(Status.FAILED_PRECONDITION, f"Image {image.id} wasn't built")
        for mount in definition.volume_mounts:
            if mount.volume_id not in world.volumes:
                raise rules.not_found(f"Volume {mount.volume_id} not found")
        rules.check_volumes([mount.volume_id for mount in definition.volume_mounts])
        if definition.name and world.named(app, definition.name) is not None:
            # modal.com/docs/guide/sandboxes, "Named Sandboxes": unique among an app's running ones.
            raise GRPCError(Status.ALREADY_EXISTS, f"Sandbox with name {definition.name!r} already exists")
        named = tuple(self._secret(i).name for i in definition.secret_ids if self._secret(i).name)
        return world.create(backend, app, definition, tags, values, named, image)

    # Looking and waiting.

    async def SandboxGetTaskId(
        self, request: api_pb2.SandboxGetTaskIdRequest, metadata: Metadata
    ) -> api_pb2.SandboxGetTaskIdResponse:
        sandbox = self.world.sandbox(request.sandbox_id)
        if not sandbox.scheduled.is_set():
            if sandbox.ended.is_set():
                return api_pb2.SandboxGetTaskIdResponse(task_result=sandbox.result)
            return api_pb2.SandboxGetTaskIdResponse()
        return api_pb2.SandboxGetTaskIdResponse(task_id=sandbox.task_id)

    async def SandboxWait(self, request: api_pb2.SandboxWaitRequest, metadata: Metadata) -> api_pb2.SandboxWaitResponse:
        sandbox = self.world.sandbox(request.sandbox_id)
        if request.timeout and not sandbox.ended.is_set():
            try:
                await asyncio.wait_for(sandbox.ended.wait(), request.timeout)
            except asyncio.TimeoutError:
                return api_pb2.SandboxWaitResponse()
        return api_pb2.SandboxWaitResponse(result=sandbox.result if sandbox.ended.is_set() else None)

    async def SandboxTerminate(
        self, request: api_pb2.SandboxTerminateRequest, metadata: Metadata
    ) -> api_pb2.SandboxTerminateResponse:
        sandbox = self.world.sandbox(request.sandbox_id)
        sandbox.end(Result.GENERIC_STATUS_TERMINATED)
        return api_pb2.SandboxTerminateResponse()

    async def SandboxTagsGet(self, request: Any, metadata: Metadata) -> api_pb2.SandboxTagsGetResponse:
        return api_pb2.SandboxTagsGetResponse(tags=_tags(self.world.sandbox(request.sandbox_id)))

    async def SandboxTagsSet(self, request: api_pb2.SandboxTagsSetRequest, metadata: Metadata) -> empty_pb2.Empty:
        tags = {tag.tag_name: tag.tag_value for tag in request.tags}
        rules.check_tags(tags)
        self.world.sandbox(request.sandbox_id).tags = tags
        return empty_pb2.Empty()

    async def SandboxList(self, request: api_pb2.SandboxListRequest, metadata: Metadata) -> api_pb2.SandboxListResponse:
        return self._list(request, backends=(1,))

    async def SandboxListV2(
        self, request: api_pb2.SandboxListRequest, metadata: Metadata
    ) -> api_pb2.SandboxListResponse:
        return self._list(request, backends=(1, 2))  # modal/sandbox/_impl_v2.py, list_page: "both V1 and V2"

    def _list(self, request: api_pb2.SandboxListRequest, backends: tuple[int, ...]) -> api_pb2.SandboxListResponse:
        wanted = {(tag.tag_name, tag.tag_value) for tag in request.tags}
        before = request.before_timestamp or float("inf")
        if request.app_id:
            apps = {self.world.app(request.app_id).id}
        else:
            environment = self.world.environment(request.environment_name)
            apps = {app.id for app in self.world.apps.values() if app.environment == environment}
        found = [
            box
            for box in self.world.sandboxes.values()
            if box.backend in backends
            and box.app_id in apps
            and wanted <= set(box.tags.items())
            and box.created_at < before
            and (request.include_finished or not box.ended.is_set())
        ]
        found.sort(key=lambda box: box.created_at, reverse=True)
        return api_pb2.SandboxListResponse(sandboxes=[_info(box) for box in found[:LIST_PAGE]])

    async def SandboxGetTimeRangeStats(self, request: Any, metadata: Metadata) -> Any:
        """What sandboxes cost (modal/app.py, ``App.sandboxes.stats``), by this loopback's own price."""
        wanted, costs = set(request.tags.items()), Counter[tuple[str | None, ...]]()
        if request.since.seconds % 3600:
            # modal/app.py, stats: "inclusive, on a UTC hour boundary".
            raise rules.invalid("`since` must be on an hour boundary")
        for box in self.world.sandboxes.values():
            if box.app_id == request.app_id and wanted <= set(box.tags.items()):
                costs[tuple(box.tags.get(name) for name in request.group_by_tags)] += 1
        groups = []
        for values, number in costs.items():
            group = api_pb2.SandboxStatsGroup(cost_str=str(number * PRICE))
            for name, value in zip(request.group_by_tags, values, strict=True):
                group.tags[name].CopyFrom(group.TagValue(value=value))
            groups.append(group)
        return api_pb2.SandboxGetTimeRangeStatsResponse(groups=groups)

    async def SandboxGetFromName(
        self, request: api_pb2.SandboxGetFromNameRequest, metadata: Metadata
    ) -> api_pb2.SandboxGetFromNameResponse:
        return self._from_name(request, 1)

    async def SandboxGetFromNameV2(
        self, request: api_pb2.SandboxGetFromNameRequest, metadata: Metadata
    ) -> api_pb2.SandboxGetFromNameResponse:
        return self._from_name(request, 2)  # the SDK falls back to V1 by itself (_sandbox.py, from_name)

    def _from_name(
        self, request: api_pb2.SandboxGetFromNameRequest, backend: int
    ) -> api_pb2.SandboxGetFromNameResponse:
        environment = self.world.environment(request.environment_name)
        for app in self.world.apps.values():
            if (app.name, app.environment) == (request.app_name, environment):
                ended = getattr(request, "include_terminated", False)
                sandbox = self.world.named(app, request.sandbox_name, ended=ended)
                if sandbox is not None and sandbox.backend == backend:
                    return api_pb2.SandboxGetFromNameResponse(sandbox_id=sandbox.id)
        raise rules.not_found(f"Sandbox {request.sandbox_name!r} not found")

    # Output and input.

    async def SandboxGetLogs(
        self, request: api_pb2.SandboxGetLogsRequest, metadata: Metadata
    ) -> AsyncIterator[api_pb2.TaskLogsBatch]:
        sandbox = self.world.sandbox(request.sandbox_id)
        output = sandbox.stderr if request.file_descriptor == api_pb2.FILE_DESCRIPTOR_STDERR else sandbox.stdout
        deadline = asyncio.get_running_loop().time() + (request.timeout or 55)
        # V1 logs are protobuf strings: a character is never split, what isn't UTF-8 is replaced.
        decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")
        pieces = output.read(int(request.last_entry_id or 0))
        while True:
            piece = asyncio.ensure_future(anext(pieces, None))
            try:
                await asyncio.wait({piece}, timeout=deadline - asyncio.get_running_loop().time())
            finally:
                if not piece.done():
                    piece.cancel()
            if not piece.done():
                return  # the client comes again with `last_entry_id`
            found = piece.result()
            if found is None:
                break
            await self._slow_stream()
            text = decoder.decode(found[1])
            held = len(decoder.getstate()[0])
            yield _log_batch(text, request.file_descriptor, found[0] + len(found[1]) - held)
            self._break_stream()
        rest = decoder.decode(b"", final=True)
        yield _log_batch(rest, request.file_descriptor, len(output.data), eof=True)

    async def _slow_stream(self) -> None:
        if self.world.faults.stream_delay:
            await asyncio.sleep(self.world.faults.stream_delay)

    def _break_stream(self) -> None:
        if self.world.faults.broken_streams > 0:
            self.world.faults.broken_streams -= 1
            raise GRPCError(Status.UNAVAILABLE, "the stream broke: injected by the test")

    async def AppFetchLogs(self, request: Any, metadata: Metadata) -> api_pb2.AppFetchLogsResponse:
        sandbox = self.world.by_task(request.task_id)
        batches = [
            _log_batch(output.data.decode(errors="replace"), descriptor, len(output.data))
            for output, descriptor in (
                (sandbox.stdout, api_pb2.FILE_DESCRIPTOR_STDOUT),
                (sandbox.stderr, api_pb2.FILE_DESCRIPTOR_STDERR),
            )
            if output.data
        ]
        return api_pb2.AppFetchLogsResponse(batches=batches)

    async def SandboxStdinWrite(
        self, request: api_pb2.SandboxStdinWriteRequest, metadata: Metadata
    ) -> api_pb2.SandboxStdinWriteResponse:
        process = await self.world.sandbox(request.sandbox_id).running()
        process.write(request.input, request.eof)
        return api_pb2.SandboxStdinWriteResponse()

    async def ContainerReloadVolumes(
        self, request: api_pb2.ContainerReloadVolumesRequest, metadata: Metadata
    ) -> api_pb2.ContainerReloadVolumesResponse:
        self.world.by_task(request.task_id).reload_volumes()
        return api_pb2.ContainerReloadVolumesResponse()

    async def TaskGetCommandRouterAccess(
        self, request: api_pb2.TaskGetCommandRouterAccessRequest, metadata: Metadata
    ) -> api_pb2.TaskGetCommandRouterAccessResponse:
        self.world.by_task(request.task_id)
        return api_pb2.TaskGetCommandRouterAccessResponse(url=self._router_url, jwt=jwt(request.task_id))

    async def SandboxGetCommandRouterAccess(
        self, request: Any, metadata: Metadata
    ) -> api_pb2.SandboxGetCommandRouterAccessResponse:
        by_sandbox = bool(request.sandbox_id)
        sandbox = self.world.sandbox(request.sandbox_id) if by_sandbox else self.world.by_task(request.task_id)
        return api_pb2.SandboxGetCommandRouterAccessResponse(url=self._router_url, jwt=jwt(sandbox.task_id))

    # The V2 names of RPCs that mean the same on both backends.
    SandboxWaitV2 = SandboxWait
    SandboxTerminateV2 = SandboxTerminate
    SandboxTagsGetV2 = SandboxTagsGet
    SandboxTagsSetV2 = SandboxTagsSet
    SandboxGetTaskIdV2 = SandboxGetTaskId


def _tags(sandbox: LoopbackSandbox) -> list[api_pb2.SandboxTag]:
    return [api_pb2.SandboxTag(tag_name=name, tag_value=value) for name, value in sandbox.tags.items()]


def _info(sandbox: LoopbackSandbox) -> api_pb2.SandboxInfo:
    return api_pb2.SandboxInfo(
        id=sandbox.id,
        created_at=sandbox.created_at,
        app_id=sandbox.app_id,
        tags=_tags(sandbox),
        name=sandbox.name,
        image_id=sandbox.definition.image_id,
        task_info=api_pb2.TaskInfo(id=sandbox.task_id, sandbox_id=sandbox.id),
    )


def _log_batch(text: str, descriptor: int, offset: int, eof: bool = False) -> api_pb2.TaskLogsBatch:
    item = api_pb2.TaskLogs(data=text, timestamp=time.time(), file_descriptor=descriptor)  # type: ignore[arg-type]
    return api_pb2.TaskLogsBatch(items=[item] if text else [], entry_id=str(offset), eof=eof)
