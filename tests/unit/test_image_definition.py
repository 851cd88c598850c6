"""What becomes of each field of ``DockerSettings`` where Modal builds the image."""

from __future__ import annotations

import subprocess
from dataclasses import replace
from typing import Any

import pytest
from zenml.config import DockerSettings

from bridge.errors import InvalidSettings
from bridge.images.image_definition import Code, Dockerfile, Facts, ImageDefinition, Layer, define

FACTS = Facts(zenml="0.98.0", default_parent="zenmldocker/zenml:0.98.0-py3.11")
CODE = Code((("steps/train.py", "/home/me/steps/train.py"), ("run.py", "/home/me/run.py")), "c0de")
USER = ((".zenml_user_requirements", "idna==3.10\nsix"),)


def defined(facts: Facts = FACTS, **settings: Any) -> ImageDefinition:
    translation = define(DockerSettings(**settings), facts, "the pipeline")
    assert translation.warnings == ()
    return translation.definition


def warnings(facts: Facts = FACTS, **settings: Any) -> str:
    return "\n".join(define(DockerSettings(**settings), facts, "the pipeline").warnings)


def refused(facts: Facts = FACTS, **settings: Any) -> str:
    with pytest.raises(InvalidSettings) as caught:
        define(DockerSettings(**settings), facts, "step train")
    assert "of step train" in str(caught.value)
    return str(caught.value)


def commands(definition: ImageDefinition) -> list[str]:
    return [command for layer in definition.layers for command in layer.commands]


def of(definition: ImageDefinition, fragment: str) -> Layer:
    (found,) = [layer for layer in definition.layers if any(fragment in command for command in layer.commands)]
    return found


def test_nothing_said_is_zenml_s_own_image() -> None:
    definition = defined()
    assert definition.parent == FACTS.default_parent
    assert commands(definition) == ["WORKDIR /app", "ENV ZENML_ENABLE_REPO_INIT_WARNINGS=False"]
    assert str(definition).startswith("FROM zenmldocker/zenml:0.98.0-py3.11\n")


def test_parent_image_gets_what_it_may_lack() -> None:
    definition = defined(parent_image="pytorch/pytorch:2.9")
    assert definition.parent == "pytorch/pytorch:2.9"
    assert of(definition, "command -v uv").commands[0].endswith("python -m pip install --no-cache-dir uv")
    (command,) = of(definition, "import zenml").commands
    assert command.startswith("RUN python -c 'import zenml' || uv pip install ")
    assert command.endswith(" zenml==0.98.0")


def test_requirements_are_installed_from_files_in_their_order() -> None:
    files = ((".zenml_stack_integration_requirements", "s3fs"), *USER)
    definition = defined(replace(FACTS, requirements=files), requirements=["idna==3.10", "six"])
    layers = [layer for layer in definition.layers if layer.files]
    assert [layer.files for layer in layers] == [(files[0],), (files[1],)]
    assert layers[1].commands[0] == "COPY .zenml_user_requirements ."
    assert layers[1].commands[1].endswith(" -r .zenml_user_requirements")
    assert layers[1].what == "user requirements: idna==3.10, six"


@pytest.mark.parametrize(
    ("settings", "command"),
    [
        ({}, 'RUN uv pip install --no-cache-dir --compile-bytecode --python "$(command -v python)" -r'),
        ({"python_package_installer": "pip"}, "RUN python -m pip install --no-cache-dir --default-timeout=60 -r"),
        (
            {"python_package_installer_args": {"system": None, "index-strategy": "unsafe-best-match"}},
            "RUN uv pip install --no-cache-dir --compile-bytecode --system --index-strategy=unsafe-best-match -r",
        ),
        (
            {"python_package_installer_args": {"system": None, "no-compile-bytecode": None}},
            "RUN uv pip install --no-cache-dir --system --no-compile-bytecode -r",
        ),
        (
            {"python_package_installer": "pip", "python_package_installer_args": {"default-timeout": 5}},
            "RUN python -m pip install --no-cache-dir --default-timeout=5 -r",
        ),
        (
            {"python_package_installer": "pip", "python_package_installer_args": {"platform": "a; rm -r /"}},
            "RUN python -m pip install --no-cache-dir --default-timeout=60 '--platform=a; rm -r /' -r",
        ),
        (
            {
                "python_package_installer": "pip",
                "python_package_installer_args": {"index-url": "https://me:${TOKEN}@h"},
            },
            'RUN python -m pip install --no-cache-dir --default-timeout=60 "--index-url=https://me:${TOKEN}@h" -r',
        ),
    ],
)
def test_installer_and_its_arguments(settings: dict[str, Any], command: str) -> None:
    layer = of(defined(replace(FACTS, requirements=USER), **settings), "-r .zenml_user")
    assert layer.commands[1].startswith(command)


