"""The image that Modal builds for a ``DockerSettings``, as frozen, printable data. No files, network or environment.

The instructions are those of a Dockerfile, in layers: what changes least comes first and the code last, so that another
version of the code makes its own layer again and no other. What Modal can't build is refused by name, and nothing that
looks like a password gets into a layer: whoever can use an image can read its layers.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace

from zenml.config import DockerSettings
from zenml.config.docker_settings import DockerBuildConfig, PythonPackageInstaller
from zenml.utils.secret_utils import is_secret_reference

from bridge.errors import InvalidSettings

FOLDER = "/app"
"""Where ZenML's images have the user's code, and their working folder."""

_VARIABLE = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
_USER = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]*(:[A-Za-z0-9_][A-Za-z0-9_.-]*)?")
_APT_PACKAGE = re.compile(r"[A-Za-z0-9][A-Za-z0-9.+\-:=~_*/]*")
_CREDENTIALS = re.compile(
    r"""(?P<scheme>[A-Za-z][A-Za-z0-9+.-]*)://
    (?P<who> [^\s/'"]+
      # A password that should have been quoted for a URL. What looks like it is a port: then comes a path.
      | [^\s/@:'"\[$]* : (?! (\d*|\$\w+|\$\{\w+\}) [/'"] ) [^\s@]+
    )@""",
    re.VERBOSE,
)
_EDITABLE = re.compile(r"\s*(-e|--editable)")
_CONTINUED = re.compile(r"\\\n\s*")
"""Where the next line of a requirements file or a Dockerfile belongs to this one."""
_IN_A_COMMAND = re.compile(r"\$(\{\w+\}|\w+)")
"""How a shell finds a variable."""
_IN_REQUIREMENTS = re.compile(r"\$\{[A-Z0-9_]+\}")
"""How pip and uv find one in a requirements file."""
_IN_AN_ARGUMENT = re.compile(rf"\$\{{{_VARIABLE.pattern}\}}")
"""How one is written in an argument of the installer."""
_SPECIAL = re.compile(rf'[\\"`]|\$(?!\{{{_VARIABLE.pattern}\}})')
"""What else means something between double quotes."""
_FILES_FROM = re.compile(r"^\s*ADD\s+(?!(--\S+\s+)*https?://)", re.IGNORECASE)
_MOUNT = re.compile(r"^\s*RUN\s+(--\S+\s+)*--mount=", re.IGNORECASE)
_COPY_OF_FILES = re.compile(r"^\s*COPY\s+(?!.*--from=)", re.IGNORECASE)

_FOR_STEPS = "Give it to the steps: ZenML's or Modal's `secrets`; for the build alone, `build_secrets`"
_FOR_THE_BUILD = "Put it into a Modal Secret, name that in the component's `build_secrets`, and write ${NAME}"
_OR_NO_NAME = ". If it is but a name, leave the name before @ out"

UNUSED = {
    "image_tag": "Modal gives images ids, not tags",
    "target_repository": "nothing is pushed to a registry",
    "python_package_installer_cache_mount": "Modal's builder has no cache mounts; it keeps each layer instead",
    "build_options": "ZenML itself doesn't use it any more",
}
"""Fields of ``DockerSettings`` that change nothing in an image that Modal builds, and why."""
_DOCKERS_OWN = {"pull", "rm"}
"""Build options that say how Docker keeps house; Modal does it by itself."""


@dataclass(frozen=True, slots=True)
class Code:
    """The user's code: pairs of a path in the image, below :data:`FOLDER`, and its file here; and a hash of it all."""

    files: tuple[tuple[str, str], ...]
    digest: str


@dataclass(frozen=True, slots=True)
class Dockerfile:
    """A user's own Dockerfile. ``ignore`` are the patterns of its dockerignore; without ``context`` it has no files."""

    path: str
    text: str
    context: str | None = None
    ignore: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Facts:
    """What a translation needs to know beyond the settings.

    ``requirements`` are pairs of a file's name and its text, in the order of their installation. ``apt_packages`` are
    those of the stack and of integrations. ``code`` is None where the sandbox fetches it; ``left_out`` are links of it
    to folders that can't be followed.
    """

    zenml: str
    default_parent: str
    requirements: tuple[tuple[str, str], ...] = ()
    apt_packages: tuple[str, ...] = ()
    code: Code | None = None
    left_out: tuple[str, ...] = ()
    dockerfile: Dockerfile | None = None
    build_secrets: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Layer:
    """One step of a build, which Modal keeps as long as it and those before it stay the same.

    ``what`` is for a person. ``files`` is what its ``COPY`` instructions find: names and texts. ``secrets`` says if
    its commands see the build's secrets, ``code`` whether they find the user's code.
    """

    what: str
    commands: tuple[str, ...]
    files: tuple[tuple[str, str], ...] = ()
    secrets: bool = False
    code: bool = False


@dataclass(frozen=True, slots=True)
class ImageDefinition:
    """An image to be built. It begins with ``parent``, a reference of a registry, or with ``dockerfile``.

    ``dockerfile_args`` are the build arguments of the Dockerfile, ``build_args`` those of the layers above.
    ``build_secrets`` are names of Modal Secrets. ``anew`` says that no layer which Modal has kept may be used, so that
    what a tag or a URL stands for by now gets into the image.
    """

    parent: str
    layers: tuple[Layer, ...]
    dockerfile: Dockerfile | None = None
    dockerfile_args: tuple[tuple[str, str], ...] = ()
    build_args: tuple[tuple[str, str], ...] = ()
    build_secrets: tuple[str, ...] = ()
    code: Code | None = None
    anew: bool = False

    def __str__(self) -> str:
        first = f"# {self.dockerfile.path}\n{self.dockerfile.text}" if self.dockerfile else f"FROM {self.parent}"
        lines = [first.rstrip()]
        for layer in self.layers:
            lines += [f"# {layer.what}", *layer.commands]
        return without_passwords("\n".join(lines))


@dataclass(frozen=True, slots=True)
class Translation:
    """A definition, and what of the user's settings it doesn't use."""

    definition: ImageDefinition
    warnings: tuple[str, ...] = ()


def define(settings: DockerSettings, facts: Facts, where: str) -> Translation:
    """Translate the settings of ``where``, say "the pipeline". Raises ``InvalidSettings`` for what can't be built."""
    return _Translator(settings, facts, where).translation()


@dataclass
class _Translator:
    settings: DockerSettings
    facts: Facts
    where: str
    values: Mapping[str, object] = field(init=False)
    warnings: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.values = vars(self.settings)  # attribute access would resolve references to secrets

    def translation(self) -> Translation:
        self._refuse_secrets()
        self._refuse_editable()
        self._warn()
        settings, facts = self.settings, self.facts
        arguments = self._build_args("build_config", settings.build_config)
        dockerfile_arguments = self._dockerfile_args()
        layers = [
            Layer("the working folder and the environment", (f"WORKDIR {FOLDER}", *self._env("environment"))),
            *self._apt(),
            *self._python(),
            *self._rest(),
        ]
        definition = ImageDefinition(
            parent="" if facts.dockerfile else settings.parent_image or facts.default_parent,
            layers=tuple(_with_arguments(layer, arguments) for layer in layers),
            dockerfile=facts.dockerfile,
            dockerfile_args=tuple(sorted(dockerfile_arguments.items())),
            build_args=tuple(sorted(arguments.items())),
            build_secrets=facts.build_secrets,
            code=facts.code,
            anew=settings.prevent_build_reuse,
        )
        return Translation(definition, tuple(self.warnings))

    def _env(self, name: str) -> Iterator[str]:
        values: dict[str, object] = dict(getattr(self.settings, name))
        for key, value in values.items():
            text = str(value)
            if not _VARIABLE.fullmatch(key) or "\n" in text:
                raise self._wrong(
                    name, key, "that is no name, or no value, of a variable of an image", "Write A_NAME=text"
                )
            yield f"ENV {key.upper()}={shlex.quote(text)}"  # in capitals, as ZenML writes them

    def _apt(self) -> Iterator[Layer]:
        packages = list(dict.fromkeys([*self.settings.apt_packages, *self.facts.apt_packages]))
        for package in packages:
            if not _APT_PACKAGE.fullmatch(package):
                raise self._wrong(
                    "apt_packages", package, "that is no name of a Debian package", "Write one, like `git`"
                )
        if packages:
            install = f"apt-get install -y --no-install-recommends {shlex.join(packages)}"
            yield Layer(f"apt: {', '.join(packages)}", (f"RUN apt-get update && {install}",))

    def _python(self) -> Iterator[Layer]:
        uv = self.settings.python_package_installer is PythonPackageInstaller.UV
        own_parent = bool(self.settings.parent_image or self.facts.dockerfile)
        if uv and (self.facts.requirements or own_parent):
            command = "RUN command -v uv || python -m pip install --no-cache-dir uv"
            yield Layer("uv", (command,), secrets=True)
        install = self._install_command(uv)
        if own_parent:
            command = f"RUN python -c 'import zenml' || {install} zenml=={self.facts.zenml}"
            yield Layer(f"zenml {self.facts.zenml}, unless the parent image has one", (command,), secrets=True)
        for name, text in self.facts.requirements:
            commands = (f"COPY {name} .", f"RUN {install} -r {name}")
            yield Layer(_what(name, text), commands, files=((name, text),), secrets=True)

    def _install_command(self, uv: bool) -> str:
        given = self.settings.python_package_installer_args
        arguments: dict[str, object] = {"no-cache-dir": None}
        if not uv:
            arguments["default-timeout"] = 60
        else:
            if "no-compile-bytecode" not in given:
                # Unlike pip, uv doesn't; then each new sandbox compiles ZenML before its first line of work.
                arguments["compile-bytecode"] = None
            if not {"python", "system"} & given.keys():
                # Into the Python that runs the steps, be it of a virtual environment or the image's own.
                arguments["python"] = ""
        arguments.update(given)
        words = ["uv pip install" if uv else "python -m pip install"]
        for name, value in arguments.items():
            if name == "python" and value == "":
                words.append('--python "$(command -v python)"')
            else:
                words.append(_quoted(f"--{name}" if value is None else f"--{name}={value}"))
        return " ".join(words)

    def _rest(self) -> Iterator[Layer]:
        """Runtime environment, code, the local project and the user: the code as late as can be."""
        settings, code = self.settings, self.facts.code
        commands = ["ENV ZENML_ENABLE_REPO_INIT_WARNINGS=False"]
        if settings.user is not None:
            commands.append(f"ENV ZENML_CONFIG_PATH={FOLDER}/.zenconfig")  # it may have no home
        commands += self._env("runtime_environment")
        yield Layer("the environment of the steps", tuple(commands))
        last = ["COPY . .", "RUN chmod -R a+rw ."] if code is not None else []
        if settings.local_project_install_command:
            last.append(f"RUN {settings.local_project_install_command}")
        if settings.user is not None:
            if not _USER.fullmatch(settings.user):
                raise self._wrong("user", settings.user, "that is no name of a user", "Write `name` or `name:group`")
            last += [f"RUN chown -R {settings.user} .", f"USER {settings.user}"]
        if last:
            what = f"the code, {len(code.files)} files" if code is not None else f"the user {settings.user}"
            yield Layer(what, tuple(last), secrets=bool(settings.local_project_install_command), code=code is not None)

    def _build_args(self, name: str, config: DockerBuildConfig | None) -> dict[str, str]:
        """The build arguments; Modal's builder knows no other of Docker's options."""
        options = config.build_options if config is not None else None
        if options is None:
            return {}
        told = {key: value for key, value in options.model_dump(exclude_unset=True).items() if value is not None}
        for option in sorted(told.keys() - {"build_args"}):
            if option in _DOCKERS_OWN:
                self.warnings.append(
                    f"DockerSettings.{name}.build_options.{option} of {self.where}: not used by Modal."
                )
                continue
            fix = "Take it out"
            if option == "no_cache":
                fix += "; MODAL_FORCE_BUILD=1 in the environment of the submission builds all layers again"
            raise self._wrong(f"{name}.build_options.{option}", told[option], "Modal's builder has no such option", fix)
        arguments: dict[str, object] = dict(options.build_args or {})
        for key in arguments:
            if not _VARIABLE.fullmatch(key):
                raise self._wrong(f"{name}.build_options.build_args", key, "that is no name", "Write a variable's name")
        return {key: str(value) for key, value in arguments.items()}

    def _dockerfile_args(self) -> dict[str, str]:
        config, dockerfile = self.settings.parent_image_build_config, self.facts.dockerfile
        if dockerfile is None:
            for name in ("build_context_root", "parent_image_build_config"):
                if self.values[name]:
                    self.warnings.append(f"DockerSettings.{name} of {self.where}: not used, there is no `dockerfile`.")
            return {}
        if self.settings.parent_image:
            self.warnings.append(f"DockerSettings.parent_image of {self.where}: not used, `dockerfile` says its own.")
        for number, line in enumerate(dockerfile.text.splitlines(), 1):
            at = f"{dockerfile.path}, line {number}: {line.strip()}"
            if _FILES_FROM.match(line):
                raise self._wrong(
                    "dockerfile", at, "Modal gets no files for ADD", "Write COPY, or ADD with an https URL"
                )
            if _MOUNT.match(line):
                raise self._wrong(
                    "dockerfile",
                    at,
                    "Modal's builder has no --mount",
                    "Name a Modal Secret in `build_secrets`, or COPY",
                )
            if dockerfile.context is None and _COPY_OF_FILES.match(line):
                raise self._wrong(
                    "dockerfile",
                    at,
                    "there is no build context to copy from",
                    "Set DockerSettings(build_context_root=...)",
                )
        return self._build_args("parent_image_build_config", config)

    def _warn(self) -> None:
        for name, why in UNUSED.items():
            if self.values[name]:
                self.warnings.append(f"DockerSettings.{name} of {self.where}: not used, {why}.")
        if links := ", ".join(self.facts.left_out):
            self.warnings.append(
                f"The code of {self.where}: {links} are links to folders outside of the source root, or to one that "
                "they are in, and aren't in the image. Copy what the steps need of them, or mount a volume."
            )

    def _refuse_secrets(self) -> None:
        for name, texts, variable in self._texts():
            for text in texts:
                if "{{" in text and is_secret_reference(text.strip()):
                    raise self._wrong(name, text, "a secret would be readable in the image's layers", _FOR_STEPS)
                if found := _password_in(text, variable):
                    problem, fix = "a password would be readable in the image's layers", _FOR_THE_BUILD
                    if variable is None:
                        problem, fix = f"{problem}, and nothing puts variables in here", _FOR_STEPS
                    raise self._wrong(name, _shown(found), problem, fix if ":" in found["who"] else fix + _OR_NO_NAME)

    def _refuse_editable(self) -> None:
        """A clone that stays in the image; uv itself refuses what is editable and not of this machine."""
        if self.settings.python_package_installer is not PythonPackageInstaller.PIP:
            return
        arguments: dict[str, object] = dict(self.settings.python_package_installer_args)
        texts = [("python_package_installer_args", f"--{name}={value}") for name, value in arguments.items()]
        for file, text in self.facts.requirements:
            texts += [(f"requirements ({file})", line) for line in _lines(text)]
        for name, text in texts:
            found = _CREDENTIALS.search(text) if _EDITABLE.match(text) else None
            if found and "ssh" not in found["scheme"]:
                problem = "it is editable, so pip keeps its clone in the image, and the password in that"
                raise self._wrong(name, _shown(found), problem, "Write it without -e")

    def _texts(self) -> Iterator[tuple[str, Iterable[str], re.Pattern[str] | None]]:
        """What a user writes, where, and how variables are written there; None where nobody would put them in."""
        for name in ("environment", "runtime_environment", "python_package_installer_args"):
            values: dict[str, object] = dict(getattr(self.settings, name))
            texts = [str(text) for text in (*values, *values.values())]
            yield name, texts, _IN_AN_ARGUMENT if name.endswith("_args") else None
        yield "apt_packages", self.settings.apt_packages, None
        for name in ("build_config", "parent_image_build_config"):
            config = getattr(self.settings, name)
            if config is not None and config.build_options is not None:
                yield (
                    f"{name}.build_options",
                    [str(value) for value in (config.build_options.build_args or {}).values()],
                    None,
                )
        yield "local_project_install_command", [str(self.values["local_project_install_command"] or "")], _IN_A_COMMAND
        for file, text in self.facts.requirements:
            yield f"requirements ({file})", _lines(text), _IN_REQUIREMENTS
        if self.facts.dockerfile:
            lines = _lines(self.facts.dockerfile.text)
            yield f"dockerfile ({self.facts.dockerfile.path})", lines, _IN_A_COMMAND

    def _wrong(self, name: str, value: object, problem: str, fix: str) -> InvalidSettings:
        return InvalidSettings(f"DockerSettings.{name} of {self.where}", value, problem, fix)


def _quoted(word: str) -> str:
    """A word of a command in which the shell puts in variables written as ``${NAME}``, and changes nothing else."""
    if not _IN_AN_ARGUMENT.search(word):
        return shlex.quote(word)
    escaped = _SPECIAL.sub(r"\\\g<0>", word)
    return f'"{escaped}"'


def _with_arguments(layer: Layer, arguments: Mapping[str, str]) -> Layer:
    """The layer, its commands seeing the build arguments: each layer is a stage that has to name them anew."""
    if not any(command.startswith("RUN ") for command in layer.commands):
        return layer
    return replace(layer, commands=(*(f"ARG {name}" for name in sorted(arguments)), *layer.commands))


def without_passwords(text: str) -> str:
    """A text in which URLs don't show who logs in with them."""
    return _CREDENTIALS.sub(r"\g<scheme>://***@", text)


def _password_in(text: str, variable: re.Pattern[str] | None) -> re.Match[str] | None:
    """Who logs in with a password in a URL of a text; not if that is a ``variable``. A name alone may be a token."""
    for found in _CREDENTIALS.finditer(text):
        user, _, password = found["who"].partition(":")
        secret = password or user
        if not secret or (variable and variable.fullmatch(secret)) or (not password and "ssh" in found["scheme"]):
            continue
        return found
    return None


def _shown(credentials: re.Match[str]) -> str:
    return f"{credentials['scheme']}://***@..."


def _lines(text: str) -> list[str]:
    return _CONTINUED.sub("", text).splitlines()


def _what(name: str, text: str) -> str:
    packages = [line.strip() for line in text.splitlines() if line.strip() and not line.strip().startswith(("#", "-"))]
    shown = ", ".join(packages[:4]) + (f" and {len(packages) - 4} more" if len(packages) > 4 else "")
    kind = name.removeprefix(".zenml_").replace("_", " ")
    return f"{kind}: {without_passwords(shown)}"
