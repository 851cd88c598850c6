"""Images that Modal builds: a definition goes through the real SDK, and the loopback server carries it out."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from zenml.config import DockerSettings

from bridge import names
from bridge.errors import ImageNotBuilt, RunnerUnavailable, SandboxRefused
from bridge.images.image_definition import Code, Dockerfile, Facts, ImageDefinition, Layer, define
from bridge.plan import SandboxSpec
from bridge.runners.base import SandboxRequest
from bridge.runners.modal import ModalRunner
from bridge.runners.modal_objects import PACKAGE_PATH
from bridge.runners.registry import Registry
from tests import servers
from tests.loopback import LoopbackImage, LoopbackModal
from tests.loopback.build_commands import CALLS
from tests.wheel import wheel

PARENT = "registry.example.com/parent:1"
FRESH = "registry.example.com/fresh:1"
FLAKY = "registry.example.com/flaky:1"
PRIVATE = "registry.example.com/private:1"
WITH_PIP = "registry.example.com/with-pip:1"
APP = "zenml-images"
INDEX = "an-index"


@pytest.fixture(scope="module")
def server() -> Iterator[LoopbackModal]:
    python = Path(sys.executable)
    public = dict.fromkeys((PARENT, FRESH, FLAKY), LoopbackImage(python))
    images = {**public, PRIVATE: LoopbackImage(python, credentials=("me", "hunter2"))}
    images[WITH_PIP] = LoopbackImage(servers.ROOT / ".venv" / "bin" / "python")
    with LoopbackModal(images, secrets={INDEX: {"INDEX_TOKEN": "hunter2"}}) as cloud:
        yield cloud


@pytest.fixture
def cloud(server: LoopbackModal, monkeypatch: pytest.MonkeyPatch) -> LoopbackModal:
    for name, value in server.env.items():
        monkeypatch.setenv(name, value)
    return server


def code(folder: Path, text: str) -> Code:
    (folder / "pkg").mkdir(exist_ok=True)
    (folder / "pkg" / "run.py").write_text(text)
    return Code((("pkg/run.py", str(folder / "pkg" / "run.py")),), text)


BASE = ImageDefinition(
    PARENT,
    (
        Layer("environment", ("WORKDIR /app", "ENV GREETING='hello you'")),
        Layer(
            "file",
            ("ARG WHO", "COPY list.txt .", 'RUN echo "$GREETING $WHO ${INDEX_TOKEN-unseen}" > made.txt'),
            files=(("list.txt", "six\n"),),
        ),
        Layer("install", ('RUN test -n "$INDEX_TOKEN" && echo installing',), secrets=True),
    ),
    build_args=(("WHO", "there"),),
    build_secrets=(INDEX,),
)


async def build(definition: ImageDefinition, said: list[str], registry: str = "registry.acme.com") -> str:
    async with ModalRunner(registry=Registry(registry, lambda: ("me", "hunter2"))) as runner:
        return await runner.build_image(APP, definition, None, said.append)


async def output_of(image: str, script: str) -> list[str]:
    async with ModalRunner() as runner:
        request = SandboxRequest(
            name=names.modal_name(f"box-{image}"),
            app=APP,
            command=("python", "-c", script),
            spec=SandboxSpec(image=names.built_image(image), timeout=60),
        )
        sandbox = await runner.start(request)
        await sandbox.wait()
        return [line.text async for line in sandbox.output()]


async def test_layers_are_built_in_order_and_a_change_of_code_builds_only_its_own(
    cloud: LoopbackModal, tmp_path: Path
) -> None:
    last = Layer("code", ("COPY . .", "RUN chmod -R a+rw ."), code=True)
    definition = replace(BASE, parent=FRESH, layers=(*BASE.layers, last), code=code(tmp_path, "print('one')"))
    said: list[str] = []
    before = cloud.stats().image_builds
    asked = cloud.stats().calls.get("ImageGetOrCreate", 0)
    first = await build(definition, said)
    assert cloud.stats().image_builds - before == 5
    assert cloud.stats().calls["ImageGetOrCreate"] - asked == 5
    assert [line.partition(":")[0].strip() for line in said] == [
        "layer 1 of 5, the parent image registry.example.com/fresh",
        *(f"layer {number} of 5, {what}" for number, what in enumerate(["environment", "file", "install", "code"], 2)),
    ]
    assert await build(definition, []) == first
    assert cloud.stats().image_builds - before == 5
    changed = replace(definition, code=code(tmp_path, "print('two')"))
    second = await build(changed, [])
    assert second != first
    assert cloud.stats().image_builds - before == 6
    # What is in it, `bridge` included, which each flow adds by itself.
    script = (
        "import os, pathlib; print(os.environ['GREETING'], 'INDEX_TOKEN' in os.environ);"
        "print(pathlib.Path('made.txt').read_text().strip(), pathlib.Path('list.txt').read_text().strip());"
        "exec(pathlib.Path('pkg/run.py').read_text())"
    )
    assert await output_of(second, script) == ["hello you False", "hello you there unseen six", "two"]


async def test_what_docker_settings_say_of_the_machine_reaches_the_sandbox(
    cloud: LoopbackModal, tmp_path: Path
) -> None:
    """Packages of Debian, pip, variables of both kinds, the local project's command, a user: in that order."""
    name, packed = wheel("unheard-of", "greeting = 'hello'\n")
    (tmp_path / name).write_bytes(packed)
    project = code(
        tmp_path,
        "import os, pathlib, unheard_of\n"
        "seen = [os.environ[name] for name in ('EARLY', 'OMP_NUM_THREADS')]\n"
        "called = pathlib.Path(os.environ['LOOPBACK_ROOT'], 'var/log/stand-ins').read_text().splitlines()\n"
        "pathlib.Path('installed.txt').write_text(' '.join([unheard_of.greeting, *seen, *called]))\n",
    )
    settings = DockerSettings(
        parent_image=WITH_PIP,
        apt_packages=["git", "libgomp1=12.*"],
        python_package_installer="pip",
        python_package_installer_args={"no-index": None, "find-links": str(tmp_path)},
        requirements=["unheard-of==1.0"],
        environment={"early": "it's early"},
        runtime_environment={"omp_num_threads": 3},
        local_project_install_command="python pkg/run.py",
        user="worker:staff",
    )
    requirements = ((".zenml_user_requirements", "unheard-of==1.0"),)
    facts = Facts("0", "", requirements, apt_packages=("ffmpeg",), code=project)
    said: list[str] = []
    image = await build(define(settings, facts, "the pipeline").definition, said)
    assert not [line for line in said if ", uv" in line]
    apt = "apt-get update apt-get install -y --no-install-recommends git libgomp1=12.* ffmpeg"
    script = (
        "import os, pathlib, unheard_of; print(pathlib.Path('installed.txt').read_text());"
        "print(*(os.environ[name] for name in ('EARLY', 'OMP_NUM_THREADS', 'ZENML_CONFIG_PATH')), sep='|')"
    )
    installed, variables = await output_of(image, script)
    assert installed == f"hello it's early 3 {apt}"  # and not yet of another user
    assert variables == "it's early|3|/app/.zenconfig"
    images = {one.id: one for one in cloud.images()}
    built, of_sandbox = images[image], images[cloud.sandboxes()[-1].image]
    assert (built.root / CALLS).read_text().splitlines()[-1] == "chown -R worker:staff ."
    # `bridge` comes on top.
    assert [(one.root / PACKAGE_PATH[1:]).is_dir() for one in (built, of_sandbox)] == [False, True]
    assert of_sandbox.user == built.user == "worker:staff"


