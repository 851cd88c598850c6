"""A stack component of the user's that no host can import: only a program that runs a step can."""

from __future__ import annotations

import sys

from zenml.alerter.base_alerter import BaseAlerter, BaseAlerterConfig, BaseAlerterFlavor
from zenml.client import Client
from zenml.enums import StackComponentType

if {"pipeline", "serve"} & set(sys.argv):
    raise RuntimeError("it needs the step's code\nand a second line")

STACK = "picky"


class PickyAlerter(BaseAlerter):
    pass


class PickyFlavor(BaseAlerterFlavor):
    @property
    def name(self) -> str:
        return "picky"

    @property
    def config_class(self) -> type[BaseAlerterConfig]:
        return BaseAlerterConfig

    @property
    def implementation_class(self) -> type[PickyAlerter]:
        return PickyAlerter


def activate() -> None:
    """Make the stack with it the active one; the first time also the component."""
    client = Client()
    if not client.list_stacks(name=STACK).items:
        client.create_flavor("picky_flavor.PickyFlavor", StackComponentType.ALERTER)
        client.create_stack_component(STACK, "picky", StackComponentType.ALERTER, {})
        others = {kind: found[0].name for kind, found in client.get_stack("host-test").components.items()}
        client.create_stack(STACK, {**others, StackComponentType.ALERTER: STACK})
    client.activate_stack(STACK)


def deactivate() -> None:
    """Let the other pipelines run on the stack that they ran on."""
    Client().activate_stack("host-test")
