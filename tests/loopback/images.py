"""Images of the loopback server: what a registry has, what a build makes of it.

There are no containers here. An image is a folder with the files that its layers bring; a sandbox of it finds
them because paths in argv and environment that name them are rewritten to that folder. What a build runs is in
:mod:`tests.loopback.build_commands`.
"""

from __future__ import annotations

import hashlib
import json
import os
import shlex
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from modal_proto import api_pb2

from tests.loopback.build_commands import Commands, joined
from tests.loopback.model import LoopbackImage

IGNORED = {"CMD", "LABEL", "SHELL", "EXPOSE"}


class BuildFailed(Exception):
    """The build failed; the message is the build's log."""


class BuildUnsupported(Exception):
    """A dockerfile command that this server has no builder for."""


@dataclass
class Mount:
    """Files that a client has uploaded: path -> (content hash, mode)."""

    id: str
    files: dict[str, tuple[str, int]]


@dataclass
class BuiltImage:
    """An image that was built. ``registry`` is the name that its first layer came from, ``log`` its last layer's."""

    id: str
    root: Path
    python: Path
    env: dict[str, str]
    registry: str
    log: str = ""
    failure: str | None = None
    workdir: str = "/"
    user: str = "root"
    entrypoint: tuple[str, ...] = ()
    commands: tuple[str, ...] = ()

    def local(self, value: str) -> str:
        """Rewrite a path that this image brings to where it really is."""
        if value.startswith("/") and value != "/" and (self.root / value.lstrip("/")).exists():
            return str(self.root / value.lstrip("/"))
        return value

    def local_variable(self, name: str, value: str) -> str:
        """The same for the value of a variable; lists of paths are taken apart."""
        if name.endswith("PATH"):
            return ":".join(self.local(part) for part in value.split(":"))
        return self.local(value)


UPLOADED: dict[str, bytes] = {}
"""Files by their hashes: what one Modal of this process was sent, no other asks for. The package is 200 requests."""


