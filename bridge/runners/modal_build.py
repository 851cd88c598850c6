"""Builds an image on Modal from its definition, one layer after the other: each is kept, and said when it is done."""

from __future__ import annotations

import asyncio
import shutil
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import modal
from modal import FilePatternMatcher, exception

from bridge.errors import ImageNotBuilt, RunnerError, RunnerUnavailable
from bridge.runners.modal_clients import Clients
from bridge.runners.modal_errors import SDK_ERRORS, is_away, ride_out, translated
from bridge.runners.modal_objects import ModalObjects, build_failure

if TYPE_CHECKING:
    from bridge.images.image_definition import Code, ImageDefinition, Layer

Say = Callable[[str], None]


class ImageBuilder:
    """Builds images. Belongs to one event loop; ``outage`` is how many seconds Modal may be away."""

    def __init__(self, clients: Clients, objects: ModalObjects, outage: float) -> None:
        self._clients = clients
        self._objects = objects
        self._outage = outage

    async def build(self, app_name: str, definition: ImageDefinition, environment: str | None, say: Say) -> str:
        """Build it and return its id; see :class:`bridge.runners.base.BuildsImages`."""
        app = await self._objects.app(environment, app_name)
        secrets = [await self._objects.secret(environment, name) for name in definition.build_secrets]
        credentials = await self._objects.registry_secret(definition.parent) if definition.parent else None
        with tempfile.TemporaryDirectory(prefix="zenml-modal-prefect-image-") as folder:
            image, what = _base(definition, credentials, secrets, Path(folder))
            total = 1 + len(definition.layers)
            image_id = await self._make(image, app, f"layer 1 of {total}, {what}", say)
            for number, layer in enumerate(definition.layers, 2):
                context = Path(folder) / str(number)
                context.mkdir()
                if layer.code:
                    assert definition.code is not None
                    await asyncio.to_thread(_copy, definition.code, context)
                # By its id: else the SDK asks for all layers below once more.
                below = modal.Image.from_id(image_id, client=self._clients.main)
                image = _on_top(below, layer, definition, secrets, context)
                image_id = await self._make(image, app, f"layer {number} of {total}, {layer.what}", say)
        return image_id

    async def _make(self, image: modal.Image, app: modal.App, what: str, say: Say) -> str:
        begun = time.monotonic()
        try:
            await ride_out(lambda: image.build.aio(app), self._outage, is_away)
        except exception.RemoteError as error:
            raise await self._failure(error, what) from error
        except SDK_ERRORS as error:
            raise translated(error, f"Modal can't build {what}") from error
        say(f"  {what}: {time.monotonic() - begun:.1f} s")
        assert image.object_id is not None
        return image.object_id

    async def _failure(self, error: exception.RemoteError, what: str) -> RunnerError:
        text, transient = await build_failure(self._clients.main, error, f"Modal can't build {what}")
        return RunnerUnavailable(text) if transient else ImageNotBuilt(text)


def _base(
    definition: ImageDefinition, credentials: modal.Secret | None, secrets: Sequence[modal.Secret], folder: Path
) -> tuple[modal.Image, str]:
    dockerfile = definition.dockerfile
    if dockerfile is None:
        image = modal.Image.from_registry(definition.parent, secret=credentials, force_build=definition.anew)
        return image, f"the parent image {definition.parent}"
    empty = folder / "1"
    empty.mkdir()
    copy = folder / "Dockerfile"
    copy.write_text(dockerfile.text, "utf-8")
    image = modal.Image.from_dockerfile(
        copy,
        context_dir=dockerfile.context or empty,
        ignore=FilePatternMatcher(*dockerfile.ignore),
        build_args=dict(definition.dockerfile_args),
        force_build=definition.anew,
        secrets=secrets,
    )
    return image, f"the Dockerfile {dockerfile.path}"


def _on_top(
    image: modal.Image, layer: Layer, definition: ImageDefinition, secrets: Sequence[modal.Secret], context: Path
) -> modal.Image:
    for name, text in layer.files:
        (context / name).write_text(text, "utf-8")
    return image.dockerfile_commands(
        *layer.commands,
        context_dir=context,
        ignore=[],
        secrets=secrets if layer.secrets else [],
        build_args=dict(definition.build_args),
        force_build=definition.anew,
    )


def _copy(code: Code, folder: Path) -> None:
    # The SDK gives up on files that somebody edits while it reads them.
    for name, path in code.files:
        target = folder / name
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(path, target)
