"""Where a step runs, as the metadata of its step run in ZenML. Imports ZenML, and nothing that a sandbox may lack."""

from __future__ import annotations

from zenml.metadata.metadata_types import MetadataType, Uri

from bridge import names


def sandbox_metadata(sandbox_id: str, url: str | None) -> dict[str, MetadataType]:
    """Return the metadata of a step run in this sandbox; ``url`` is its page, where it has one."""
    metadata: dict[str, MetadataType] = {names.METADATA_SANDBOX_ID: sandbox_id}
    if url is not None:
        metadata[names.METADATA_SANDBOX_URL] = Uri(url)
    return metadata
