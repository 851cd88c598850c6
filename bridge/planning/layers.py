"""Which settings hold for a pipeline and for each of its steps: component, pipeline, step, the nearer wins.

None never overrides, mappings are merged key by key as ZenML itself merges them, lists are replaced. Only
declared settings are copied, so no token of the component's config comes near a plan.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

from zenml.config.base_settings import BaseSettings
from zenml.config.step_configurations import Step

from bridge import names
from bridge.errors import InvalidSettings, NotTranslatable
from bridge.plan import RunnerKind
from bridge.settings import RUN_LEVEL, ModalPrefectOrchestratorConfig, ModalPrefectOrchestratorSettings

Values = dict[str, object]
Settings = TypeVar("Settings", bound=BaseSettings)


@dataclass(frozen=True, slots=True)
class ComponentSettings:
    """What the config of an orchestrator says of a run: settings, declared ones among them, and its runner."""

    values: Mapping[str, object]
    runner: RunnerKind = "modal"

    @classmethod
    def of(cls, config: ModalPrefectOrchestratorConfig) -> ComponentSettings:
        """Read a config."""
        # Only what the component sets, since its defaults aren't its wishes; and no token: reading one that is a
        # reference to a secret asks the server for it.
        settings = config.model_fields_set & set(ModalPrefectOrchestratorSettings.model_fields)
        return cls({name: getattr(config, name) for name in settings}, config.runner)


class Layers:
    """The settings of one run.

    Args:
        component: What the component says, of which only declared settings are read.
        component_name: Its name: ZenML keeps settings under ``orchestrator:<name>``.
        pipeline: The settings of the pipeline's configuration.

    Raises ``InvalidSettings`` where they don't fit together.
    """

    def __init__(self, component: ComponentSettings, component_name: str, pipeline: Mapping[str, BaseSettings]) -> None:
        self.name = component_name
        self._keys = keys_of("orchestrator", component_name)
        of_pipeline = settings_under(self._keys, pipeline, "the pipeline")
        self._values = merged(_declared(component.values), _declared(of_pipeline))
        self.pipeline = _settings(self._values, "the pipeline")
        self.other_keys = tuple(
            key for key in pipeline if key.startswith(("orchestrator:", "orchestrator.")) and key not in self._keys
        )
        self._seen: dict[str, ModalPrefectOrchestratorSettings] = {}

    def own(self, name: str, step: Step) -> Values:
        """What the step itself says. Raises ``NotTranslatable`` for a setting that belongs to the run."""
        settings = step.step_config_overrides.settings
        if not settings:
            return {}
        own = _declared(settings_under(self._keys, settings, f"step {name}"))
        for field in sorted(RUN_LEVEL.intersection(own)):
            raise NotTranslatable(
                f"{field} of step {name}",
                own[field],
                "this setting belongs to the run as a whole",
                f"Set {field} on the pipeline or on the component, and take it off the step",
            )
        return own

    def of(self, name: str, own: Values) -> ModalPrefectOrchestratorSettings:
        """The settings that hold for a step that says ``own``. Raises ``InvalidSettings``."""
        if not own:
            return self.pipeline
        key = repr(sorted(own.items()))  # most steps say the same few things: validate each of them once
        if key not in self._seen:
            self._seen[key] = _settings(merged(self._values, own), f"step {name}")
        return self._seen[key]


def keys_of(kind: str, component_name: str) -> tuple[str, ...]:
    """The keys under which ZenML keeps the settings of a component: ``kind`` is its type, as ZenML writes it."""
    return (f"{kind}:{component_name}", f"{kind}.{names.FLAVOR}", kind)


def settings_under(keys: Sequence[str], settings: Mapping[str, BaseSettings], where: str) -> Values:
    """The settings of the component that ``keys`` are of. Raises ``NotTranslatable`` where two of them disagree."""
    # Only what was said: the class that a user writes settings with has defaults, which are nobody's wishes.
    found = {
        key: {name: value for name, value in settings[key] if name in settings[key].model_fields_set}
        for key in keys
        if key in settings
    }
    first, *others = found.items() if found else [("", {})]
    for key, values in others:
        if values != first[1]:
            raise NotTranslatable(
                f"settings of {where}",
                sorted(found),
                f"{first[0]!r} and {key!r} name the same {keys[-1].replace('_', ' ')} and say different things",
                f"Keep one of them, best {keys[0]!r}",
            )
    return first[1]


def merged(below: Mapping[str, object], above: Mapping[str, object]) -> Values:
    """Lay ``above`` over ``below``: None never overrides, mappings are merged."""
    result = dict(below)
    for name, value in above.items():
        beneath = result.get(name)
        if isinstance(value, Mapping) and isinstance(beneath, Mapping):
            result[name] = merged(beneath, value)
        elif value is not None:
            result[name] = value
    return result


def declared(settings: type[BaseSettings], values: Mapping[str, object]) -> Values:
    """The settings among ``values`` that say something."""
    fields = settings.model_fields
    return {name: value for name, value in values.items() if name in fields and value is not None}


def _declared(values: Mapping[str, object]) -> Values:
    return declared(ModalPrefectOrchestratorSettings, values)


def _settings(values: Values, where: str) -> ModalPrefectOrchestratorSettings:
    return made(ModalPrefectOrchestratorSettings, values, where)


def made(settings: type[Settings], values: Values, where: str) -> Settings:
    """Make settings. Raises ``InvalidSettings``, which says ``where``."""
    try:
        return settings(**values)
    except InvalidSettings as error:
        raise InvalidSettings(f"{error.where} of {where}", error.value, error.problem, error.fix) from error
