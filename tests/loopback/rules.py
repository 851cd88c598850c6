"""What Modal refuses, and where that is written. Each raises ``GRPCError``.

Modal's server isn't public: where only the SDK checks, the same check stands here, so that a client that forgot
it is caught; where only the documentation says so, the page is named.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

from grpclib import GRPCError, Status
from modal_proto import api_pb2

_OBJECT_NAME = re.compile(r"^[a-zA-Z0-9\-_.]{1,64}$")  # modal/_utils/name_utils.py: is_valid_object_name
_TAG = re.compile(r"^[a-zA-Z0-9._\-]{1,63}$")  # modal/_utils/name_utils.py: check_tag_dict
_APP_ID = re.compile(r"^ap-[a-zA-Z0-9]{22}$")
MAX_TIMEOUT = 24 * 3600  # modal.com/docs/guide/sandboxes, "Timeouts": at most 24 hours
ARG_MAX_BYTES = 2**16  # modal/sandbox/_common.py: ARG_MAX_BYTES, "technically a 'server side' limit"
# modal.com/docs/guide/gpu, "Specifying GPU type"
GPU_TYPES = {"T4", "L4", "A10", "A10G", "L40S", "A100", "A100-40GB", "A100-80GB", "RTX-PRO-6000", "H100"}
GPU_TYPES |= {"H100!", "H200", "B200", "B200+", "B300", "ANY"}
MAX_GPUS = 8  # modal.com/docs/guide/gpu, "Specifying GPU count"
CLOUDS = frozenset(("aws", "gcp", "oci", "auto"))  # modal.com/docs/guide/region-selection: `cloud`
MAX_CPU_MILLI = 64_000  # modal.com/docs/guide/resources
MAX_MEMORY_MIB = 344_064  # modal.com/docs/guide/resources


def invalid(message: str) -> GRPCError:
    return GRPCError(Status.INVALID_ARGUMENT, message)


def not_found(message: str) -> GRPCError:
    """What comes of an id or a name that nothing has: modal/exception.py, "NOT_FOUND -> NotFoundError"."""
    return GRPCError(Status.NOT_FOUND, message)


def check_name(name: str, kind: str) -> None:
    if not _OBJECT_NAME.match(name) or _APP_ID.match(name):
        raise invalid(f"Invalid {kind} name: {name!r}")


def check_tags(tags: Mapping[str, str]) -> None:
    for key, value in tags.items():
        if not _TAG.match(key) or not _TAG.match(value):
            raise invalid(f"Invalid tag: {key!r}: {value!r}")


def check_volumes(volume_ids: Sequence[str]) -> None:
    if len(set(volume_ids)) < len(volume_ids):  # modal/_utils/mount_utils.py: validate_volumes
        raise invalid("The same Volume cannot be mounted in multiple locations")


def check_definition(definition: api_pb2.Sandbox) -> None:
    """Check what needs nothing but the request itself."""
    if definition.name:
        check_name(definition.name, "Sandbox")
    if not 1 <= definition.timeout_secs <= MAX_TIMEOUT:
        raise invalid(f"Sandbox timeout must be between 1 and {MAX_TIMEOUT} seconds")
    if sum(len(argument.encode()) for argument in definition.entrypoint_args) > ARG_MAX_BYTES:
        raise invalid(f"Total length of CMD arguments cannot exceed {ARG_MAX_BYTES} bytes")
    resources = definition.resources
    if resources.milli_cpu > MAX_CPU_MILLI or resources.memory_mb > MAX_MEMORY_MIB:
        raise invalid("CPU or memory request exceeds the limit of a container")
    gpu = resources.gpu_config
    if gpu.gpu_type and gpu.gpu_type.upper() not in GPU_TYPES:
        raise invalid(f"Unknown GPU type: {gpu.gpu_type}")
    if gpu.gpu_type and not 1 <= gpu.count <= MAX_GPUS:
        raise invalid(f"Invalid GPU count: {gpu.count}")
    if definition.cloud_provider_str and definition.cloud_provider_str.lower() not in CLOUDS:
        raise invalid(f"Unknown cloud provider: {definition.cloud_provider_str}")
