"""Random pipelines under random faults, judged by a model that knows nothing of `bridge`."""
