"""A code repository whose commits are folders."""

from __future__ import annotations

import shutil
from pathlib import Path

from zenml.code_repositories import BaseCodeRepository, LocalRepositoryContext
from zenml.code_repositories.base_code_repository import BaseCodeRepositoryConfig


class FolderRepositoryConfig(BaseCodeRepositoryConfig):
    checkout: str
    commits: str
    commit: str


class FolderRepository(BaseCodeRepository):
    @property
    def config(self) -> FolderRepositoryConfig:
        return FolderRepositoryConfig(**self._config)

    def login(self) -> None:
        """Nobody has to."""

    def download_files(self, commit: str, directory: str, repo_sub_directory: str | None) -> None:
        place = Path(self.config.commits) / commit / (repo_sub_directory or "")
        shutil.copytree(place, directory, dirs_exist_ok=True)

    def get_local_context(self, path: str) -> LocalRepositoryContext | None:
        return Checkout(self) if Path(path).is_relative_to(self.config.checkout) else None


class Checkout(LocalRepositoryContext):
    """A clean one, of the one commit."""

    @property
    def config(self) -> FolderRepositoryConfig:
        config = self.code_repository.config
        assert isinstance(config, FolderRepositoryConfig)
        return config

    @property
    def root(self) -> str:
        return self.config.checkout

    @property
    def is_dirty(self) -> bool:
        return False

    @property
    def has_local_changes(self) -> bool:
        return False

    @property
    def current_commit(self) -> str:
        return self.config.commit
