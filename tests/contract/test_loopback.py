"""The loopback Modal, driven by the unmodified SDK: what other tests build on has to hold here first."""

from __future__ import annotations

import ast
import asyncio
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import modal
import psutil
import pytest
from grpclib import Status
from modal import exception

from tests import loopback
from tests.contract.modal_lab import (
    CREDENTIALS,
    ENTERED_IMAGE,
    ENVIRONMENTS,
    IMAGE,
    PRIVATE_IMAGE,
    ROOT,
    TOO_OLD_FOR_V2,
    eventually,
)
from tests.loopback import LoopbackImage, LoopbackModal


@pytest.fixture
def client(cloud: LoopbackModal) -> Iterator[modal.Client]:
    client = modal.Client.from_credentials(*cloud.token)
    yield client
    client.__exit__(None, None, None)


@pytest.fixture
def app(client: modal.Client) -> modal.App:
    return modal.App.lookup("lab", client=client, create_if_missing=True)


def start(app: modal.App, client: modal.Client, *argv: str, **options: object) -> modal.Sandbox:
    options.setdefault("image", modal.Image.from_registry(IMAGE))
    return modal.Sandbox.create(*argv, app=app, client=client, **options)  # type: ignore[arg-type]


def python(app: modal.App, client: modal.Client, code: str, **options: object) -> modal.Sandbox:
    return start(app, client, "python", "-c", code, **options)


# What a sandbox is.


def test_output_and_exit_code(app: modal.App, client: modal.Client, backend: str) -> None:
    sandbox = python(app, client, "import sys; print('out'); print('err', file=sys.stderr); sys.exit(3)")
    sandbox.wait()
    assert (sandbox.stdout.read(), sandbox.stderr.read()) == ("out\n", "err\n")
    assert sandbox.returncode == 3
    suffix = sandbox.object_id.removeprefix("sb-")
    assert (len(suffix) == 22) is (backend == "v1")


def test_output_comes_while_it_runs(app: modal.App, client: modal.Client, backend: str) -> None:
    sandbox = python(app, client, "import time; print('up', flush=True); time.sleep(600)")
    assert next(iter(sandbox.stdout)) == "up\n"
    assert sandbox.poll() is None
    sandbox.terminate()


def test_an_environment_of_its_own(
    app: modal.App, client: modal.Client, backend: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OF_THIS_MACHINE", "leaks")
    secrets = [modal.Secret.from_name("named"), modal.Secret.from_dict({"OWN_SECRET": "s"})]
    code = "import os; print('\\n'.join(f'{k}={v}' for k, v in os.environ.items()))"
    sandbox = python(app, client, code, secrets=secrets, env={"PLAIN": "p"})
    sandbox.wait()
    found = dict(line.split("=", 1) for line in sandbox.stdout.read().splitlines())
    for name in ("LC_CTYPE", "PATH", "HOME", "TMPDIR", "MODAL_LOOPBACK", "__CF_USER_TEXT_ENCODING"):
        found.pop(name, None)
    assert found.pop("ZENML_MODAL_PREFECT_WORK_DIR")
    assert found.pop("MODAL_TASK_ID").startswith("ta-")
    assert found == {
        "FROM_IMAGE": "yes",
        "NAMED_SECRET": "from modal",
        "OWN_SECRET": "s",
        "PLAIN": "p",
        "MODAL_SANDBOX_ID": sandbox.object_id,
        "MODAL_IMAGE_ID": found["MODAL_IMAGE_ID"],
        "MODAL_CLOUD_PROVIDER": found["MODAL_CLOUD_PROVIDER"],
        "MODAL_REGION": "loopback",
    }


def test_a_python_without_our_packages(app: modal.App, client: modal.Client) -> None:
    code = "import importlib.util as u; print([n for n in ('bridge', 'prefect', 'modal') if u.find_spec(n)])"
    sandbox = python(app, client, code)
    sandbox.wait()
    assert sandbox.stdout.read() == "[]\n"


def test_files_of_the_image(app: modal.App, client: modal.Client, tmp_path: Path, backend: str) -> None:
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "data.txt").write_text("copied")
    image = (
        modal.Image.from_registry(IMAGE)
        .add_local_dir(tmp_path / "folder", "/opt/lab", copy=True)
        .env({"DATA": "/opt/lab/data.txt"})
        .add_local_file(tmp_path / "folder" / "data.txt", "/srv/mounted.txt")
    )
    code = "import os, sys; print(open(sys.argv[1]).read(), open(os.environ['DATA']).read())"
    sandbox = python(app, client, code, image=image)
    sandbox.wait()
    assert "IndexError" in sandbox.stderr.read()
    for path in ("/opt/lab/data.txt", "/srv/mounted.txt"):
        sandbox = start(app, client, "python", "-c", code, path, image=image)
        sandbox.wait()
        assert sandbox.stdout.read() == "copied copied\n", sandbox.stderr.read()


