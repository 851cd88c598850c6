"""Settings and configs: the contract's table, ZenML's ways of handing values over, and secrets that stay secret."""

from __future__ import annotations

import json
import pickle
import subprocess
import sys
from pathlib import Path

import pytest
from pydantic import ValidationError
from zenml.config import ResourceSettings
from zenml.config.base_settings import BaseSettings
from zenml.enums import StackComponentType
from zenml.integrations.kubernetes.flavors.kubernetes_orchestrator_flavor import KubernetesOrchestratorSettings
from zenml.integrations.modal.flavors.modal_orchestrator_flavor import ModalOrchestratorSettings
from zenml.integrations.modal.flavors.modal_step_operator_flavor import ModalStepOperatorSettings
from zenml.orchestrators import BaseOrchestratorConfig
from zenml.stack import Flavor
from zenml.step_operators import BaseStepOperatorConfig
from zenml.utils import source_utils
from zenml.utils.pydantic_utils import has_validators

from bridge import flavors
from bridge.errors import InvalidSettings
from bridge.flavors import ModalPrefectOrchestratorFlavor
from bridge.settings import (
    RUN_LEVEL,
    ModalPrefectOrchestratorConfig,
    ModalPrefectOrchestratorSettings,
    ModalPrefectStepOperatorConfig,
    ModalPrefectStepOperatorSettings,
)

# The table of CONTRACT.md.
DEFAULTS = {
    "execution_mode": "pipeline",
    "gpu": None,
    "cloud": None,
    "region": None,
    "modal_environment": None,
    "timeout": 86400,
    "max_parallelism": None,
    "warm": True,
    "warm_idle_timeout": 60,
    "infrastructure_retries": 3,
    "capacity_timeout": 300,
    "orphan_timeout": 1800,
    "create_rate": 4.0,
    "secrets": [],
    "volumes": {},
    "block_network": False,
    "outbound_cidr_allowlist": [],
    "outbound_domain_allowlist": [],
    "concurrency_limit": None,
    "stream_logs": True,
    "tags": {},
    "synchronous": True,
    "work_queue": None,
    "job_variables": {},
}
COMPONENT_DEFAULTS = {
    "runner": "modal",
    "token_id": None,
    "token_secret": None,
    "prefect_api_url": None,
    "prefect_api_key": None,
    "work_pool": None,
    "image_source": None,
    "build_secrets": [],
}


def test_settings_are_the_contracts() -> None:
    assert ModalPrefectOrchestratorSettings().model_dump() == DEFAULTS
    assert ModalPrefectOrchestratorConfig().model_dump() == {**DEFAULTS, **COMPONENT_DEFAULTS}


def test_step_operator_has_the_settings_of_one_sandbox() -> None:
    only_runs_have = RUN_LEVEL | {"concurrency_limit"}
    # Those of a step are its own: another orchestrator has no flow.
    only_runs_have -= {"orphan_timeout", "warm", "warm_idle_timeout"}
    assert set(ModalPrefectStepOperatorSettings.model_fields) == set(DEFAULTS) - only_runs_have
    only_flows_have = {"prefect_api_url", "prefect_api_key", "work_pool"}
    own = set(ModalPrefectStepOperatorConfig.model_fields) - set(ModalPrefectStepOperatorSettings.model_fields)
    assert own == set(COMPONENT_DEFAULTS) - only_flows_have
    # What ZenML mixes into settings is known for the component's.
    assert set(COMPONENT_DEFAULTS) == ModalPrefectOrchestratorSettings.COMPONENT_ONLY
    assert own == ModalPrefectStepOperatorSettings.COMPONENT_ONLY


@pytest.mark.parametrize(
    "name",
    [
        "encrypted_ports",
        "h2_ports",
        "unencrypted_ports",
        "custom_domain",
        "inbound_cidr_allowlist",
        "readiness_probe",
        "proxy",
        "include_oidc_identity_token",
        "network_file_systems",
        "pty",
        "workdir",
        "runtime",
        "verbose",
        "experimental_options",
        "ephemeral_disk",
        "idle_timeout",
    ],
)
def test_what_of_modal_there_is_no_setting_for(name: str) -> None:
    for settings in (ModalPrefectOrchestratorSettings, ModalPrefectStepOperatorSettings):
        with pytest.raises(InvalidSettings, match=f"{name}.*there is no such setting"):
            settings(**{name: "x"})  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "model",
    [
        ModalPrefectOrchestratorSettings,
        ModalPrefectOrchestratorConfig,
        ModalPrefectStepOperatorSettings,
        ModalPrefectStepOperatorConfig,
    ],
)
def test_every_field_explains_itself(model: type[BaseSettings]) -> None:
    for name, field in model.model_fields.items():
        assert len(field.description or "") > 60, name
    json.dumps(model.model_json_schema())