@pytest.mark.parametrize(
    ("written", "seen"),
    [
        ("https://${WHO}:${TOKEN}@x.com/simple", "https://me:hunter2@x.com/simple"),
        (
            r'"; rm -r / \" `id` $(id) $WHO ${WHO} \${WHO} ${WHO:-x} $$',
            r'"; rm -r / \" `id` $(id) $WHO me \me ${WHO:-x} $$',
        ),
        ("it's $WHO `id`", "it's $WHO `id`"),
    ],
)
def test_the_shell_puts_variables_into_an_argument_and_nothing_else(written: str, seen: str) -> None:
    arguments = {"python": None, "find-links": written}
    (command,) = of(defined(parent_image="x/y:1", python_package_installer_args=arguments), "import zenml").commands
    words = command.partition("uv pip install ")[2]
    shell = ["sh", "-c", f"printf '%s\n' {words}"]
    printed = subprocess.run(shell, env={"WHO": "me", "TOKEN": "hunter2"}, capture_output=True, text=True, check=True)
    assert f"--find-links={seen}" in printed.stdout.splitlines()


def test_pip_needs_no_uv() -> None:
    definition = defined(replace(FACTS, requirements=USER), python_package_installer="pip", parent_image="x/y:1")
    assert not [command for command in commands(definition) if "uv" in command]


def test_apt_packages_of_the_user_the_stack_and_integrations() -> None:
    definition = defined(replace(FACTS, apt_packages=("libgomp1", "git")), apt_packages=["git", "ffmpeg"])
    assert of(definition, "apt-get").commands == (
        "RUN apt-get update && apt-get install -y --no-install-recommends git ffmpeg libgomp1",
    )


def test_environment_comes_first_and_runtime_environment_after_the_requirements() -> None:
    definition = defined(
        replace(FACTS, requirements=USER),
        environment={"pip_timeout": 5, "Greeting": "it's $HOME"},
        runtime_environment={"OMP_NUM_THREADS": 1},
    )
    found = commands(definition)
    assert found[:3] == ["WORKDIR /app", "ENV PIP_TIMEOUT=5", """ENV GREETING='it'"'"'s $HOME'"""]
    assert found.index("ENV OMP_NUM_THREADS=1") > found.index("COPY .zenml_user_requirements .")


def test_the_code_comes_last() -> None:
    definition = defined(
        replace(FACTS, requirements=USER, code=CODE),
        runtime_environment={"A": "b"},
        user="worker:staff",
        local_project_install_command="pip install -e . --no-deps",
    )
    assert definition.code == CODE
    assert [layer.code for layer in definition.layers] == [False] * (len(definition.layers) - 1) + [True]
    assert definition.layers[-1].commands == (
        "COPY . .",
        "RUN chmod -R a+rw .",
        "RUN pip install -e . --no-deps",
        "RUN chown -R worker:staff .",
        "USER worker:staff",
    )


def test_a_change_of_code_changes_the_definition_and_no_layer() -> None:
    one = defined(replace(FACTS, requirements=USER, code=CODE))
    other = defined(replace(FACTS, requirements=USER, code=replace(CODE, digest="other")))
    assert one != other
    assert one.layers == other.layers


def test_a_user_without_code_of_his_own() -> None:
    definition = defined(user="worker")
    assert definition.layers[-1].commands == ("RUN chown -R worker .", "USER worker")
    assert "ENV ZENML_CONFIG_PATH=/app/.zenconfig" in commands(definition)


def test_build_arguments() -> None:
    options = {"build_options": {"build_args": {"B": 2, "A": "one"}}}
    definition = defined(build_config=options, apt_packages=["git"], user="me")
    assert definition.build_args == (("A", "one"), ("B", "2"))
    # Named again in each layer that runs something: Docker forgets them at each FROM.
    assert [layer.commands[:2] == ("ARG A", "ARG B") for layer in definition.layers] == [False, True, False, True]