async def test_a_change_builds_its_own_layer_and_those_above_the_code_last(
    cloud: LoopbackModal, tmp_path: Path
) -> None:
    """From ``DockerSettings`` to the build: how many layers Modal makes anew, by what has changed."""
    (tmp_path / "wheels").mkdir()
    for package in ("unheard-of", "unheard-too"):
        name, packed = wheel(package, "")
        (tmp_path / "wheels" / name).write_bytes(packed)

    async def layers_made(text: str, requirement: str = "unheard-of==1.0", **changed: object) -> list[str]:
        given: dict[str, object] = {
            "parent_image": WITH_PIP,
            "environment": {"LAYERS": tmp_path.name},
            "apt_packages": ["git"],
            "python_package_installer": "pip",
            "python_package_installer_args": {"no-index": None, "find-links": str(tmp_path / "wheels")},
            "runtime_environment": {"OMP_NUM_THREADS": "3"},
            "user": "worker",
            **changed,
        }
        facts = Facts("0", "", ((".zenml_user_requirements", requirement),), code=code(tmp_path, text))
        settings = DockerSettings(**given)  # type: ignore[arg-type]
        known = {image.id for image in cloud.images()}
        await build(define(settings, facts, "the pipeline").definition, [])
        return [made.commands[-1] for made in cloud.images() if made.id not in known]

    apt, zenml, requirements, environment, code_ = (await layers_made("one"))[-5:]
    assert (apt.partition(" ")[2].partition(" ")[0], "import zenml" in zenml) == ("apt-get", True)
    assert ("-r .zenml_user" in requirements, environment) == (True, "ENV OMP_NUM_THREADS=3")
    assert code_ == "USER worker"
    assert await layers_made("one") == []
    assert await layers_made("two") == [code_]
    assert await layers_made("two", runtime_environment={"OMP_NUM_THREADS": "4"}) == ["ENV OMP_NUM_THREADS=4", code_]
    changed = await layers_made("two", requirement="unheard-too==1.0")
    assert changed == [requirements, environment, code_]
    assert len(await layers_made("two", apt_packages=["git", "ffmpeg"])) == 5


