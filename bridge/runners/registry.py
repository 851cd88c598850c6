"""A container registry: which images come from it, and who pulls them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

DOCKER_HUB = frozenset({"docker.io", "index.docker.io", "registry.hub.docker.com"})
"""The names of Docker Hub, which is also where images without the name of a registry come from."""


@dataclass(frozen=True, slots=True)
class Registry:
    """A container registry, whose user and password no other registry may see."""

    uri: str
    """What the names of its images begin with, as ZenML has it: ``ghcr.io/acme``."""
    login: Callable[[], tuple[str, str] | None] = field(repr=False)
    """Asks for user and password, None where it needs none. Called for each image that is built: the tokens of clouds
    are good for hours only, and a run may need an image first when it is a day old.

    Blocks. Raises ``RunnerUnavailable`` where they can't be asked for now, ``SandboxRefused`` where there are none.
    """

    def has(self, image: str) -> bool:
        """Whether this image comes from it."""
        return _in_full(image).startswith(_in_full(f"{self.uri.rstrip('/')}/"))


def _in_full(name: str) -> str:
    # Docker leaves out the name of Docker Hub when it tells the digest of what was pushed there, which ZenML keeps.
    registry, slash, rest = name.partition("/")
    if not slash or not (registry == "localhost" or "." in registry or ":" in registry):
        registry, rest = "docker.io", name
    return f"{'docker.io' if registry in DOCKER_HUB else registry}/{rest}"
