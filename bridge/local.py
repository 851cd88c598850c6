"""What sandboxes on this machine need besides: where local artifacts and the user's code are. Imports ZenML."""

from __future__ import annotations

import os

from zenml.config.global_config import GlobalConfiguration
from zenml.constants import ENV_ZENML_LOCAL_STORES_PATH
from zenml.utils import source_utils

from bridge import names


def local_environment(runner: str) -> dict[str, str]:
    """Return the variables, none where ``runner`` is another machine."""
    if runner != "process":
        return {}
    return {
        ENV_ZENML_LOCAL_STORES_PATH: GlobalConfiguration().local_stores_path,
        names.ENV_SOURCE_ROOT: os.environ.get(names.ENV_SOURCE_ROOT) or source_utils.get_source_root(),
    }