def test_volumes(cloud: LoopbackModal, app: modal.App, client: modal.Client, backend: str) -> None:
    code = (
        "import os, pathlib; where = dict(p.split('=') for p in os.environ['MODAL_LOOPBACK_VOLUMES'].split(':'));"
        "pathlib.Path(where['/mnt/data'], 'x').write_text('kept')"
    )
    python(app, client, code, volumes={"/mnt/data": modal.Volume.from_name("data")}).wait()
    assert (cloud.volume("data") / "x").read_text() == "kept"


def test_arguments_come_after_the_image_s_entrypoint(app: modal.App, client: modal.Client, backend: str) -> None:
    image = modal.Image.from_registry(ENTERED_IMAGE)
    images = {
        "entered echo hello": image,
        "built echo hello": image.entrypoint(["echo", "built"]),
        "shell": image.dockerfile_commands("ENTRYPOINT echo shell"),
        "hello": image.entrypoint([]),
    }
    for said, image in images.items():
        sandbox = start(app, client, "echo", "hello", image=image)
        sandbox.wait()
        assert sandbox.stdout.read() == f"{said}\n"


def test_equal_images_are_built_once(cloud: LoopbackModal, app: modal.App, client: modal.Client) -> None:
    for _ in range(3):
        modal.Image.from_registry(IMAGE).build(app)
    assert cloud.stats().image_builds == 1


def test_bad_utf8_travels_as_it_would(app: modal.App, client: modal.Client, backend: str) -> None:
    sandbox = python(app, client, "import sys; sys.stdout.buffer.write(b'a\\xffb\\n')")
    sandbox.wait()
    if backend == "v1":  # protobuf strings can't carry it
        assert sandbox.stdout.read() == "a\ufffdb\n"
    else:
        with pytest.raises(UnicodeDecodeError):
            sandbox.stdout.read()


# Its end.


def test_timeout(app: modal.App, client: modal.Client, backend: str) -> None:
    sandbox = start(app, client, "sleep", "600", timeout=1)
    with pytest.raises(exception.SandboxTimeoutError):
        sandbox.wait()
    assert sandbox.poll() == 124


def test_terminate(cloud: LoopbackModal, app: modal.App, client: modal.Client, backend: str) -> None:
    code = "import subprocess, time; subprocess.Popen(['sleep', '600']); print('up', flush=True); time.sleep(600)"
    sandbox = python(app, client, code)
    assert next(iter(sandbox.stdout)) == "up\n"
    pid = cloud.sandbox(sandbox.object_id).pid
    family = [psutil.Process(pid), *psutil.Process(pid).children(recursive=True)]
    assert len(family) == 2
    sandbox.terminate()
    with pytest.raises(exception.SandboxTerminatedError):
        sandbox.wait()
    assert sandbox.poll() == 137
    assert not [process for process in family if process.is_running() and process.status() != "zombie"]
    sandbox.terminate()


@pytest.mark.parametrize(
    ("fault", "status"),
    [
        ("evict", "memory_manager_eviction"),
        ("oom", "kernel_oom_kill"),
        ("lose", "internal_failure"),
        ("idle_out", "idle_timeout"),
        ("kill", "failure"),
        ("terminate", "terminated"),
    ],
)
def test_injected_ends(
    cloud: LoopbackModal, app: modal.App, client: modal.Client, backend: str, fault: str, status: str
) -> None:
    sandbox = python(app, client, "print('up', flush=True); import time; time.sleep(600)")
    next(iter(sandbox.stdout))
    getattr(cloud, fault)(sandbox.object_id)
    sandbox.wait(raise_on_termination=False)
    assert cloud.sandbox(sandbox.object_id).status == status
    if fault == "kill":
        assert sandbox.returncode == 137


