"""What a test says to the loopback server and reads from it: frozen data, no behaviour."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path


@dataclass(frozen=True)
class LoopbackImage:
    """An image in "the registry".

    Args:
        python: The interpreter that ``python`` and ``python3`` mean in it.
        env: Its ``ENV``.
        files: What it brings, path in the image -> file or folder on this machine (copied).
        credentials: User and password that the registry asks for, or what says whether it takes them.
        entrypoint: Its ``ENTRYPOINT``, in front of whatever a sandbox of it is to run.
    """

    python: Path
    env: Mapping[str, str] = field(default_factory=dict)
    files: Mapping[str, Path] = field(default_factory=dict)
    credentials: tuple[str, str] | Callable[[str, str], bool] | None = None
    entrypoint: tuple[str, ...] = ()

    def lets_in(self, login: tuple[str, str] | None) -> bool:
        """Whether who comes with this user and password, or with none, gets the image."""
        if callable(self.credentials):
            return login is not None and self.credentials(*login)
        return self.credentials is None or login == self.credentials


@dataclass(frozen=True)
class SandboxRecord:
    """What the server knows of a sandbox. ``environment`` is what the client sent, secrets and ``env`` together:
    on the V1 protocol the two can't be told apart. ``status`` is ``pending``, ``running`` or a name of
    ``GenericResult.GenericStatus`` in lower case, without its prefix. Seconds are wall time since scheduling;
    ``created_at`` is when it was asked for, in seconds of ``time.time()``."""

    id: str
    task_id: str
    name: str
    app: str
    backend: int
    argv: tuple[str, ...]
    tags: Mapping[str, str]
    environment: Mapping[str, str] = field(repr=False)
    named_secrets: tuple[str, ...]
    image: str
    registry_image: str
    cpu_milli: int
    memory_mib: int
    gpu_type: str
    gpu_count: int
    region: tuple[str, ...]
    cloud: str
    modal_environment: str
    volumes: Mapping[str, str]
    """Names by mount path, with ``, read-only`` behind them where they are."""
    network: str
    """``open``, ``blocked`` or ``allowlist``."""
    allowed_cidrs: tuple[str, ...]
    allowed_domains: tuple[str, ...]
    timeout: int
    idle_timeout: int
    status: str
    exit_code: int | None
    created_at: float
    seconds: float
    pid: int | None
    folder: Path


@dataclass(frozen=True)
class Stats:
    """Sums over the server's life. Seconds run from scheduling to the end (or now); ``calls`` count RPCs by name,
    ``in_flight`` those that are being served, ``creating`` the creates, also of a client that is gone."""

    created: int
    alive: int
    most_at_once: int
    sandbox_seconds: float
    gpu_seconds: float
    image_builds: int
    calls: Mapping[str, int]
    in_flight: Mapping[str, int]
    creating: int
