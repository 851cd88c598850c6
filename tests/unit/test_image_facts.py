"""What is gathered for an image of Modal's, beside what ZenML's own builder has Docker make of the same settings.

That builder runs as it is, with an image builder in the stack that keeps what it is given.
"""

from __future__ import annotations

import os
import re
import shlex
import sys
from dataclasses import dataclass, field
from datetime import datetime, timezone
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest
from modal import FilePatternMatcher
from zenml.artifact_stores.local_artifact_store import LocalArtifactStore, LocalArtifactStoreConfig
from zenml.client import Client
from zenml.code_repositories import BaseCodeRepository
from zenml.config import DockerSettings
from zenml.config.build_configuration import BuildConfiguration
from zenml.config.source import Source, SourceType
from zenml.enums import StackComponentType as Kind
from zenml.image_builders import BaseImageBuilder
from zenml.image_builders.base_image_builder import BaseImageBuilderConfig
from zenml.orchestrators.local.local_orchestrator import LocalOrchestrator, LocalOrchestratorConfig
from zenml.stack import Stack
from zenml.utils import source_utils
from zenml.utils.pipeline_docker_image_builder import PipelineDockerImageBuilder

from bridge.errors import InvalidSettings
from bridge.images.image_definition import Facts
from bridge.images.image_facts import facts_of
from tests import databases
from tests.integration.stack.folder_repository import FolderRepository

PYTHON = shlex.quote(sys.executable)
HUNTER = "https://me:hunter2@pypi.example.com/simple"


class Keeping(BaseImageBuilder):
    """Builds nothing, keeps what it is given, and needs something itself."""

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self.contexts: list[dict[str, str]] = []

    @property
    def is_building_locally(self) -> bool:
        return False

    @property
    def requirements(self) -> set[str]:
        return {"of-the-stack==1.0", "also-of-the-stack"}

    @property
    def apt_packages(self) -> list[str]:
        return ["libstack"]

    def build(self, image_name: str, build_context: Any, *_: Any, **__: Any) -> str:
        self.contexts.append({**build_context.get_files(), **build_context.get_extra_files()})
        return image_name


class Needing(FolderRepository):
    """A code repository that needs something to be fetched from."""

    @property
    def requirements(self) -> set[str]:
        return {"of-the-repository"}


@dataclass
class Dockers:
    """What Docker would be given: names of the code's files, texts of what ZenML writes, and the user's context."""

    code: set[str]
    written: dict[str, str]
    users: dict[str, str] = field(default_factory=dict)

    @property
    def requirements(self) -> tuple[tuple[str, str], ...]:
        """Files that are installed, in the order of the Dockerfile."""
        names = [line.split()[1] for line in self.dockerfile if line.startswith("COPY ") and line != "COPY . ."]
        return tuple((name, self.written[name]) for name in names)

    @property
    def apt_packages(self) -> list[str]:
        (line,) = [line for line in self.dockerfile if "apt-get install" in line] or [""]
        return shlex.split(line.partition("--no-install-recommends ")[2])

    @property
    def dockerfile(self) -> list[str]:
        return self.written["Dockerfile"].splitlines()


@pytest.fixture(scope="module", autouse=True)
def store() -> None:
    """ZenML asks it for code repositories."""
    databases.put("zenml", Path(os.environ["ZENML_CONFIG_PATH"]) / databases.ZENML_STORE)


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A user's project, where they are; a new one has never been asked for its code repository."""
    folder = tmp_path / "project"
    (folder / "steps").mkdir(parents=True)
    (folder / "run.py").write_text("print()\n")
    (folder / "steps" / "train.py").write_text("\n")
    monkeypatch.chdir(folder)
    try:
        before = source_utils.get_source_root()
    except RuntimeError:  # none was set, and the main module of one of pytest's workers has no file
        before = None
    source_utils.set_custom_source_root(str(folder))
    yield folder
    source_utils.set_custom_source_root(before)


def component(of: type, kind: Kind, config: Any) -> Any:
    now = datetime.now(timezone.utc)
    return of(str(kind), uuid4(), config, "test", kind, None, now, now, environment={}, secrets=[])


def stack_of(builder: Keeping) -> Stack:
    return Stack(
        uuid4(),
        "prod",
        orchestrator=component(LocalOrchestrator, Kind.ORCHESTRATOR, LocalOrchestratorConfig()),
        artifact_store=component(LocalArtifactStore, Kind.ARTIFACT_STORE, LocalArtifactStoreConfig()),
        image_builder=builder,
    )