@pytest.mark.parametrize(
    ("given", "field", "value"),
    [
        ({"gpu": "A100"}, "gpu", "A100"),
        ({"gpu": "A100-80GB"}, "gpu", "A100-80GB"),
        ({"gpu": "H100!"}, "gpu", "H100!"),
        ({"gpu": "RTX-PRO-6000"}, "gpu", "RTX-PRO-6000"),
        ({"gpu": '["A100","H100"]'}, "gpu", ["A100", "H100"]),
        ({"gpu": ' ["A100"] '}, "gpu", ["A100"]),
        ({"gpu": None}, "gpu", None),
        ({"region": '["eu","us-east"]'}, "region", ["eu", "us-east"]),
        ({"secrets": '["hf"]'}, "secrets", ["hf"]),
        ({"volumes": '{"/data":"d"}'}, "volumes", {"/data": "d"}),
        ({"block_network": "true"}, "block_network", True),
        ({"outbound_cidr_allowlist": '["10.0.0.0/8"]'}, "outbound_cidr_allowlist", ["10.0.0.0/8"]),
        ({"outbound_domain_allowlist": ["*.x.org", "*"]}, "outbound_domain_allowlist", ["*.x.org", "*"]),
        ({"outbound_domain_allowlist": [f"{'x' * 63}.org"]}, "outbound_domain_allowlist", [f"{'x' * 63}.org"]),
        ({"tags": '{"team":"ml"}'}, "tags", {"team": "ml"}),
        ({"job_variables": '{"env":{"A":1}}'}, "job_variables", {"env": {"A": 1}}),
        ({"timeout": "600"}, "timeout", 600),
        ({"timeout": None}, "timeout", 86400),
        ({"timeout": 86400}, "timeout", 86400),
        ({"timeout": 1}, "timeout", 1),
        ({"warm": "false"}, "warm", False),
        ({"create_rate": "0.5"}, "create_rate", 0.5),
        ({"infrastructure_retries": 0}, "infrastructure_retries", 0),
        ({"modal_environment": "main"}, "modal_environment", "main"),
    ],
)
def test_values_of_Python_and_of_the_command_line(given: dict[str, object], field: str, value: object) -> None:
    for made in (
        ModalPrefectOrchestratorSettings(**given),
        ModalPrefectOrchestratorSettings.model_validate(given),
        ModalPrefectOrchestratorConfig(**given),
    ):
        assert getattr(made, field) == value
        again = json.loads(json.dumps(made.model_dump(mode="json", exclude_unset=True)))
        assert getattr(type(made)(**again), field) == value


def test_None_counts_as_not_set() -> None:
    """Else a step's None would reach ZenML's merge as something that was said."""
    settings = ModalPrefectOrchestratorSettings(gpu=None, timeout=None)  # type: ignore[arg-type]
    assert settings.model_fields_set == set()


def test_a_components_own_fields_pass_through_settings_but_are_no_settings() -> None:
    """ZenML mixes the config into what it calls settings, token included (facts/zenml.md, trap 27)."""
    mixed = ModalPrefectOrchestratorSettings.model_validate({"timeout": 5, "token_secret": "s", "runner": "modal"})
    assert "token_secret" not in type(mixed).model_fields
    assert set(mixed.model_extra or {}) == {"token_secret", "runner"}  # ZenML warns of these by name


@pytest.mark.parametrize(
    ("values", "remote", "local"),
    [({}, True, False), ({"runner": "modal"}, True, False), ({"runner": "process"}, False, True)],
)
def test_where_it_runs(values: dict[str, str], remote: bool, local: bool) -> None:
    orchestrator: BaseOrchestratorConfig = ModalPrefectOrchestratorConfig(**values)  # type: ignore[arg-type]
    step_operator: BaseStepOperatorConfig = ModalPrefectStepOperatorConfig(**values)  # type: ignore[arg-type]
    for config in (orchestrator, step_operator):
        assert (config.is_remote, config.is_local) == (remote, local)


def test_capabilities() -> None:
    config = ModalPrefectOrchestratorConfig()
    assert config.is_synchronous
    with pytest.raises(InvalidSettings, match=r"work_pool=None: a schedule needs .* Set `work_pool`"):
        assert config.is_schedulable
    assert config.handles_step_retries
    assert not config.supports_client_side_caching
    assert ModalPrefectOrchestratorConfig(work_pool="pool").is_schedulable
    assert not ModalPrefectOrchestratorConfig(synchronous=False, work_pool="pool").is_synchronous


SECRETS = ("token_id", "token_secret", "prefect_api_key")


@pytest.mark.parametrize("name", SECRETS)
def test_secrets_may_be_references(name: str) -> None:
    """ZenML refuses references for fields with validators."""
    assert not has_validators(ModalPrefectOrchestratorConfig, name)
    pair = {"token_id": "{{modal.id}}", "token_secret": "{{modal.secret}}", "prefect_api_key": "{{prefect.key}}"}
    config = ModalPrefectOrchestratorConfig(**pair)
    assert config.model_dump(exclude_unset=True) == pair  # unresolved: no store was asked
    assert len(config.required_secrets) == 3


@pytest.mark.parametrize("name", ["prefect_api_url", "work_pool"])
def test_what_is_no_secret_and_yet_may_be_a_reference(name: str) -> None:
    assert vars(ModalPrefectOrchestratorConfig(**{name: "{{a.b}}"}))[name] == "{{a.b}}"