def test_secrets_are_seen_by_what_installs() -> None:
    facts = replace(FACTS, requirements=USER, code=CODE, build_secrets=("private-index",))
    definition = defined(facts, parent_image="x/y:1", apt_packages=["git"], local_project_install_command="make")
    assert definition.build_secrets == ("private-index",)
    seeing = [layer.what.partition(":")[0] for layer in definition.layers if layer.secrets]
    assert seeing == ["uv", "zenml 0.98.0, unless the parent image has one", "user requirements", "the code, 2 files"]


def test_links_that_are_left_out_are_said() -> None:
    found = define(DockerSettings(), replace(FACTS, code=CODE, left_out=("data", "a/b")), "the pipeline").warnings
    assert found == (
        "The code of the pipeline: data, a/b are links to folders outside of the source root, or to one that they are "
        "in, and aren't in the image. Copy what the steps need of them, or mount a volume.",
    )


def test_a_build_that_is_not_to_be_reused_is_made_anew() -> None:
    assert defined(prevent_build_reuse=True) == replace(defined(), anew=True)


def test_each_build_has_its_own_arguments() -> None:
    """As ZenML has them: those of one build are nothing to the other."""
    facts = replace(FACTS, dockerfile=DOCKERFILE, requirements=USER)
    of_the_parent = {"build_options": {"build_args": {"PY": "3.11", "A": 1}}}
    on_top = {"build_options": {"build_args": {"PY": "3.12"}}}
    both = defined(facts, dockerfile="d", parent_image_build_config=of_the_parent, build_config=on_top)
    assert (both.dockerfile_args, both.build_args) == ((("A", "1"), ("PY", "3.11")), (("PY", "3.12"),))
    assert not [command for command in commands(both) if command == "ARG A"]
    alone = defined(facts, dockerfile="d", build_config=on_top)
    assert (alone.dockerfile_args, alone.build_args) == ((), (("PY", "3.12"),))


DOCKERFILE = Dockerfile("docker/Dockerfile", "FROM python:3.11\nRUN echo hello\n")


def test_a_dockerfile() -> None:
    definition = defined(
        replace(FACTS, dockerfile=DOCKERFILE, requirements=USER),
        dockerfile="docker/Dockerfile",
        parent_image_build_config={"build_options": {"build_args": {"A": 1}}},
    )
    assert (definition.parent, definition.dockerfile) == ("", DOCKERFILE)
    assert definition.dockerfile_args == (("A", "1"),)
    assert of(definition, "import zenml")
    assert str(definition).startswith("# docker/Dockerfile\nFROM python:3.11\nRUN echo hello\n# ")


@pytest.mark.parametrize(
    ("line", "context", "says"),
    [
        ("COPY requirements.txt .", None, ("line 2: COPY requirements.txt .", "build_context_root")),
        ("ADD model.tar.gz /opt", "docker", ("line 2: ADD model.tar.gz /opt", "Write COPY")),
        ("RUN --mount=type=cache,target=/root pip install x", "docker", ("--mount", "build_secrets")),
    ],
)
def test_a_dockerfile_that_modal_can_t_build(line: str, context: str | None, says: tuple[str, ...]) -> None:
    dockerfile = replace(DOCKERFILE, text=f"FROM python:3.11\n{line}\n", context=context)
    message = refused(replace(FACTS, dockerfile=dockerfile), dockerfile="docker/Dockerfile")
    assert all(text in message for text in ("docker/Dockerfile", *says))


@pytest.mark.parametrize("line", ["COPY . /opt", "COPY --from=golang /x /y", "ADD https://example.com/x /x"])
def test_a_dockerfile_with_its_context(line: str) -> None:
    dockerfile = replace(DOCKERFILE, text=f"FROM python:3.11\n{line}\n", context="docker")
    assert defined(replace(FACTS, dockerfile=dockerfile), dockerfile="docker/Dockerfile").dockerfile == dockerfile


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"image_tag": "v1"}, "image_tag of the pipeline: not used, Modal gives images ids"),
        ({"target_repository": "ml"}, "target_repository of the pipeline: not used, nothing is pushed"),
        ({"python_package_installer_cache_mount": "type=cache,target=/x"}, "cache_mount of the pipeline: not used"),
        ({"build_context_root": "."}, "build_context_root of the pipeline: not used, there is no `dockerfile`"),
        ({"build_config": {"build_options": {"pull": True}}}, "build_options.pull of the pipeline: not used"),
        ({"build_options": {"labels": {}}}, "build_options of the pipeline: not used, ZenML itself"),
    ],
)
def test_what_is_not_used_is_said(settings: dict[str, Any], says: str) -> None:
    assert says in warnings(**settings)


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"environment": {"A B": "c"}}, ("environment", "'A B'")),
        ({"environment": {"A": "b\nRUN c"}}, ("environment", "'A'")),
        ({"apt_packages": ["git; true"]}, ("apt_packages", "'git; true'")),
        ({"user": "root; true"}, ("user", "root; true", "name:group")),
        ({"build_config": {"build_options": {"no_cache": True}}}, ("no_cache", "MODAL_FORCE_BUILD=1")),
        ({"build_config": {"build_options": {"network": "host"}}}, ("build_options.network", "'host'", "Take it out")),
        ({"environment": {"TOKEN": "{{modal.token}}"}}, ("environment", "{{modal.token}}", "`build_secrets`")),
    ],
)
def test_what_can_not_be_built_is_refused(settings: dict[str, Any], says: tuple[str, ...]) -> None:
    message = refused(**settings)
    assert all(text in message for text in says)


