"""Stacks in which step operators of this package stand beside an orchestrator."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any
from uuid import uuid4


def with_operators(stack: str, *operators: Mapping[str, Any]) -> tuple[str, list[str]]:
    """Make a stack like ``stack``, with what Modal needs and a step operator of each of these configurations.

    Returns its name and those of the operators.
    """
    from zenml.client import Client
    from zenml.enums import StackComponentType as Kind

    client = Client()
    names = []
    for configuration in operators:
        names.append(f"beside-{uuid4().hex[:6]}")
        client.create_stack_component(names[-1], "modal-prefect", Kind.STEP_OPERATOR, dict(configuration))
    name = f"both-{uuid4().hex[:6]}"
    client.create_stack(
        name,
        components={
            Kind.ORCHESTRATOR: client.get_stack(stack).components[Kind.ORCHESTRATOR][0].id,
            Kind.ARTIFACT_STORE: "shared",
            Kind.CONTAINER_REGISTRY: "registry",
            Kind.IMAGE_BUILDER: "builder",
            Kind.STEP_OPERATOR: names,
        },
    )
    return name, names