def test_init_failure(cloud: LoopbackModal, app: modal.App, client: modal.Client, backend: str) -> None:
    cloud.set(init_failures=1)
    sandbox = start(app, client, "true")
    sandbox.wait()
    assert cloud.sandbox(sandbox.object_id).status == "init_failure"
    assert cloud.sandbox(sandbox.object_id).pid is None


def test_memory_is_enforced_on_request(cloud: LoopbackModal, app: modal.App, client: modal.Client) -> None:
    cloud.set(enforce_memory=True)
    sandbox = python(app, client, "x = bytearray(300 << 20); import time; time.sleep(600)", memory=128)
    sandbox.wait()
    assert cloud.sandbox(sandbox.object_id).status == "kernel_oom_kill"


def test_daemons_end_with_the_server(client: modal.Client) -> None:
    image = LoopbackImage(Path(sys.executable))
    code = (
        "import subprocess; d = subprocess.DEVNULL;"
        "print(subprocess.Popen(['sleep', '600'], start_new_session=True, stdout=d, stderr=d).pid)"
    )
    with LoopbackModal({"registry.example.com/x": image}) as cloud:
        script = (
            "import modal, sys; app = modal.App.lookup('lab', create_if_missing=True);"
            "image = modal.Image.from_registry('registry.example.com/x');"
            "box = modal.Sandbox.create('python', '-c', sys.argv[1], app=app, image=image);"
            "box.wait(); print(box.stdout.read())"
        )
        done = subprocess.run(
            [sys.executable, "-c", script, code], env={**cloud.env, "PATH": "/bin"}, capture_output=True, check=True
        )
        daemon = psutil.Process(int(done.stdout))
        assert daemon.is_running()
    assert not daemon.is_running() or daemon.status() == "zombie"


# Names, tags, lists.


def test_names(app: modal.App, client: modal.Client, backend: str) -> None:
    sandbox = start(app, client, "sleep", "600", name="one")
    with pytest.raises(exception.AlreadyExistsError):
        start(app, client, "sleep", "600", name="one")
    assert modal.Sandbox.from_name("lab", "one", client=client).object_id == sandbox.object_id
    sandbox.terminate()
    sandbox.wait(raise_on_termination=False)
    with pytest.raises(exception.NotFoundError):
        modal.Sandbox.from_name("lab", "one", client=client)
    start(app, client, "true", name="one").wait()


def test_lists_and_tags(app: modal.App, client: modal.Client, backend: str) -> None:
    boxes = [start(app, client, "sleep", "600", tags={"n": str(n % 2), "lab": "yes"}) for n in range(4)]
    done = start(app, client, "true", tags={"lab": "yes"})
    done.wait()

    def listed(**tags: str) -> set[str]:
        return {box.object_id for box in modal.Sandbox.list(app_id=app.app_id, tags=tags, client=client)}

    assert listed(lab="yes") == {box.object_id for box in boxes}
    assert listed(n="1", lab="yes") == {boxes[1].object_id, boxes[3].object_id}
    boxes[1].set_tags({"other": "x"})
    assert boxes[1].get_tags() == {"other": "x"}
    assert listed(n="1") == {boxes[3].object_id}


def test_lists_have_pages(cloud: LoopbackModal, app: modal.App, client: modal.Client) -> None:
    image = modal.Image.from_registry(IMAGE).build(app)
    ids = {start(app, client, "sleep", "600", image=image).object_id for _ in range(120)}
    assert {box.object_id for box in modal.Sandbox.list(app_id=app.app_id, client=client)} == ids
    assert cloud.stats().most_at_once == 120


def test_environments_are_apart(cloud: LoopbackModal, client: modal.Client) -> None:
    apps = [
        modal.App.lookup("lab", client=client, environment_name=name, create_if_missing=True) for name in ENVIRONMENTS
    ]
    assert apps[0].app_id != apps[1].app_id
    with pytest.raises(exception.NotFoundError):
        modal.App.lookup("lab", client=client, environment_name="nowhere", create_if_missing=True)