URL = "https://me:hunter2@pypi.example.com/simple"


def requiring(text: str) -> Facts:
    return replace(FACTS, requirements=((".zenml_user_requirements", text),))


@pytest.mark.parametrize(
    "url",
    [
        "https://hunter2:@pypi.example.com/simple",
        "git+https://hunter2:@github.com/acme/acme.git",
        "git+ssh://git:hunter2@github.com/acme/acme.git",
        "https://:hunter2@pypi.example.com",
        "https://me:hunter2/x@pypi.example.com",
        "https://me:x'hunter2@pypi.example.com",
        'https://me:x"hunter2@pypi.example.com',
        "https://me:x@hunter2@pypi.example.com",
    ],
)
@pytest.mark.parametrize("where", ["requirements", "arguments", "a key", "environment", "dockerfile", "apt"])
def test_each_way_to_write_a_password(url: str, where: str) -> None:
    facts: dict[str, Facts] = {
        "requirements": requiring(f"--extra-index-url {url}\nsix"),
        "dockerfile": replace(FACTS, dockerfile=replace(DOCKERFILE, text=f"FROM x\nRUN pip install {url}")),
    }
    settings: dict[str, dict[str, Any]] = {
        "arguments": {"python_package_installer_args": {"extra-index-url": url}},
        "a key": {"python_package_installer_args": {f"extra-index-url={url}": None}},
        "environment": {"environment": {"PIP_EXTRA_INDEX_URL": url}},
        "dockerfile": {"dockerfile": "d"},
        "apt": {"apt_packages": [url]},
    }
    message = refused(facts.get(where, FACTS), **settings.get(where, {}))
    assert "a password would be readable in the image's layers" in message
    assert "hunter2" not in message


def test_a_password_across_two_lines() -> None:
    text = "--extra-index-url https://me:\\\n  hunter2@pypi.example.com"
    assert "hunter2" not in refused(requiring(text))
    dockerfile = replace(DOCKERFILE, text=f"FROM x\nRUN pip install {text}")
    assert "hunter2" not in refused(replace(FACTS, dockerfile=dockerfile), dockerfile="d")


def test_what_is_printed_of_a_definition_shows_nobody_who_logs_in() -> None:
    url = "https://${WHO}:${TOKEN}@x.com"
    dockerfile = replace(DOCKERFILE, text=f"FROM x\nRUN pip install -i {url} six")
    facts = replace(requiring(f"acme @ {url}/acme.whl"), dockerfile=dockerfile)
    definition = defined(facts, dockerfile="d", python_package_installer_args={"index-url": url})
    assert "${TOKEN}" in " ".join(commands(definition))
    printed = [str(definition), *(layer.what for layer in definition.layers)]
    assert "TOKEN" not in "".join(printed)
    assert "https://***@x.com/acme.whl" in definition.layers[-2].what


@pytest.mark.parametrize("line", ["-e {}", "--editable={}", "  --editable {}", "-e \\\n  {}"])
@pytest.mark.parametrize("url", ["git+https://${TOKEN}@github.com/acme/x.git#egg=x", "git+https://me:${T}@x.com/a"])
def test_pip_would_keep_the_password_of_what_is_editable(line: str, url: str) -> None:
    message = refused(requiring(line.format(url)), python_package_installer="pip")
    assert "requirements (.zenml_user_requirements)" in message
    assert "pip keeps its clone in the image" in message
    assert "Write it without -e" in message
    assert "TOKEN" not in message
    assert defined(requiring(f"x @ {url}"), python_package_installer="pip")
    assert defined(requiring("-e git+ssh://git@github.com/acme/x.git"), python_package_installer="pip")
    assert defined(requiring("-e git+https://github.com/acme/x.git"), python_package_installer="pip")
    assert defined(requiring(f"-e git+https://github.com/acme/x.git\ny @ {url}"), python_package_installer="pip")


