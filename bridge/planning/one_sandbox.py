"""What the steps of `pipeline` mode have together, since they share one sandbox: its image, resources and settings.

What they can't have each for itself is refused by name. No clock, network or environment.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from bridge.errors import NotTranslatable
from bridge.plan import Mode, Plan, Resources, StepPlan
from bridge.planning import network
from bridge.planning.layers import Values
from bridge.planning.resources import Asked, of_pipeline
from bridge.settings import ModalPrefectOrchestratorSettings

if TYPE_CHECKING:
    from zenml.config.build_configuration import BuildConfiguration

_PLACED = ("cloud", "region", "modal_environment", "secrets", "volumes", *network.FIELDS)
SHARED = ("timeout", "concurrency_limit", *_PLACED)
"""Settings of a sandbox that steps which share one can't have each for itself."""
_TUNING = ("tags", "infrastructure_retries", "capacity_timeout", "stream_logs")
"""The same, but a step loses nothing it relies on if the pipeline's value holds."""
_SAME_IMAGE = "Give the steps the same DockerSettings, or run them with execution_mode='per_step'"


@dataclass(frozen=True, slots=True)
class ReadStep:
    """One step as it was read: its plan, its own settings, and those that hold for it."""

    plan: StepPlan
    own: Values
    settings: ModalPrefectOrchestratorSettings


def one_image(read: Sequence[ReadStep], skipped: Collection[str]) -> str | None:
    """The image that all steps have. Raises ``NotTranslatable`` if they have more than one."""
    plans = [step.plan for step in read]
    # A step operator brings an image of its own; none is built for what a replay skips.
    in_it = [plan for plan in plans if not plan.step_operator and plan.name not in skipped]
    if not in_it:
        return next((plan.sandbox.image for plan in plans if plan.sandbox.image), None)
    examples = {plan.sandbox.image: plan.name for plan in reversed(in_it)}
    if len(examples) > 1:
        raise NotTranslatable(
            "image",
            {f"step {name}": image for image, name in sorted(examples.items(), key=str)},
            "in pipeline mode all steps share one sandbox, which has one image",
            _SAME_IMAGE,
        )
    return next(iter(examples))


def shared_resources(own: Asked, gpus: tuple[str, ...], read: Sequence[ReadStep]) -> tuple[Resources, tuple[str, ...]]:
    """Its resources, and what to warn of; ``own`` and ``gpus`` are what the pipeline itself asks for.

    Raises ``NotTranslatable``.
    """
    in_it = [step.plan for step in read if not step.plan.step_operator]
    if not in_it:  # what the pipeline asks for is meant for the machines of its step operators
        return Resources(), ()
    return of_pipeline(own, gpus, [(plan.name, plan.sandbox.resources) for plan in in_it])


def not_shared(read: Sequence[ReadStep], settings: ModalPrefectOrchestratorSettings) -> tuple[str, ...]:
    """Refuse what steps that share a sandbox can't have each for itself; warn of what they needn't have."""
    warnings = []
    for step in read:
        for field in step.own:
            value, pipeline_value = getattr(step.settings, field), getattr(settings, field)
            if value == pipeline_value:
                continue
            where = f"{field} of step {step.plan.name}"
            if field in SHARED:
                raise NotTranslatable(
                    where,
                    value,
                    "in pipeline mode all steps share one sandbox",
                    f"Set {field} on the pipeline, or run the steps with execution_mode='per_step'",
                )
            if field in _TUNING:
                warnings.append(f"{where}={value!r}: not used, in pipeline mode that of the pipeline holds.")
    return tuple(warnings)


def refuse_images(plan: Plan, builds: Sequence[BuildConfiguration], unused: Collection[str] = ()) -> None:
    """Raise ``NotTranslatable`` if the one sandbox of `pipeline` mode would need several of these images.

    ``unused`` are fields of ``DockerSettings`` that whoever builds them doesn't use.
    """
    if plan.mode is not Mode.PIPELINE:
        return
    settings = {build.step_name: vars(build.settings) for build in builds}  # see `translate._Reader.read`
    in_it = [step.name for step in plan.steps if not step.step_operator]
    for name in in_it[1:]:
        one, other = (settings[step] if step in settings else settings[None] for step in (in_it[0], name))
        if differing := _differing(one, other, unused):
            raise NotTranslatable(
                f"DockerSettings of step {name}",
                differing,
                f"step {in_it[0]} has others, and in pipeline mode all steps share one sandbox, which has one image",
                _SAME_IMAGE,
            )


def _differing(one: Mapping[str, object], other: Mapping[str, object], unused: Collection[str]) -> list[str]:
    """The fields in which two ``DockerSettings`` differ, if those make different images."""
    without_build = one["skip_build"] and other["skip_build"]
    fields = {"parent_image"} if without_build else one.keys() - {"prevent_build_reuse", *unused}
    return sorted(field for field in fields if one[field] != other[field])
