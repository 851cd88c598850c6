"""What Modal needs to know of this machine and this stack to build an image: requirements, code, a Dockerfile.

ZenML's own image builder gathers the requirements, so that an image of Modal's has what one of Docker's would have.
"""

from __future__ import annotations

import hashlib
import os
import posixpath
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import zenml
from zenml.code_repositories import BaseCodeRepository
from zenml.config import DockerSettings
from zenml.config.build_configuration import BuildConfiguration
from zenml.image_builders import BuildContext
from zenml.integrations.registry import integration_registry
from zenml.stack import Stack
from zenml.utils import code_repository_utils, source_utils
from zenml.utils.pipeline_docker_image_builder import DEFAULT_DOCKER_PARENT_IMAGE, PipelineDockerImageBuilder

from bridge.errors import InvalidSettings
from bridge.images.image_definition import Code, Dockerfile, Facts, without_passwords

MOST_CODE_BYTES = 500 << 20
"""Code that is larger holds data by mistake."""


def facts_of(build: BuildConfiguration, stack: Stack, build_secrets: Sequence[str], where: str) -> Facts:
    """Gather them for one image, whose settings are those of ``where``.

    Raises ``InvalidSettings`` where a file that the settings name isn't there, or a command that they name fails.
    """
    settings = build.settings
    repository = _code_repository()
    from_repository = build.should_download_files_from_code_repository(repository)
    code, left_out = _code(settings, where) if build.should_include_files(repository) else (None, ())
    return Facts(
        zenml=zenml.__version__,
        default_parent=DEFAULT_DOCKER_PARENT_IMAGE,
        requirements=_requirements(build, stack, repository if from_repository else None, where),
        apt_packages=_apt_packages(settings, stack),
        code=code,
        left_out=left_out,
        dockerfile=_dockerfile(settings, where),
        build_secrets=tuple(build_secrets),
    )


def _code_repository() -> BaseCodeRepository | None:
    """The repository from which a sandbox can fetch this very code, as ZenML decides it (pipelines/build_utils.py)."""
    context = code_repository_utils.find_active_code_repository()
    return None if context is None or context.has_local_changes else context.code_repository


def _requirements(
    build: BuildConfiguration, stack: Stack, repository: BaseCodeRepository | None, where: str
) -> tuple[tuple[str, str], ...]:
    try:
        files = PipelineDockerImageBuilder.gather_requirements_files(
            docker_settings=build.settings,
            stack=stack,
            code_repository=repository,
            log=False,
            extra_requirements_files=build.extra_requirements_files,
        )
    except (OSError, RuntimeError, LookupError, ValueError) as error:
        # Without its cause, whose text may show a password.
        raise InvalidSettings(
            f"DockerSettings of {where}",
            _asked(build.settings),
            f"the requirements can't be gathered: {without_passwords(str(error))}",
            "Name files that exist, relative to the folder where you run the pipeline, and commands that succeed there",
        ) from None
    return tuple((name, text) for name, text, _ in files)


def _asked(settings: DockerSettings) -> dict[str, object]:
    names = (
        "requirements",
        "pyproject_path",
        "pyproject_export_command",
        "replicate_local_python_environment",
        "required_integrations",
    )
    return {name: _shown(value) for name in names if (value := vars(settings)[name])}


def _shown(value: object) -> object:
    if isinstance(value, list):
        return [_shown(item) for item in value]
    return without_passwords(value) if isinstance(value, str) else value


def _apt_packages(settings: DockerSettings, stack: Stack) -> tuple[str, ...]:
    packages = list(stack.apt_packages) if settings.install_stack_requirements else []
    for name in settings.required_integrations:
        packages += integration_registry.integrations[name].APT_PACKAGES
    return tuple(packages)


def _code(settings: DockerSettings, where: str) -> tuple[Code, tuple[str, ...]]:
    """The code, and what of its links is left out."""
    root = source_utils.get_source_root()
    of_build = settings.build_config.dockerignore if settings.build_config else None
    ignored = of_build or settings.dockerignore
    named = "build_config.dockerignore" if of_build else "dockerignore"
    used = ignored or os.path.join(root, ".dockerignore")
    if ignored or os.path.isfile(used):
        _text(named, used, where)  # which says what is wrong with it; ZenML reads it below
    try:
        return _code_below(root, ignored, where)
    except OSError as error:
        raise InvalidSettings(
            f"the source root of {where}",
            root,
            f"it can't be read: {error}",
            "Let this user read it, or name the file in a `.dockerignore` of the source root if it isn't code",
        ) from error