@dataclass
class Both:
    """What we gather and what Docker would be given."""

    ours: Facts
    dockers: Dockers


def both(repository: BaseCodeRepository | None = None, extra: dict[str, list[str]] | None = None, **given: Any) -> Both:
    builder = component(Keeping, Kind.IMAGE_BUILDER, BaseImageBuilderConfig())
    stack = stack_of(builder)
    build = BuildConfiguration(key="k", settings=DockerSettings(**given), extra_requirements_files=extra or {})
    ours = facts_of(build, stack, (), "the pipeline")
    from_repository = build.should_download_files_from_code_repository(repository)
    PipelineDockerImageBuilder().build_docker_image(
        build.settings,
        "tag",
        stack,
        include_files=build.should_include_files(repository),
        entrypoint="true",  # so that it always writes a Dockerfile of its own
        code_repository=repository if from_repository else None,
        extra_requirements_files=build.extra_requirements_files,
    )
    *of_the_user, last = builder.contexts
    files = {name for name, path in last.items() if os.path.isabs(path) and os.path.isfile(path)}
    written = {name: text for name, text in last.items() if name not in files}
    return Both(ours, Dockers(files, written, *of_the_user))


def refused(**given: Any) -> str:
    build = BuildConfiguration(key="k", settings=DockerSettings(**given))
    with pytest.raises(InvalidSettings) as caught:
        facts_of(build, stack_of(component(Keeping, Kind.IMAGE_BUILDER, BaseImageBuilderConfig())), (), "step train")
    assert "of step train" in str(caught.value)
    return str(caught.value)


STACKS = (".zenml_stack_integration_requirements", "also-of-the-stack\nof-the-stack==1.0")


def prints(text: str) -> list[str]:
    """A command that prints requirements, as a list of its words."""
    return [PYTHON, "-c", shlex.quote(f"print({text!r}, end='')")]


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ({}, (STACKS,)),
        ({"install_stack_requirements": False}, ()),
        ({"requirements": ["six", "idna==3.10"]}, (STACKS, (".zenml_user_requirements", "six\nidna==3.10"))),
        ({"requirements": "needs.txt"}, (STACKS, (".zenml_user_requirements", "# mine\nsix\n"))),
        ({"requirements": "empty.txt"}, (STACKS,)),
        (
            {"pyproject_path": "other/pyproject.toml", "pyproject_export_command": ["cat", "{directory}/exported.txt"]},
            (STACKS, (".zenml_pyproject_requirements", "exported==1\n")),
        ),
        (
            {"pyproject_export_command": ["cat", "{directory}/exported.txt"], "requirements": ["six"]},
            (STACKS, (".zenml_user_requirements", "six")),
        ),
        (
            {"replicate_local_python_environment": prints("local==1")},
            ((".zenml_local_requirements", "local==1"), STACKS),
        ),
        # What it finds by itself: nothing, unless it is told to.
        ({"disable_automatic_requirements_detection": False}, (STACKS, (".zenml_user_requirements", "found\n"))),
        (
            {
                "requirements": ["six"],
                "pyproject_path": "other/pyproject.toml",
                "pyproject_export_command": ["cat", "{directory}/exported.txt"],
                "replicate_local_python_environment": prints("local==1"),
            },
            (
                (".zenml_local_requirements", "local==1"),
                STACKS,
                (".zenml_pyproject_requirements", "exported==1\n"),
                (".zenml_user_requirements", "six"),
            ),
        ),
    ],
    ids=lambda value: "+".join(value) or "nothing" if isinstance(value, dict) else "",
)
def test_requirements(project: Path, given: dict[str, Any], expected: tuple[tuple[str, str], ...]) -> None:
    (project / "needs.txt").write_text("# mine\nsix\n")
    (project / "empty.txt").write_text("")
    (project / "requirements.txt").write_text("found\n")
    (project / "other").mkdir()
    (project / "other" / "pyproject.toml").write_text("[project]\n")
    (project / "other" / "exported.txt").write_text("exported==1\n")
    found = both(**given)
    assert found.ours.requirements == found.dockers.requirements == expected


def test_a_pyproject_file_that_is_found_where_there_is_no_requirements_file(project: Path) -> None:
    (project / "pyproject.toml").write_text("[project]\n")
    given = {"disable_automatic_requirements_detection": False, "pyproject_export_command": prints("exported")}
    found = both(**given)
    assert found.ours.requirements == found.dockers.requirements
    assert found.ours.requirements[-1] == (".zenml_pyproject_requirements", "exported")