# Execs and stdin.


def test_exec(app: modal.App, client: modal.Client, backend: str) -> None:
    sandbox = start(app, client, "sleep", "600")
    code = "import os, sys; print(os.environ['X'], sys.stdin.read()); print('e', file=sys.stderr); sys.exit(4)"
    process = sandbox.exec("python", "-c", code, env={"X": "x"})
    process.stdin.write("hello")
    process.stdin.write_eof()
    process.stdin.drain()
    assert process.wait() == 4
    assert (process.stdout.read(), process.stderr.read()) == ("x hello\n", "e\n")
    assert sandbox.exec("sleep", "600", timeout=1).wait() in (-1, 137)
    assert sandbox.poll() is None


async def test_execs_that_begin_while_it_ends(cloud: LoopbackModal, app: modal.App, client: modal.Client) -> None:
    """Each is refused, or ends with it; none keeps it from ending."""
    sandbox = await asyncio.to_thread(start, app, client, "sleep", "600")
    earlier = [await sandbox.exec.aio("sleep", "600") for _ in range(4)]

    async def begin() -> None:
        try:
            process = await sandbox.exec.aio("sleep", "600")
            await process.wait.aio()
        except exception.Error:
            return  # it was over

    later = [asyncio.create_task(begin()) for _ in range(20)]
    await sandbox.terminate.aio()
    await asyncio.wait_for(sandbox.wait.aio(raise_on_termination=False), 60)
    assert cloud.sandbox(sandbox.object_id).status == "terminated"
    await asyncio.wait_for(asyncio.gather(*(process.wait.aio() for process in earlier), *later), 60)


def test_stdin(app: modal.App, client: modal.Client, backend: str) -> None:
    sandbox = start(app, client, "cat")
    sandbox.stdin.write("through\n")
    sandbox.stdin.write_eof()
    sandbox.stdin.drain()
    sandbox.wait()
    assert sandbox.stdout.read() == "through\n"


# What it refuses.


@pytest.mark.parametrize(
    ("options", "argv"),
    [
        ({"timeout": 86_401}, ("true",)),
        ({"timeout": 0}, ("true",)),
        ({"name": "a b"}, ("true",)),
        ({"name": "x" * 65}, ("true",)),
        ({"tags": {"a b": "c"}}, ("true",)),
        ({"tags": {"a": "x" * 64}}, ("true",)),
        ({"gpu": "GTX"}, ("true",)),
        ({"gpu": "A100:9"}, ("true",)),
        ({"cloud": "nimbus"}, ("true",)),
        ({"memory": 1_000_000}, ("true",)),
        ({"cpu": 65.0}, ("true",)),
        ({}, ("true", "x" * 65_536)),
    ],
)
def test_refused_requests(
    cloud: LoopbackModal,
    app: modal.App,
    client: modal.Client,
    backend: str,
    options: dict[str, object],
    argv: tuple[str, ...],
) -> None:
    with pytest.raises(exception.InvalidError):
        start(app, client, *argv, **options)
    assert not cloud.sandboxes()


def test_missing_objects(app: modal.App, client: modal.Client, backend: str) -> None:
    with pytest.raises(exception.NotFoundError):
        start(app, client, "true", secrets=[modal.Secret.from_name("missing")])
    with pytest.raises(exception.NotFoundError):
        start(app, client, "true", volumes={"/v": modal.Volume.from_name("missing")})


@pytest.mark.parametrize("token", [("ak-loopback", "wrong"), ("wrong", "as-loopback")])
def test_wrong_tokens(cloud: LoopbackModal, token: tuple[str, str]) -> None:
    client = modal.Client.from_credentials(*token)
    with pytest.raises(exception.AuthError):
        client.hello()
    client.__exit__(None, None, None)


def test_images_that_are_not_there(app: modal.App) -> None:
    with pytest.raises(exception.RemoteError, match="failed"):
        modal.Image.from_registry("registry.example.com/nothing").build(app)


