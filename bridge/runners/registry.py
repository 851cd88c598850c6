"""User and password of a container registry, and which images they are for."""

from __future__ import annotations

from dataclasses import dataclass, field

DOCKER_HUB = frozenset({"docker.io", "index.docker.io", "registry.hub.docker.com"})
"""The names of Docker Hub, which is also where images without the name of a registry come from."""


@dataclass(frozen=True, slots=True)
class RegistryCredentials:
    """User and password of a container registry, which no other registry may see.

    ``uri`` is what the names of its images begin with, as ZenML has it: ``ghcr.io/acme``.
    """

    uri: str
    user: str
    password: str = field(repr=False)

    def are_for(self, image: str) -> bool:
        """Whether they are for the registry that this image comes from."""
        return _in_full(image).startswith(_in_full(f"{self.uri.rstrip('/')}/"))


def _in_full(name: str) -> str:
    # Docker leaves out the name of Docker Hub when it tells the digest of what was pushed there, which ZenML keeps.
    registry, slash, rest = name.partition("/")
    if not slash or not (registry == "localhost" or "." in registry or ":" in registry):
        registry, rest = "docker.io", name
    return f"{'docker.io' if registry in DOCKER_HUB else registry}/{rest}"