def test_the_environment_of_this_machine(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """By ZenML's own command, which asks for `pip`."""
    monkeypatch.setenv("PATH", os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]]))
    found = both(replicate_local_python_environment="pip_freeze")
    assert found.ours.requirements == found.dockers.requirements
    assert found.ours.requirements[0][0] == ".zenml_local_requirements"


def test_integrations_bring_requirements_and_apt_packages(project: Path) -> None:
    found = both(required_integrations=["deepchecks", "s3"], apt_packages=["git", "ffmpeg"])
    assert found.ours.requirements == found.dockers.requirements
    (text,) = [text for name, text in found.ours.requirements if name == ".zenml_integration_requirements"]
    assert {"deepchecks", "s3fs"} <= {re.split(r"[^a-z0-9]", line)[0] for line in text.splitlines()}
    assert found.dockers.apt_packages == ["git", "ffmpeg", *found.ours.apt_packages]
    assert found.ours.apt_packages == ("libstack", "ffmpeg", "libsm6", "libxext6")


def test_what_the_stack_needs_is_left_out_where_the_user_says_so(project: Path) -> None:
    found = both(install_stack_requirements=False, apt_packages=["git"])
    assert (found.ours.requirements, found.ours.apt_packages) == ((), ())
    assert (found.dockers.requirements, found.dockers.apt_packages) == ((), ["git"])


def test_extra_requirements_of_a_build(project: Path) -> None:
    found = both(extra={".extra": ["b", "a"]}, install_stack_requirements=False)
    assert found.ours.requirements == found.dockers.requirements == ((".extra", "a\nb"),)


IGNORE = "# what [isn't code\n*.log\n/data/\n\n!/data/small.csv\nsteps/*.tmp\n**/__pycache__\n./notes.txt\n."


def strew(folder: Path) -> None:
    """Files of which those patterns ignore some."""
    names = ["a.log", "b.txt", "notes.txt", "data/small.csv", "data/large.csv", "data/x/small.csv", "steps/a.tmp"]
    names += ["steps/a.log", "steps/__pycache__/a.cpython-311.pyc", "# what [isn't code", "odd.pyc", ".zen/config.yaml"]
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(name)


@pytest.mark.parametrize(
    "given",
    [
        {},
        {"dockerignore": "ignored"},
        {"build_config": {"dockerignore": "ignored"}},
        {"build_config": {"dockerignore": "ignored"}, "dockerignore": "nothing"},
    ],
    ids=["in the source root", "deprecated", "of the build", "of the build first"],
)
def test_the_code_without_what_a_dockerignore_names(project: Path, given: dict[str, Any]) -> None:
    strew(project)
    (project / ".dockerignore").write_text("*.py" if given else IGNORE)
    for name, text in (("ignored", IGNORE), ("nothing", "")):
        (project / name).write_text(text)
    found = both(allow_download_from_artifact_store=False, **given)
    assert found.ours.code is not None
    names = [name for name, _ in found.ours.code.files]
    # Python made those, and makes them again.
    assert set(names) == {name for name in found.dockers.code if not name.endswith(".pyc")}
    assert {"run.py", "data/small.csv", "steps/a.log", ".zen/config.yaml"} <= set(names)
    assert not {"a.log", "data/large.csv", "steps/a.tmp", "notes.txt", ".dockerignore"} & set(names)
    assert names == sorted(names)
    assert all(Path(path) == project / name for name, path in found.ours.code.files)


def test_all_of_the_code_where_nothing_is_ignored(project: Path) -> None:
    found = both(allow_download_from_artifact_store=False)
    assert found.ours.code is not None
    assert {name for name, _ in found.ours.code.files} == found.dockers.code == {"run.py", "steps/train.py"}