class ImageStore:
    """The registry, the uploaded files, and the images built from both."""

    def __init__(self, folder: Path, registry: Mapping[str, LoopbackImage]) -> None:
        self._folder = folder
        self.registry = dict(registry)
        self.built: dict[str, BuiltImage] = {}
        self.mounts: dict[str, Mount] = {}
        self.builds = 0
        self.pull_failures = 0
        self._commands = Commands(folder / "bin")
        self._newest: dict[str, str] = {}
        """By what a definition alone would be called, the image that was made of it last."""

    def has(self, digest: str) -> bool:
        return digest in UPLOADED

    def put(self, digest: str, data: bytes) -> None:
        if hashlib.sha256(data).hexdigest() != digest:
            raise ValueError("the content doesn't have that hash")
        UPLOADED[digest] = data

    def mount(self, files: Sequence[api_pb2.MountFile]) -> Mount:
        entries = {file.filename: (file.sha256_hex, file.mode) for file in files}
        digest = hashlib.sha256(repr(sorted(entries.items())).encode()).hexdigest()
        return self.mounts.setdefault(digest, Mount(f"mo-{digest[:22]}", entries))

    def mount_by_id(self, mount_id: str) -> Mount | None:
        return next((mount for mount in self.mounts.values() if mount.id == mount_id), None)

    def known(self, definition: api_pb2.Image) -> BuiltImage | None:
        """The image that an equal definition has made: equal ones are one image, as on Modal."""
        key = _id_of(definition)
        known = self.built.get(self._newest.get(key, key))
        return known if known is not None and known.failure is None else None

    def build(
        self, definition: api_pb2.Image, credentials: tuple[str, str] | None, secrets: Mapping[str, str]
    ) -> BuiltImage:
        """Build an image, which may take as long as its commands do. A failed build isn't kept.

        What is built again is another image: the one before may be in use.
        """
        self.builds += 1
        commands = tuple(joined(definition.dockerfile_commands))
        key = image_id = _id_of(definition)
        if self.known(definition) is not None:
            image_id = f"im-{hashlib.sha256(f'{key} {self.builds}'.encode()).hexdigest()[:22]}"
        self._newest[key] = image_id
        image = BuiltImage(image_id, self._folder / image_id, Path(), {}, "", commands=commands)
        shutil.rmtree(image.root, ignore_errors=True)
        image.root.mkdir()
        arguments: dict[str, str] = {}
        try:
            for command in commands:
                image.log += f"=> {command}\n"
                word, _, rest = command.partition(" ")
                if word == "ARG":
                    name, _, default = rest.strip().partition("=")
                    arguments[name] = definition.build_args.get(name, default)
                elif word == "RUN":
                    self._run(image, rest.strip(), {**arguments, **secrets})
                else:
                    self._apply(image, word, rest.strip(), definition, credentials)
        except BuildFailed as error:
            image.failure = str(error)
            image.log += f"{error}\n"
        self.built[image_id] = image
        return image

    def _run(self, image: BuiltImage, command: str, variables: Mapping[str, str]) -> None:
        image.python = self._commands.python(image.root, image.python)
        own = {name: image.local_variable(name, value) for name, value in image.env.items()}
        ended = self._commands.run(command, image.root, image.workdir, image.python, {**own, **variables})
        image.log += ended.stdout
        if ended.returncode:  # docs.docker.com/reference/dockerfile, RUN
            raise BuildFailed(f"the command ended with exit code {ended.returncode}: {command}")

    def _apply(
        self,
        image: BuiltImage,
        word: str,
        rest: str,
        definition: api_pb2.Image,
        credentials: tuple[str, str] | None,
    ) -> None:
        if word == "FROM":
            self._from(image, rest, definition, credentials)
        elif word == "COPY":
            self._copy(image, rest.split(), definition)
        elif word == "ENV":
            for pair in shlex.split(rest):
                name, _, value = pair.partition("=")
                image.env[name] = value
        elif word == "WORKDIR":
            image.workdir = str(PurePosixPath(image.workdir) / rest)
            (image.root / image.workdir.lstrip("/")).mkdir(parents=True, exist_ok=True)
        elif word == "USER":
            image.user = rest
        elif word == "ENTRYPOINT":  # docs.docker.com/reference/dockerfile, ENTRYPOINT: exec form, shell form
            image.entrypoint = tuple(json.loads(rest)) if rest.startswith("[") else ("/bin/sh", "-c", rest)
        elif word not in IGNORED:
            raise BuildUnsupported(f"the loopback server has no builder for {word} {rest!r}")

    def _from(
        self, image: BuiltImage, name: str, definition: api_pb2.Image, credentials: tuple[str, str] | None
    ) -> None:
        if image.registry:
            raise BuildUnsupported("the loopback server has no builder for several stages")
        for base in definition.base_images:
            if base.docker_tag == name:
                self._inherit(image, self.built[base.image_id])
                return
        if self.pull_failures > 0:
            self.pull_failures -= 1
            # As a program in Go tells of it: github.com/golang/go, net.OpError.
            raise BuildFailed(f"failed to pull {name}: read tcp: connection reset by peer")
        found = self.registry.get(name)
        # github.com/opencontainers/distribution-spec, "Error Codes": MANIFEST_UNKNOWN.
        if found is None:
            raise BuildFailed(f"failed to pull {name}: manifest unknown: not found")
        if not found.lets_in(credentials):  # github.com/opencontainers/distribution-spec: UNAUTHORIZED
            raise BuildFailed(f"failed to pull {name}: unauthorized: authentication required")
        image.python, image.registry = found.python, name
        image.env.update(found.env)
        image.entrypoint = found.entrypoint
        for target, source in found.files.items():
            _place(source, image.root / target.lstrip("/"))

    def with_mounts(self, image: BuiltImage, mount_ids: Sequence[str]) -> BuiltImage:
        """The image with files that a sandbox mounts at its start (``add_local_*`` without ``copy``)."""
        if not mount_ids:
            return image
        key = hashlib.sha256("\0".join([image.id, *mount_ids]).encode()).hexdigest()
        if key not in self.built:
            mounted = BuiltImage(image.id, self._folder / f"mounted-{key[:22]}", Path(), {}, "")
            mounted.root.mkdir()
            self._inherit(mounted, image)
            for mount_id in mount_ids:
                self._copy(mounted, (".", "/"), api_pb2.Image(context_mount_id=mount_id))
            self.built[key] = mounted
        return self.built[key]

    def _inherit(self, image: BuiltImage, base: BuiltImage) -> None:
        image.python, image.registry = base.python, base.registry
        image.workdir, image.user, image.entrypoint = base.workdir, base.user, base.entrypoint
        image.env.update(base.env)
        shutil.copytree(base.root, image.root, dirs_exist_ok=True, symlinks=True)
        if base.python.is_relative_to(base.root):
            image.python = image.root / base.python.relative_to(base.root)

    def _copy(self, image: BuiltImage, arguments: Sequence[str], definition: api_pb2.Image) -> None:
        if arguments[0].startswith("--from"):
            raise BuildUnsupported(f"the loopback server has no builder for COPY {arguments[0]}")
        source, target = arguments[-2], str(PurePosixPath(image.workdir) / arguments[-1])
        mount = self.mount_by_id(definition.context_mount_id)
        # docs.docker.com/reference/dockerfile, COPY: from the build context.
        if mount is None:
            raise BuildFailed(f"COPY {source}: there is no build context")
        if not mount.files:  # docs.docker.com/reference/dockerfile, COPY: what isn't there can't be copied
            raise BuildFailed(f"COPY {source}: no such file in the build context")
        prefix = PurePosixPath("/") / source
        for name, (digest, mode) in mount.files.items():
            path = PurePosixPath(name)
            if prefix != PurePosixPath("/") and prefix != path and prefix not in path.parents:
                continue
            relative = path.relative_to(prefix) if prefix != path else PurePosixPath(path.name)
            destination = image.root / target.lstrip("/") / relative
            destination.parent.mkdir(parents=True, exist_ok=True)
            destination.unlink(missing_ok=True)
            destination.write_bytes(UPLOADED[digest])
            os.chmod(destination, mode & 0o777 or 0o644)


def _id_of(definition: api_pb2.Image) -> str:
    return f"im-{hashlib.sha256(definition.SerializeToString(deterministic=True)).hexdigest()[:22]}"


def _place(source: Path, destination: Path) -> None:
    destination.parent.mkdir(parents=True, exist_ok=True)
    if source.is_dir():
        shutil.copytree(source, destination, dirs_exist_ok=True)
    else:
        shutil.copy2(source, destination)
