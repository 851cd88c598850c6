"""The bridge that runs ZenML pipelines as Prefect flows in Modal sandboxes."""
