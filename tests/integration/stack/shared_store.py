"""A remote artifact store for tests: a folder that the flow and the sandboxes share, under a scheme of its own.

ZenML calls a store remote when its path has a scheme that isn't a local path.
"""

from __future__ import annotations

import glob
import os
import shutil
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, ClassVar

from zenml.artifact_stores import BaseArtifactStore, BaseArtifactStoreConfig, BaseArtifactStoreFlavor
from zenml.constants import REMOTE_FS_PREFIX

SCHEME = "shared://"
REMOTE_FS_PREFIX.append(SCHEME)  # ZenML's materializer of pydantic models takes any other scheme for a local path
AWAY = ".away"
"""A file of this name in the folder of the store: nobody can reach it."""


class SharedStoreConfig(BaseArtifactStoreConfig):
    SUPPORTED_SCHEMES: ClassVar[set[str]] = {SCHEME}


def local(path: Any) -> str:
    text = path.decode() if isinstance(path, bytes) else str(path)
    if not text.startswith(SCHEME):
        return text
    found = Path("/" + text[len(SCHEME) :].lstrip("/"))
    if any((folder / AWAY).exists() for folder in (found, *found.parents)):
        raise ConnectionError("The artifact store can't be reached")
    return str(found)


class SharedStore(BaseArtifactStore):
    def open(self, path: Any, mode: str = "r") -> Any:
        return open(local(path), mode)

    def copyfile(self, src: Any, dst: Any, overwrite: bool = False) -> None:
        if not overwrite and os.path.exists(local(dst)):
            raise FileExistsError(dst)
        shutil.copyfile(local(src), local(dst))

    def exists(self, path: Any) -> bool:
        return os.path.exists(local(path))

    def glob(self, pattern: Any) -> list[Any]:
        return [SCHEME + found.lstrip("/") for found in glob.glob(local(pattern))]

    def isdir(self, path: Any) -> bool:
        return os.path.isdir(local(path))

    def listdir(self, path: Any) -> list[Any]:
        return list(os.listdir(local(path)))

    def makedirs(self, path: Any) -> None:
        os.makedirs(local(path), exist_ok=True)

    def mkdir(self, path: Any) -> None:
        os.mkdir(local(path))

    def remove(self, path: Any) -> None:
        os.remove(local(path))

    def rename(self, src: Any, dst: Any, overwrite: bool = False) -> None:
        if not overwrite and os.path.exists(local(dst)):
            raise FileExistsError(dst)
        os.replace(local(src), local(dst))

    def rmtree(self, path: Any) -> None:
        shutil.rmtree(local(path))

    def stat(self, path: Any) -> Any:
        return os.stat(local(path))

    def size(self, path: Any) -> int | None:
        return os.path.getsize(local(path))

    def walk(
        self, top: Any, topdown: bool = True, onerror: Callable[..., None] | None = None
    ) -> Iterable[tuple[Any, list[Any], list[Any]]]:
        for folder, folders, files in os.walk(local(top), topdown, onerror):
            yield SCHEME + folder.lstrip("/"), list(folders), list(files)


class SharedStoreFlavor(BaseArtifactStoreFlavor):
    @property
    def name(self) -> str:
        return "shared-folder"

    @property
    def config_class(self) -> type[SharedStoreConfig]:
        return SharedStoreConfig

    @property
    def implementation_class(self) -> type[SharedStore]:
        return SharedStore
