"""A Modal on this machine for tests: the real SDK's protocol on loopback, sandboxes as real processes."""

from tests.loopback.model import LoopbackImage, SandboxRecord, Stats
from tests.loopback.server import LoopbackModal

__all__ = ["LoopbackImage", "LoopbackModal", "SandboxRecord", "Stats"]
