"""The flow that ends what nobody owns any more: see `prefect.yaml`. The code is in the package."""

from bridge.sweep_flow import sweep_stacks

__all__ = ["sweep_stacks"]