async def test_a_failing_command_shows_its_output(cloud: LoopbackModal) -> None:
    layers = (Layer("what fails", ("RUN echo the reason is >&2 && echo this && exit 3",)),)
    with pytest.raises(ImageNotBuilt) as caught:
        await build(replace(BASE, layers=layers), [])
    message = str(caught.value)
    assert all(text in message for text in ("layer 2 of 2, what fails", "the reason is\nthis\n", "exit code 3"))


async def test_a_registry_that_fails_for_a_moment_says_nothing_of_the_image(cloud: LoopbackModal) -> None:
    cloud.image_pull_fails(1)
    with pytest.raises(RunnerUnavailable, match="connection reset"):
        await build(replace(BASE, parent=FLAKY, layers=()), [])


async def test_the_registry_s_credentials_go_to_its_own_images_alone(cloud: LoopbackModal) -> None:
    assert await build(replace(BASE, parent=PRIVATE, layers=()), [], "registry.example.com")
    with pytest.raises(ImageNotBuilt, match="unauthorized"):
        await build(replace(BASE, parent=PRIVATE, layers=()), [])


async def test_a_secret_that_is_not_there(cloud: LoopbackModal) -> None:
    with pytest.raises(SandboxRefused, match=r"'nothing'.*modal secret create"):
        await build(replace(BASE, build_secrets=("nothing",)), [])


async def test_a_dockerfile_with_a_context(cloud: LoopbackModal, tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "wanted.txt").write_text("wanted")
    (tmp_path / "data" / "unwanted.log").write_text("unwanted")
    run = "RUN ls data > \\\n  seen.txt && echo $WHO >> seen.txt"
    text = f"FROM {PARENT}\nARG WHO\nWORKDIR /srv\nCOPY data /srv/data\n{run}\n"
    dockerfile = Dockerfile(str(tmp_path / "Dockerfile"), text, str(tmp_path), ("**/*.log",))
    layers = (Layer("where the code goes", ("WORKDIR /app", "RUN cp ../srv/seen.txt .")),)
    arguments = (("WHO", "elsewhere"),)
    definition = replace(BASE, parent="", dockerfile=dockerfile, dockerfile_args=arguments, layers=layers)
    image = await build(definition, [])
    assert await output_of(image, "print(open('seen.txt').read().split())") == ["['wanted.txt', 'elsewhere']"]


@pytest.mark.skipif(sys.platform != "linux", reason="a file that root can't read either is one of Linux")
async def test_a_file_of_the_context_that_can_not_be_read(cloud: LoopbackModal) -> None:
    """It is no outage of Modal: nothing is asked again, and the file is named."""
    dockerfile = Dockerfile("Dockerfile", f"FROM {PARENT}\nCOPY compact_memory /x\n", "/proc/sys/vm")
    definition = replace(BASE, parent="", dockerfile=dockerfile, layers=())
    async with ModalRunner(outage=5) as runner:
        with pytest.raises(SandboxRefused) as caught:
            await runner.build_image(APP, definition, None, [].append)
    told = ("the Dockerfile Dockerfile", "Permission denied: '/proc/sys/vm/compact_memory'", "Let this user read it")
    assert all(text in str(caught.value) for text in told)


async def test_a_tag_that_has_moved_is_pulled_by_a_build_anew_alone(cloud: LoopbackModal) -> None:
    tag, python = "registry.example.com/moving:latest", Path(sys.executable)
    read = "import os; print(os.environ['PARENT'])"
    definition = replace(BASE, parent=tag)
    cloud.image_changes(tag, LoopbackImage(python, env={"PARENT": "first"}))
    first = await build(definition, [])
    cloud.image_changes(tag, LoopbackImage(python, env={"PARENT": "second"}))
    assert await build(definition, []) == first
    before = cloud.stats().image_builds
    second = await build(replace(definition, anew=True), [])
    assert cloud.stats().image_builds - before == 1 + len(definition.layers)
    assert [await output_of(image, read) for image in (first, second)] == [["first"], ["second"]]
    assert await build(definition, []) == second, "what was built last is found"


@pytest.mark.parametrize("entrypoint", ['["echo", "entered"]', "echo entered"])
async def test_a_dockerfile_s_entrypoint_is_not_in_front_of_the_command(cloud: LoopbackModal, entrypoint: str) -> None:
    dockerfile = Dockerfile("Dockerfile", f"FROM {PARENT}\nENTRYPOINT {entrypoint}\n")
    image = await build(replace(BASE, parent="", dockerfile=dockerfile, layers=()), [])
    assert await output_of(image, "print('hello')") == ["hello"]


async def test_an_image_of_another_account(cloud: LoopbackModal) -> None:
    with pytest.raises(SandboxRefused, match=r"isn't known to this Modal account.*submit the pipeline again"):
        await output_of("im-0000000000000000000000", "print()")
