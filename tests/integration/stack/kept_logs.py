"""A log store that appends to a file what it holds, once it is told to flush."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

from zenml.log_stores.base_log_store import BaseLogStore, BaseLogStoreConfig, BaseLogStoreFlavor, BaseLogStoreOrigin


class KeptLogsConfig(BaseLogStoreConfig):
    folder: str


class KeptLogs(BaseLogStore):
    """Lines are in memory until a flush: a process that ends without one loses them, one that forks doubles them."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._held: list[str] = []

    def emit(
        self, origin: BaseLogStoreOrigin, record: logging.LogRecord, metadata: dict[str, Any] | None = None
    ) -> None:
        said = origin.metadata
        line = {"log": str(origin.log_model.id), "line": record.getMessage()}
        told = {"run": said.get("zenml.pipeline.run.id"), "step": said.get("zenml.step.run.name")}
        with self._lock:
            self._held.append(json.dumps({**told, "source": origin.log_model.source, **line}))

    def _release_origin(self, origin: BaseLogStoreOrigin) -> None:
        """Its lines are among the others, until the flush."""

    def flush(self, blocking: bool = True) -> None:
        del blocking
        with self._lock:
            lines, self._held = self._held, []
        folder: str = self.config.folder  # type: ignore[attr-defined]
        with (Path(folder) / "kept.jsonl").open("ab", buffering=0) as file:  # one write: others append, too
            file.write("".join(f"{line}\n" for line in lines).encode())

    def fetch(self, logs_model: Any, *_: Any, **__: Any) -> Any:
        raise NotImplementedError


class KeptLogsFlavor(BaseLogStoreFlavor):
    @property
    def name(self) -> str:
        return "kept-logs"

    @property
    def config_class(self) -> type[KeptLogsConfig]:
        return KeptLogsConfig

    @property
    def implementation_class(self) -> type[KeptLogs]:
        return KeptLogs
