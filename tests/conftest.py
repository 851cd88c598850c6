"""No test reads or writes the ZenML configuration of whoever runs them."""

from __future__ import annotations

import os
import tempfile

# Before ZenML is imported: it reads the variable once, and some of its classes open a store as soon as they are made.
os.environ["ZENML_CONFIG_PATH"] = tempfile.mkdtemp(prefix="zenml-tests-")
os.environ["ZENML_ANALYTICS_OPT_IN"] = "false"
