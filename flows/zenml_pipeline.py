"""The flow that `prefect deploy` reads: see `prefect.yaml`. The code is in the package."""

from bridge.flow import zenml_pipeline

__all__ = ["zenml_pipeline"]