def test_nor_is_it_an_argument() -> None:
    arguments = {"editable": "git+https://${TOKEN}@github.com/acme/x.git#egg=x"}
    message = refused(python_package_installer="pip", python_package_installer_args=arguments)
    assert "python_package_installer_args" in message
    assert "Write it without -e" in message


def test_a_name_before_the_host_looks_like_a_token() -> None:
    """As in the clone URLs that Azure DevOps shows."""
    message = refused(requiring("x @ git+https://acme@dev.azure.com/acme/p/_git/x"))
    assert "leave the name before @ out" in message


@pytest.mark.parametrize(
    ("facts", "settings", "where"),
    [
        (FACTS, {"python_package_installer_args": {"index-url": URL}}, "python_package_installer_args"),
        (FACTS, {"environment": {"PIP_INDEX_URL": URL}}, "environment"),
        (FACTS, {"runtime_environment": {"X": "https://hunter2@pypi.example.com"}}, "runtime_environment"),
        (FACTS, {"build_config": {"build_options": {"build_args": {"X": URL}}}}, "build_config.build_options"),
        (FACTS, {"local_project_install_command": f"pip install -i {URL} ."}, "local_project_install_command"),
        (
            replace(FACTS, requirements=((".zenml_user_requirements", f"-i {URL}\nsix"),)),
            {},
            ".zenml_user_requirements",
        ),
        (
            replace(FACTS, dockerfile=replace(DOCKERFILE, text=f"FROM x\nENV A={URL}")),
            {"dockerfile": "d"},
            "dockerfile",
        ),
    ],
)
def test_no_password_in_a_layer_nor_in_the_message(facts: Facts, settings: dict[str, Any], where: str) -> None:
    message = refused(facts, **settings)
    assert where in message
    assert "build_secrets" in message
    assert "hunter2" not in message


@pytest.mark.parametrize(
    ("facts", "settings", "fix"),
    [
        (FACTS, {"environment": {"PIP_INDEX_URL": "https://me:${TOKEN}@x.com"}}, "Give it to the steps"),
        (FACTS, {"runtime_environment": {"X": "https://${TOKEN}@x.com"}}, "Give it to the steps"),
        (
            FACTS,
            {"build_config": {"build_options": {"build_args": {"X": "https://${TOKEN}@x.com"}}}},
            "`build_secrets`",
        ),
        (FACTS, {"python_package_installer_args": {"index-url": "https://me:$TOKEN@x.com"}}, "write ${NAME}"),
        (
            replace(FACTS, requirements=((".zenml_user_requirements", "-i https://me:$TOKEN@x.com"),)),
            {},
            "write ${NAME}",
        ),
        (
            replace(FACTS, requirements=((".zenml_user_requirements", "-i https://me:${token}@x.com"),)),
            {},
            "write ${NAME}",
        ),
    ],
)
def test_a_variable_that_would_stay_as_it_is_written(facts: Facts, settings: dict[str, Any], fix: str) -> None:
    assert fix in refused(facts, **settings)


def test_a_variable_in_a_command() -> None:
    command = "pip install -i https://me:$TOKEN@x.com -e ."
    assert f"RUN {command}" in commands(defined(local_project_install_command=command))


@pytest.mark.parametrize(
    "url",
    [
        "https://${WHO}:${TOKEN}@x.com",
        "https://oauth2:${TOKEN}@x.com",
        "https://${TOKEN}:@x.com",
        "https://${TOKEN}@x.com/a/@scope/b@1",
        "git+ssh://git@x.com/a",
        "git+ssh://git:@x.com/a",
        "https://x.com/a@1",
        "https://x.com:8080/a@1",
        "https://${HOST:-x}/a@1",
        "https://x.com:${PORT}/a@1",
        '["https://x.com:8080","me@x.com"]',
        '["https://x.com","me@x.com"]',
    ],
)
def test_urls_without_a_password_pass(url: str) -> None:
    assert defined(replace(FACTS, requirements=((".zenml_user_requirements", f"-i {url}"),)))
