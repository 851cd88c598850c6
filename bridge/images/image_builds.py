"""Has Modal build the images of a pipeline before ZenML would have Docker build them.

ZenML is then told of images that need no build, and keeps their ids in the snapshot's own build: that is how they reach
every run of the snapshot, on a worker and on a schedule too.
"""

from __future__ import annotations

from collections.abc import Callable, Coroutine, Sequence
from typing import Any, TypeVar

from zenml.config import DockerSettings
from zenml.config.build_configuration import BuildConfiguration
from zenml.logger import get_logger
from zenml.stack import Stack

from bridge import names
from bridge.errors import RunNotPossible
from bridge.images.image_definition import ImageDefinition, define
from bridge.images.image_facts import facts_of
from bridge.runners.base import BuildsImages, Runner
from bridge.said_once import SaidOnce

T = TypeVar("T")
Ask = Callable[[Callable[[Runner], Coroutine[Any, Any, T]]], T]
"""Runs a coroutine with a runner that is entered, and returns its result."""

_NOT_ANEW = (
    "DockerSettings.prevent_build_reuse of {}: not used, skip_build=True builds nothing. Modal pulls a tag once: name "
    "a digest for another image."
)

logger = get_logger(__name__)


class ImageBuilds:
    """The images that one component has had built in this process.

    ZenML asks a component for its builds several times a run: each image is built once.
    """

    def __init__(self) -> None:
        self._built: dict[tuple[str | None, ImageDefinition], str] = {}
        self._warnings = SaidOnce()
        self._submission: object = None

    def built(
        self,
        builds: Sequence[BuildConfiguration],
        stack: Stack,
        app: str,
        build_secrets: Sequence[str],
        environment_of: Callable[[str | None], str | None],
        ask: Ask[str],
        submission: object,
    ) -> list[BuildConfiguration]:
        """Return these builds as ones of finished images.

        Args:
            builds: What ZenML would build.
            stack: The stack of the run.
            app: The Modal app in which they are built.
            build_secrets: Names of Modal Secrets that the build's commands see.
            environment_of: The Modal environment of a step; of the pipeline for None.
            ask: Runs the build.
            submission: What is the same object each time that ZenML asks for one call of the pipeline, and no other:
                what is to be built anew is built once for it.

        Raises ``InvalidSettings``, ``ImageNotBuilt``, ``RunnerError``.
        """
        if submission is not self._submission:
            self._submission = submission
            self._built = {key: image for key, image in self._built.items() if not key[1].anew}
        for build in builds:
            if build.settings.skip_build and build.settings.prevent_build_reuse:
                self._warnings.warn([_NOT_ANEW.format(_where(build))], logger)
        return [
            build
            if build.settings.skip_build
            else _finished(build, self._image(build, stack, app, build_secrets, environment_of(build.step_name), ask))
            for build in builds
        ]

    def _image(
        self,
        build: BuildConfiguration,
        stack: Stack,
        app: str,
        build_secrets: Sequence[str],
        environment: str | None,
        ask: Ask[str],
    ) -> str:
        where = _where(build)
        translation = define(build.settings, facts_of(build, stack, build_secrets, where), where)
        self._warnings.warn(translation.warnings, logger)
        definition = translation.definition
        key = (environment, definition)
        if key not in self._built:
            logger.info("Modal builds the image of %s:\n%s", where, definition)

            async def build_it(runner: Runner) -> str:
                if not isinstance(runner, BuildsImages):
                    raise RunNotPossible(f"The runner `{runner.kind}` builds no images.")
                return await runner.build_image(app, definition, environment, lambda text: logger.info("%s", text))

            self._built[key] = ask(build_it)
            logger.info("The image of %s is %s.", where, names.built_image(self._built[key]))
        return names.built_image(self._built[key])


def _where(build: BuildConfiguration) -> str:
    return f"step {build.step_name}" if build.step_name else "the pipeline"


def _finished(build: BuildConfiguration, image: str) -> BuildConfiguration:
    """The same build, of an image that is there. How the code gets into a sandbox stays as it was."""
    given = build.settings
    settings = DockerSettings(
        parent_image=image,
        skip_build=True,
        disable_automatic_requirements_detection=True,
        install_stack_requirements=False,
        allow_including_files_in_images=given.allow_including_files_in_images,
        allow_download_from_code_repository=given.allow_download_from_code_repository,
        allow_download_from_artifact_store=given.allow_download_from_artifact_store,
        local_project_install_command=given.local_project_install_command,
    )
    return BuildConfiguration(key=build.key, settings=settings, step_name=build.step_name)