@pytest.mark.parametrize("credentials", [None, ("user", "wrong"), CREDENTIALS])
def test_private_images(app: modal.App, credentials: tuple[str, str] | None) -> None:
    secret = None
    if credentials:
        names = ("REGISTRY_USERNAME", "REGISTRY_PASSWORD")
        secret = modal.Secret.from_dict(dict(zip(names, credentials, strict=True)))
    image = modal.Image.from_registry(PRIVATE_IMAGE, secret=secret)
    if credentials == CREDENTIALS:
        image.build(app)
    else:
        with pytest.raises(exception.RemoteError):
            image.build(app)


def test_commands_run_in_a_folder_of_the_image(app: modal.App, client: modal.Client, backend: str) -> None:
    image = modal.Image.from_registry(IMAGE).dockerfile_commands(
        "WORKDIR /app", "RUN python -c 'import sys; print(sys.prefix)' > prefix"
    )
    code = "import sys; print(open('prefix').read().strip() == sys.prefix, sys.prefix.endswith('opt/loopback-venv'))"
    assert python(app, client, code, image=image).stdout.read() == "True True\n"


def test_no_builder_for_everything(app: modal.App) -> None:
    with pytest.raises(Exception, match="no builder for HEALTHCHECK"):
        modal.Image.from_registry(IMAGE).dockerfile_commands("HEALTHCHECK NONE").build(app)


# What goes wrong.


def test_cold_start(cloud: LoopbackModal, app: modal.App, client: modal.Client, backend: str) -> None:
    cloud.set(cold_start=0.5)
    start(app, client, "true").wait()
    assert cloud.stats().sandbox_seconds > 0.5


def test_capacity(cloud: LoopbackModal, client: modal.Client, app: modal.App) -> None:
    cloud.capacity("A100", 2)
    first = start(app, client, "sleep", "600", gpu="A100:2")
    record = cloud.sandbox(first.object_id)
    assert (record.gpu_type, record.gpu_count, record.backend) == ("A100", 2, 1)

    async def second() -> modal.Sandbox:
        image = modal.Image.from_registry(IMAGE)
        create = asyncio.ensure_future(
            modal.Sandbox.create.aio("true", app=app, client=client, image=image, gpu="A100", name="second")
        )
        await eventually(lambda: len(cloud.sandboxes()) == 2)
        assert cloud.sandbox("second").status == "pending"
        await first.terminate.aio()
        return await create

    asyncio.run(second()).wait()
    assert cloud.stats().most_at_once == 1
    assert cloud.stats().gpu_seconds > 0


@pytest.mark.parametrize(
    ("status", "error"),
    [
        (Status.INVALID_ARGUMENT, exception.InvalidError),
        (Status.RESOURCE_EXHAUSTED, exception.ResourceExhaustedError),
        (Status.NOT_FOUND, exception.NotFoundError),
    ],
)
def test_create_errors(
    cloud: LoopbackModal,
    app: modal.App,
    client: modal.Client,
    backend: str,
    status: Status,
    error: type[Exception],
) -> None:
    cloud.create_error(1, status)
    with pytest.raises(error, match="injected"):
        start(app, client, "true")
    start(app, client, "true").wait()


def test_throttled_creates(cloud: LoopbackModal, app: modal.App, client: modal.Client, backend: str) -> None:
    image = modal.Image.from_registry(IMAGE).build(app)
    cloud.set(creates_per_second=2)
    start(app, client, "true", image=image)
    start(app, client, "true", image=image)
    with pytest.raises(exception.ResourceExhaustedError, match="rate limit"):
        start(app, client, "true", image=image)


def test_a_lost_reply_makes_one_sandbox(
    cloud: LoopbackModal, app: modal.App, client: modal.Client, backend: str
) -> None:
    cloud.set(lost_replies=2)
    start(app, client, "true").wait()
    assert len(cloud.sandboxes()) == 1


def test_unavailable(cloud: LoopbackModal, app: modal.App, client: modal.Client) -> None:
    cloud.unavailable(60)
    with pytest.raises(exception.Error, match="control plane is down"):
        start(app, client, "true")
    cloud.unavailable(0)
    start(app, client, "true").wait()


