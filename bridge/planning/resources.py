"""ZenML's ``ResourceSettings`` and a GPU type as the resources of a sandbox. No clock, network or environment."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

from zenml.config.resource_settings import ByteUnit

from bridge.errors import NotTranslatable
from bridge.plan import Gpu, Resources

_MEMORY = re.compile(r"([0-9]+)([KMGTP]?i?B)")
_MIB = ByteUnit.MIB.byte_value
_POOL_FIELDS = ("gpu_class", "resources")


@dataclass(frozen=True, slots=True)
class Asked:
    """What one ``ResourceSettings`` asks for, before a GPU type is known. ``memory`` is in MiB."""

    cpu: float | None = None
    memory: int | None = None
    gpu_count: int | None = None


def asked(values: Mapping[str, object], where: str) -> Asked:
    """Read the fields of a ``ResourceSettings``. ``where`` names the step or pipeline in errors.

    Memory is rounded up to whole MiB. Raises ``NotTranslatable``.
    """
    cpu, count = values.get("cpu_count"), values.get("gpu_count")
    if cpu is not None and not (isinstance(cpu, (int, float)) and 0 < cpu < float("inf")):
        raise _refused(where, "cpu_count", cpu, "this is no number of cores", "Ask for more than 0 cores")
    if count is not None and not (isinstance(count, int) and count >= 0):
        raise _refused(where, "gpu_count", count, "this is no number of GPUs", "Ask for 0 or more GPUs")
    return Asked(None if cpu is None else float(cpu), _mebibytes(values.get("memory"), where), count)


def pools_not_used(values: Mapping[str, object], where: str) -> tuple[str, ...]:
    """What to say of a static pipeline's fields that ask for a place in one of ZenML's resource pools.

    In a dynamic pipeline ZenML finds the place, before it asks anybody for a sandbox.
    """
    return tuple(
        f"ResourceSettings.{field} of {where}: not used, ZenML has resource pools for dynamic pipelines only."
        for field in _POOL_FIELDS
        if values.get(field)
    )


def _mebibytes(memory: object, where: str) -> int | None:
    if memory is None:
        return None
    match = _MEMORY.fullmatch(str(memory))
    if match is None:
        raise _refused(where, "memory", memory, "this is no amount of memory", "Write it like '512MiB' or '16GB'")
    size = int(match[1]) * ByteUnit(match[2]).byte_value
    if size == 0:
        raise _refused(where, "memory", memory, "a step can't run without memory", "Ask for more, or leave it out")
    return -(-size // _MIB)


def with_gpu(
    wanted: Asked, types: tuple[str, ...], where: str, settings: str = "ModalPrefectOrchestratorSettings"
) -> Resources:
    """Join what is asked for with the GPU types. No count means 1, 0 means no GPU.

    ``settings`` is the class in which a user names the type.
    Raises ``NotTranslatable`` for GPUs of no type.
    """
    count = wanted.gpu_count
    if count and not types:
        raise _refused(
            where,
            "gpu_count",
            count,
            "there are GPUs to be had, but no type of GPU is named",
            f"Name it in the settings, as in {settings}(gpu='A100'), or ask for ResourceSettings(gpu_count=0)",
        )
    gpu = Gpu(types, 1 if count is None else count) if types and count != 0 else None
    return Resources(wanted.cpu, wanted.memory, gpu)


def of_pipeline(
    own: Asked, own_types: tuple[str, ...], steps: Sequence[tuple[str, Resources]]
) -> tuple[Resources, tuple[str, ...]]:
    """The resources of the one sandbox of ``pipeline`` mode, and warnings.

    What the pipeline itself asks for counts; where it says nothing, the largest that any step asks for.
    Raises ``NotTranslatable`` where the steps need different GPU types.
    """
    gpu = _gpu_of_pipeline(own, own_types, steps)
    cpu = own.cpu if own.cpu is not None else _largest(resources.cpu for _, resources in steps)
    memory = own.memory if own.memory is not None else _largest(resources.memory for _, resources in steps)
    asked: Sequence[tuple[str, str, float | None, Callable[[Resources], float | None]]] = (
        ("cpu", " cores", own.cpu, lambda of_step: of_step.cpu),
        ("memory", " MiB", own.memory, lambda of_step: of_step.memory),
        ("gpu_count", "", own.gpu_count, lambda of_step: of_step.gpu.count if of_step.gpu else None),
    )
    warnings = []
    for field, unit, limit, of_step in asked:
        above = [name for name, asks in steps if limit is not None and (of_step(asks) or 0) > limit]
        if above:
            warnings.append(
                f"{field}={limit:g}{unit}: {_named(above)} asked for more than the pipeline's own "
                f"ResourceSettings, which count in pipeline mode."
            )
    return Resources(cpu, None if memory is None else int(memory), gpu), tuple(warnings)


def _gpu_of_pipeline(own: Asked, own_types: tuple[str, ...], steps: Sequence[tuple[str, Resources]]) -> Gpu | None:
    by_types: dict[tuple[str, ...], list[str]] = {}
    for name, resources in steps:
        if resources.gpu is not None:
            by_types.setdefault(resources.gpu.types, []).append(name)
    if len(by_types) > 1:
        raise NotTranslatable(
            "gpu",
            {_named(names): types for types, names in by_types.items()},
            "in pipeline mode all steps share one sandbox, which has one type of GPU",
            "Give the steps the same gpu, or run them with execution_mode='per_step'",
        )
    most = max((resources.gpu.count for _, resources in steps if resources.gpu), default=0)
    count = most if own.gpu_count is None else own.gpu_count
    types = next(iter(by_types), own_types)
    return with_gpu(Asked(gpu_count=count), types, "the pipeline").gpu


def _largest(values: Iterable[float | None]) -> float | None:
    return max((value for value in values if value is not None), default=None)


def _named(steps: Sequence[str]) -> str:
    first = ", ".join(steps[:3])
    return f"step{'s' if len(steps) > 1 else ''} {first}{f' and {len(steps) - 3} more' if len(steps) > 3 else ''}"


def _refused(where: str, field: str, value: object, problem: str, fix: str) -> NotTranslatable:
    return NotTranslatable(f"ResourceSettings.{field} of {where}", value, problem, fix)