def test_folders_that_are_links(project: Path, tmp_path: Path) -> None:
    """Docker makes the links, which then lead to what the image has; here the files are there under both names."""
    for name in ("src/pkg/sub/a.py", "src/pkg/a.log", "src/other/b.py", "data/x.csv"):
        (project / name).parent.mkdir(parents=True, exist_ok=True)
        (project / name).write_text(name)
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "c.py").write_text("")
    for link, target in (
        ("pkg", "src/pkg"),
        ("both", "src"),
        ("src/pkg/other", "../other"),
        ("steps/code", str(project / "src" / "other")),
        ("ignored", "data"),
        ("unwanted", "src"),
        ("outside", "../elsewhere"),
        ("steps/around", "../steps"),
        ("steps/root", ".."),
        ("src/other/back", "../pkg"),
        ("file.py", "run.py"),
        ("nowhere", "nothing"),
    ):
        (project / link).symlink_to(target)
    (project / ".dockerignore").write_text("**/*.log\ndata\nunwanted\n")
    found = both(allow_download_from_artifact_store=False).ours
    assert found.code is not None
    files = dict(found.code.files)
    plain = {"run.py", "file.py", "steps/train.py", "src/pkg/sub/a.py", "src/other/b.py"}
    linked = {
        *("pkg/sub/a.py", "pkg/other/b.py"),
        *("both/pkg/sub/a.py", "both/pkg/other/b.py", "both/other/b.py", "both/other/back/sub/a.py"),
        *("src/pkg/other/b.py", "src/other/back/sub/a.py"),
        *("steps/code/b.py", "steps/code/back/sub/a.py"),
    }
    assert set(files) == plain | linked
    assert all(path == str(project / name) for name, path in files.items())
    assert Path(files["both/other/back/sub/a.py"]).read_text() == "src/pkg/sub/a.py"
    assert found.left_out == ("outside", "steps/around", "steps/root")


@pytest.mark.skipif(sys.platform != "linux", reason="a file that root can't read either is one of Linux")
@pytest.mark.parametrize(
    "given",
    [{"allow_download_from_artifact_store": False}, {"dockerfile": "closed"}],
    ids=lambda value: "+".join(value),
)
def test_a_file_that_can_not_be_read(project: Path, given: dict[str, Any]) -> None:
    (project / "closed").symlink_to("/proc/sys/vm/compact_memory")
    message = refused(**given)
    assert "closed" in message
    assert "Permission denied" in message
    assert "Let this user read it" in message


@pytest.mark.parametrize("change", ["text", "name", "mode"])
def test_other_code_is_known_by_its_digest(project: Path, change: str) -> None:
    def digest() -> str:
        code = both(allow_download_from_artifact_store=False).ours.code
        assert code is not None
        return code.digest

    before = digest()
    assert digest() == before
    script = project / "run.py"
    if change == "text":
        script.write_text("x")
    elif change == "name":
        script.rename("go.py")
    else:
        script.chmod(0o755)
    assert digest() != before


@pytest.mark.parametrize(
    ("given", "included"),
    [
        ({}, False),
        ({"allow_download_from_artifact_store": False}, True),
        ({"allow_download_from_artifact_store": False, "allow_including_files_in_images": False}, False),
        ({"local_project_install_command": "pip install -e ."}, True),
    ],
)
def test_whether_the_code_is_in_the_image(project: Path, given: dict[str, Any], included: bool) -> None:
    found = both(**given)
    assert bool(found.ours.code) == bool(found.dockers.code) == included


@pytest.mark.parametrize("allowed", [True, False])
def test_code_that_a_sandbox_fetches_from_its_repository(project: Path, allowed: bool) -> None:
    """With what the repository needs for that."""
    name = f"folder-{uuid4().hex[:6]}"
    config = {"checkout": str(project), "commits": str(project), "commit": "c0ffee"}
    source = Source(module=__name__, attribute="Needing", type=SourceType.USER)
    Client().create_code_repository(name, config, source)
    try:
        repository = BaseCodeRepository.from_model(Client().get_code_repository(name))
        found = both(repository, allow_download_from_artifact_store=False, allow_download_from_code_repository=allowed)
    finally:
        Client().delete_code_repository(name)
    assert found.ours.requirements == found.dockers.requirements
    assert ("of-the-repository" in found.ours.requirements[0][1]) == allowed
    assert bool(found.ours.code) == bool(found.dockers.code) != allowed


