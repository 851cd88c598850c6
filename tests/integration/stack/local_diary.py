"""A stack component that keeps its data on this machine, as a local experiment tracker does."""

from __future__ import annotations

from typing import Any

from zenml.alerter import BaseAlerter, BaseAlerterConfig, BaseAlerterFlavor


class LocalDiaryConfig(BaseAlerterConfig):
    folder: str

    @property
    def is_local(self) -> bool:
        return True


class LocalDiary(BaseAlerter):
    @property
    def local_path(self) -> str:
        folder: str = self.config.folder  # type: ignore[attr-defined]
        return folder

    def post(self, message: str, params: Any = None) -> bool:
        raise NotImplementedError

    def ask(self, question: str, params: Any = None) -> bool:
        raise NotImplementedError


class LocalDiaryFlavor(BaseAlerterFlavor):
    @property
    def name(self) -> str:
        return "local-diary"

    @property
    def config_class(self) -> type[LocalDiaryConfig]:
        return LocalDiaryConfig

    @property
    def implementation_class(self) -> type[LocalDiary]:
        return LocalDiary