def test_pause_and_resume(cloud: LoopbackModal, app: modal.App, client: modal.Client, backend: str) -> None:
    sandbox = start(app, client, "sleep", "600")
    cloud.pause()
    with pytest.raises((exception.Error, OSError)):
        sandbox.poll()
    cloud.resume()
    assert sandbox.poll() is None


def test_broken_and_slow_streams(cloud: LoopbackModal, app: modal.App, client: modal.Client, backend: str) -> None:
    cloud.set(broken_streams=1, stream_delay=0.05)
    sandbox = python(app, client, "for n in range(1000): print(n)")
    sandbox.wait()
    assert sandbox.stdout.read() == "".join(f"{n}\n" for n in range(1000))


def test_a_connection_takes_many_streams(cloud: LoopbackModal, app: modal.App, client: modal.Client) -> None:
    image = modal.Image.from_registry(IMAGE).build(app)

    async def wait_for_many() -> None:
        boxes = [
            await modal.Sandbox.create.aio("sleep", "600", app=app, client=client, image=image) for _ in range(150)
        ]
        waits = [asyncio.ensure_future(box.wait.aio(raise_on_termination=False)) for box in boxes]
        calls = ("SandboxWait", "SandboxWaitV2")
        await eventually(lambda: sum(cloud.stats().calls.get(name, 0) for name in calls) >= 150)
        await asyncio.wait_for(boxes[0].poll.aio(), 5)
        for box in boxes:
            await box.terminate.aio()
        await asyncio.gather(*waits)

    asyncio.run(wait_for_many())


def test_started_by_hand() -> None:
    server = subprocess.Popen([sys.executable, "-m", "tests.loopback"], cwd=ROOT, stdout=subprocess.PIPE, text=True)
    try:
        assert server.stdout is not None
        exported = dict(server.stdout.readline().removeprefix("export ").strip().split("=", 1) for _ in range(5))
        assert exported["MODAL_SERVER_URL"].startswith("http://127.0.0.1:")
    finally:
        server.terminate()
        assert server.wait(60) == 0


@pytest.mark.skipif(TOO_OLD_FOR_V2, reason="this SDK creates on V1 alone")
def test_gpus_go_to_v1(cloud: LoopbackModal, app: modal.App, client: modal.Client, backend: str) -> None:
    sandbox = start(app, client, "true", gpu="T4")
    sandbox.wait()
    assert cloud.sandbox(sandbox.object_id).backend == 1


SOURCE = re.compile(r"modal/[\w/]+\.py|modal\.com/|github\.com/|docs\.docker\.com/")
REFUSES = ("GRPCError", "invalid", "BuildFailed")
"""What the loopback raises where Modal would. ``rules.not_found`` has its source once for all."""


def refusals(path: Path) -> Iterator[tuple[str, str]]:
    """Each refusal of a module, and what is written about it: above it, and of the limits that it names."""
    text = path.read_text()
    lines, tree = text.splitlines(), ast.parse(text)
    limits = {
        target.id: "\n".join(lines[max(0, node.lineno - 2) : node.end_lineno])
        for node in tree.body
        if isinstance(node, ast.Assign)
        for target in node.targets
        if isinstance(target, ast.Name)
    }
    for block in (node for node in ast.walk(tree) if isinstance(node, (ast.stmt, ast.ExceptHandler))):
        for node in getattr(block, "body", ()):
            if not isinstance(node, ast.Raise) or not isinstance(node.exc, ast.Call):
                continue
            ours = "injected by the test" in ast.unparse(node) or "Status.UNIMPLEMENTED" in ast.unparse(node)
            if ast.unparse(node.exc.func).rpartition(".")[2] in REFUSES and not ours:
                named = [name.id for name in ast.walk(block) if isinstance(name, ast.Name) and name.id in limits]
                above = lines[max(0, node.lineno - 4) : node.end_lineno]
                yield f"{path.name}:{node.lineno}", "\n".join([*above, *(limits[name] for name in named)])


def test_each_refusal_names_its_source() -> None:
    found = [refusal for path in sorted(Path(loopback.__file__).parent.glob("*.py")) for refusal in refusals(path)]
    assert len(found) >= 20
    assert [where for where, text in found if not SOURCE.search(text)] == []