@pytest.mark.parametrize("given", ["", "ignored"])
def test_a_dockerfile_with_its_context(project: Path, given: str) -> None:
    context = project / "docker"
    strew(context)
    (context / "Dockerfile").write_text("FROM x\nCOPY . .\n")
    (context / ".dockerignore").write_text("*" if given else IGNORE)
    (project / "ignored").write_text(IGNORE)
    config = {"parent_image_build_config": {"dockerignore": given}} if given else {}
    found = both(dockerfile="docker/Dockerfile", build_context_root="docker", **config)
    dockerfile = found.ours.dockerfile
    assert dockerfile is not None
    assert (dockerfile.path, dockerfile.context) == ("docker/Dockerfile", "docker")
    assert dockerfile.text == found.dockers.users.pop("Dockerfile") == "FROM x\nCOPY . .\n"
    ignores = FilePatternMatcher(*dockerfile.ignore)
    files = {str(path.relative_to(context)) for path in context.rglob("*") if path.is_file()}
    kept = {name for name in files if not ignores(Path(name))}
    dockers = {name for name, path in found.dockers.users.items() if (context / name).is_file()}
    # What ZenML and Docker keep whatever the patterns say, and no `COPY` asks for.
    assert kept - {"Dockerfile", ".dockerignore"} == dockers - {"Dockerfile"}
    assert "data/small.csv" in kept
    assert not {"a.log", "data/large.csv", "notes.txt"} & kept


def test_a_dockerfile_without_a_context(project: Path) -> None:
    (project / "Dockerfile").write_text("FROM x\n")
    found = both(dockerfile="Dockerfile")
    assert found.ours.dockerfile is not None
    assert (found.ours.dockerfile.context, found.ours.dockerfile.ignore) == (None, ())
    assert set(found.dockers.users) == {"Dockerfile"}


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ({"requirements": "no.txt"}, ("'requirements'", "{project}/no.txt")),
        ({"requirements": "steps"}, ("'requirements'", "{project}/steps", "directory")),
        ({"requirements": "latin.txt"}, ("'requirements'", "utf-8")),
        ({"pyproject_path": "no.toml"}, ("'pyproject_path'", "{project}/no.toml")),
        (
            {"pyproject_path": "pyproject.toml", "pyproject_export_command": ["cat", "no.txt"]},
            ("'pyproject_export_command'", "`cat no.txt`", "No such file"),
        ),
        (
            {"pyproject_path": "pyproject.toml", "pyproject_export_command": ["awk", "{print}", "needs.txt"]},
            ("'pyproject_export_command'", "print"),
        ),
        (
            {"pyproject_path": "pyproject.toml", "pyproject_export_command": ["awk", "{ print", "needs.txt"]},
            ("'pyproject_export_command'", "print"),
        ),
        ({"replicate_local_python_environment": ["false"]}, ("'replicate_local_python_environment'", "['false']")),
        ({"required_integrations": ["nothing"]}, ("'required_integrations'", "Integration nothing does not exist")),
        ({"dockerignore": "no", "allow_download_from_artifact_store": False}, (".dockerignore", "{project}/no")),
        (
            {"dockerignore": "latin.txt", "local_project_install_command": "make"},
            (".dockerignore", "'latin.txt'", "UTF-8"),
        ),
        (
            {"build_config": {"dockerignore": "no"}, "local_project_install_command": "make"},
            (".build_config.dockerignore", "{project}/no"),
        ),
        ({"dockerfile": "no"}, (".dockerfile", "{project}/no")),
        ({"dockerfile": "steps"}, (".dockerfile", "{project}/steps")),
        ({"dockerfile": "latin.txt"}, (".dockerfile", "'latin.txt'", "UTF-8")),
        ({"dockerfile": "Dockerfile", "build_context_root": "no"}, (".build_context_root", "{project}/no")),
        (
            {"dockerfile": "Dockerfile", "parent_image_build_config": {"dockerignore": "no"}},
            (".parent_image_build_config.dockerignore", "{project}/no"),
        ),
    ],
    ids=lambda value: "+".join(value) if isinstance(value, dict) else "",
)
def test_what_can_not_be_read_is_named(project: Path, given: dict[str, Any], says: tuple[str, ...]) -> None:
    (project / "latin.txt").write_bytes("sïx".encode("latin-1"))
    for name in ("pyproject.toml", "Dockerfile", "needs.txt"):
        (project / name).write_text("FROM x\n")
    message = refused(**given)
    for text in says:
        assert text.format(project=project) in message


@pytest.mark.parametrize(
    "given",
    [
        {"requirements": [f"--extra-index-url {HUNTER}", "six"], "pyproject_path": "no.toml"},
        {"pyproject_path": "pyproject.toml", "pyproject_export_command": ["cat", HUNTER]},
        {"replicate_local_python_environment": ["false", HUNTER]},
    ],
    ids=lambda value: "+".join(value),
)
def test_no_password_in_what_is_named(project: Path, given: dict[str, Any]) -> None:
    (project / "pyproject.toml").write_text("[project]\n")
    message = refused(**given)
    assert "pypi.example.com" in message
    assert "hunter2" not in message