def _code_below(root: str, ignored: str | None, where: str) -> tuple[Code, tuple[str, ...]]:
    all_of_it = BuildContext(root=root, dockerignore_file=ignored).get_files()
    found = {name: path for name, path in all_of_it.items() if os.path.isfile(path) and not name.endswith(".pyc")}
    links = [name for name, path in all_of_it.items() if os.path.islink(path) and os.path.isdir(path)]
    linked, left_out = _linked(root, found, links)
    found.update((name, os.path.join(root, name)) for name in linked)
    size = sum(os.path.getsize(path) for path in found.values())
    if size > MOST_CODE_BYTES:
        raise InvalidSettings(
            f"the source root of {where}",
            root,
            f"its {len(found)} files are {size >> 20} MiB, too much for code in an image",
            "Name what isn't code in a `.dockerignore` there, or run `zenml init` in the folder of the code",
        )
    files = tuple(sorted(found.items()))
    return Code(files, _digest(files)), left_out


def _linked(root: str, files: Iterable[str], links: Iterable[str]) -> tuple[list[str], tuple[str, ...]]:
    """The names that files have through links to folders, and links that aren't followed: out of the source root,
    which a link to a data set may do, or in a circle. All names are relative to the root."""
    real = os.path.realpath(root)
    places = {link: os.path.relpath(os.path.realpath(os.path.join(root, link)), real) for link in sorted(links)}

    def below(folder: str, way: tuple[str, ...]) -> Iterator[str]:
        yield from (name[len(folder) + 1 :] for name in files if _is_in(name, folder))
        for link in places:
            if _is_in(link, folder):
                yield from (f"{link[len(folder) + 1 :]}/{name}" for name in through(link, way))

    def through(link: str, way: tuple[str, ...]) -> Iterator[str]:
        way = (*way, posixpath.dirname(link))
        if may_follow(places[link], way):
            yield from below(places[link], (*way, places[link]))

    def may_follow(place: str, way: tuple[str, ...]) -> bool:
        outside = place.split(os.sep)[0] in (os.curdir, os.pardir)
        return not outside and not any(_is_in(f"{passed}/", place) for passed in way)

    names = [f"{link}/{name}" for link in places for name in through(link, ())]
    return names, tuple(link for link in places if not may_follow(places[link], (posixpath.dirname(link),)))


def _is_in(name: str, folder: str) -> bool:
    return name.startswith(f"{folder}/")


def _digest(files: Sequence[tuple[str, str]]) -> str:
    total = hashlib.sha256()
    for name, path in files:
        content = hashlib.sha256(Path(path).read_bytes()).hexdigest()
        total.update(f"{name}\0{content}\0{os.stat(path).st_mode:o}\0".encode("utf-8", "surrogateescape"))
    return total.hexdigest()


def _dockerfile(settings: DockerSettings, where: str) -> Dockerfile | None:
    path, context = settings.dockerfile, settings.build_context_root
    if path is None:
        return None
    text = _text("dockerfile", path, where)
    if context is not None and not os.path.isdir(context):
        raise _not_there("build_context_root", context, where)
    config = settings.parent_image_build_config
    ignored = config.dockerignore if config else None
    if ignored is None and context is not None and os.path.isfile(os.path.join(context, ".dockerignore")):
        ignored = os.path.join(context, ".dockerignore")
    patterns = _patterns(_text("parent_image_build_config.dockerignore", ignored, where)) if ignored else ()
    return Dockerfile(path, text, context, tuple(patterns))


def _patterns(dockerignore: str) -> Iterator[str]:
    """As Docker understands them: Modal's SDK takes comments for patterns, and `!/a` for another one than `!a`."""
    for line in map(str.strip, dockerignore.splitlines()):
        if line.startswith("#"):
            continue
        kept = line.startswith("!")
        path = posixpath.normpath(line[kept:].strip().strip("/"))
        if path != ".":
            yield f"!{path}" if kept else path


def _text(field: str, path: str, where: str) -> str:
    if not os.path.isfile(path):
        raise _not_there(field, path, where)
    try:
        return Path(path).read_text("utf-8")
    except OSError as error:
        raise InvalidSettings(
            f"DockerSettings.{field} of {where}", path, f"it can't be read: {error}", "Let this user read it"
        ) from error
    except UnicodeDecodeError as error:
        raise InvalidSettings(
            f"DockerSettings.{field} of {where}", path, f"its text isn't UTF-8: {error}", "Save it as UTF-8"
        ) from error


def _not_there(field: str, path: str, where: str) -> InvalidSettings:
    return InvalidSettings(
        f"DockerSettings.{field} of {where}",
        path,
        f"there is no such file or folder ({os.path.abspath(path)})",
        "Name one that exists, relative to the folder from which you run the pipeline",
    )
