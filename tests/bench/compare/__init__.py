"""The same pipelines on this package and on ZenML's own orchestrators: ``python -m tests.bench compare``."""