@pytest.mark.parametrize("name", ["cloud", "modal_environment", "concurrency_limit", "work_queue"])
def test_what_is_printed_is_no_reference(name: str) -> None:
    with pytest.raises(InvalidSettings, match="this can't be a reference to a secret"):
        ModalPrefectOrchestratorConfig(**{name: "{{a.b}}"})


@pytest.mark.parametrize("name", SECRETS)
def test_secrets_show_nowhere(name: str) -> None:
    schema = ModalPrefectOrchestratorConfig.model_json_schema()
    assert schema["properties"][name]["sensitive"] is True
    secret = "as-thisisthesecret"
    both = {"token_id": "ak-public", "token_secret": "as-public"}
    assert secret not in repr(ModalPrefectOrchestratorConfig(**{**both, name: secret}))
    with pytest.raises(InvalidSettings) as caught:
        ModalPrefectOrchestratorConfig(**{**both, name: {secret: 1}})
    assert secret not in str(caught.value)
    assert secret not in repr(caught.value.__context__)
    with pytest.raises(InvalidSettings) as caught:
        ModalPrefectOrchestratorSettings(**{name + "s": secret})
    assert secret not in str(caught.value)


def test_several_mistakes_are_named_together() -> None:
    with pytest.raises(InvalidSettings, match=r"timeout=0.*Look at create_rate, max_parallelism too"):
        ModalPrefectOrchestratorSettings(max_parallelism=0, timeout=0, create_rate=-1)


def test_an_error_survives_the_way_to_another_process() -> None:
    error = InvalidSettings("gpu", [], "no type", "Name one")
    again = pickle.loads(pickle.dumps(error))
    assert (type(again), str(again), again.fix) == (InvalidSettings, str(error), "Name one")


def test_flavour() -> None:
    # Under pytest-xdist there is no main module that ZenML could take for the user's.
    source_utils.set_custom_source_root(str(Path(__file__).resolve().parents[2]))
    flavor = ModalPrefectOrchestratorFlavor()
    assert flavor.name == "modal-prefect"
    assert flavor.type is StackComponentType.ORCHESTRATOR
    assert flavor.config_class is ModalPrefectOrchestratorConfig
    assert flavor.to_model(is_custom=True).source == "bridge.flavors.ModalPrefectOrchestratorFlavor"


def test_the_package_offers_the_settings() -> None:
    import bridge

    assert bridge.ModalPrefectOrchestratorSettings is ModalPrefectOrchestratorSettings
    assert bridge.ModalPrefectStepOperatorSettings is ModalPrefectStepOperatorSettings
    assert set(bridge.__all__) <= set(dir(bridge))
    with pytest.raises(AttributeError, match="no attribute 'Settings'"):
        bridge.Settings
    lazily = "import sys, bridge, bridge.plan; print(any(m.startswith(('zenml', 'pydantic')) for m in sys.modules))"
    assert subprocess.run([sys.executable, "-c", lazily], capture_output=True, text=True).stdout.strip() == "False"


@pytest.mark.parametrize(
    ("theirs", "ours"),
    [
        (ModalOrchestratorSettings, ModalPrefectOrchestratorSettings),
        (ModalStepOperatorSettings, ModalPrefectStepOperatorSettings),
    ],
)
def test_settings_of_zenmls_modal_components_fit_unchanged(
    theirs: type[BaseSettings], ours: type[BaseSettings]
) -> None:
    """ZenML hands on the values of those that stand under the key of the component's kind, whatever their class."""
    given = {"gpu": "T4", "region": "us-east", "cloud": "aws", "modal_environment": "main", "timeout": 60}
    fields = set(theirs.model_fields) - set(ModalPrefectOrchestratorConfig.COMPONENT_ONLY)
    assert set(given) <= fields <= set(ours.model_fields)
    handed_on = dict(theirs(**given))
    assert {name: getattr(ours(**handed_on), name) for name in given} == given


def test_settings_of_zenmls_kubernetes_orchestrator_are_refused_by_name() -> None:
    theirs = KubernetesOrchestratorSettings(pod_settings={"node_selectors": {"gpu": "a100"}})
    handed_on = theirs.model_dump(exclude_unset=True)
    with pytest.raises(InvalidSettings, match=r"pod_settings=.*there is no such setting"):
        ModalPrefectOrchestratorSettings(**handed_on)


@pytest.mark.parametrize("given", [{"cpu_count": (1.0, 4.0)}, {"memory": ("1GB", "4GB")}])
def test_resources_have_no_limits(given: dict[str, object]) -> None:
    with pytest.raises(ValidationError):
        ResourceSettings.model_validate(given)


def test_there_are_two_flavours() -> None:
    offered = [one for one in vars(flavors).values() if isinstance(one, type) and issubclass(one, Flavor)]
    kinds = {one().type for one in offered if one.__module__ == flavors.__name__ and not one.__name__.startswith("_")}
    assert kinds == {StackComponentType.ORCHESTRATOR, StackComponentType.STEP_OPERATOR}
