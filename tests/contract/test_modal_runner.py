"""The Modal runner beyond the contract: what it asks of Modal, and what it makes of Modal's failures."""

from __future__ import annotations

import asyncio
import inspect
import os
import shutil
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Mapping
from contextlib import aclosing
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import modal
import pytest
from grpclib import Status

from bridge import names
from bridge.errors import CapacityUnavailable, CredentialsRefused, RunnerUnavailable, SandboxRefused
from bridge.flow_run.outcome import End
from bridge.plan import Gpu, Resources, SandboxSpec, VolumeMount
from bridge.planning.prices import NoPrices, Prices
from bridge.runners.base import Runner, SandboxRequest
from bridge.runners.modal import ModalRunner
from bridge.runners.modal_output import DRAIN_SECONDS
from bridge.runners.modal_sandbox import ModalSandbox
from bridge.runners.rate import RateLimit
from bridge.runners.registry import Registry
from bridge.watching.output import OutputLine
from tests.contract.modal_lab import (
    CREDENTIALS,
    ENTERED_IMAGE,
    IMAGE,
    PRIVATE_IMAGE,
    ROOT,
    SPEC,
    TOO_OLD_FOR_V2,
    eventually,
)
from tests.loopback import LoopbackModal

pytestmark = pytest.mark.at("v2")  # what is the same on both backends; else a test says so

APP = "zenml-lab"


def runner_for(
    cloud: LoopbackModal,
    *,
    create_rate: float = 100,
    outage: float = 120,
    registry: Registry | None = None,
) -> ModalRunner:
    token_id, token_secret = cloud.token
    return ModalRunner(
        token_id=token_id,
        token_secret=token_secret,
        create_rate=create_rate,
        outage=outage,
        registry=registry,
    )


@pytest.fixture
async def runner(cloud: LoopbackModal) -> AsyncIterator[ModalRunner]:
    async with runner_for(cloud) as runner:
        yield runner


def request(
    *command: str,
    name: str = "box",
    spec: SandboxSpec = SPEC,
    environment: Mapping[str, str] | None = None,
    secret_environment: Mapping[str, str] | None = None,
) -> SandboxRequest:
    return SandboxRequest(
        name=name,
        app=APP,
        command=command or ("sleep", "600"),
        spec=spec,
        environment=environment or {},
        secret_environment=secret_environment or {},
        tags={names.TAG_RUN_ID: "run"},
    )


def with_gpus(*types: str, count: int = 1, capacity_timeout: int = 1) -> SandboxSpec:
    return replace(SPEC, resources=Resources(gpu=Gpu(types, count)), capacity_timeout=capacity_timeout)


async def texts(sandbox: ModalSandbox) -> list[str]:
    return [line.text async for line in sandbox.output()]


async def first_line(sandbox: ModalSandbox) -> OutputLine:
    async with aclosing(sandbox.output()) as output:
        async for line in output:
            return line
    raise AssertionError("no output")


# What it asks of Modal.


async def test_it_is_a_runner(runner: ModalRunner) -> None:
    assert isinstance(runner, Runner)
    assert runner.kind == "modal"


async def test_prices(cloud: LoopbackModal, runner: ModalRunner) -> None:
    prices = await runner.prices()
    if not hasattr(modal, "Workspace"):
        assert isinstance(prices, NoPrices)
        assert f"SDK {modal.__version__} can't ask" in prices.why
        return
    assert isinstance(prices, Prices)
    assert (str(prices.cpu), str(prices.memory)) == ("0.1419", "0.024"), "those of sandboxes"
    assert set(prices.gpus) == {"a100_40gb", "h100"}
    cloud.unavailable(60)
    with pytest.raises(RunnerUnavailable, match="prices can't be asked"):
        await runner.prices()


READS_WHEN_ASKED = """
import os, pathlib, sys
folder = pathlib.Path(os.environ["MODAL_LOOPBACK_VOLUMES"].partition("=")[2])
for line in sys.stdin:
    if line == "close\\n":
        held.close()
    names = sorted(path.name for path in folder.iterdir())
    held = open(folder / names[0]) if line == "open\\n" else None
    print(names, flush=True)
"""


async def test_volumes_are_reloaded(cloud: LoopbackModal, runner: ModalRunner, backend: str) -> None:
    """What others wrote is seen once it is asked for, which can't be while a file there is open."""
    (cloud.volume("models") / "old").write_text("x")
    spec = replace(SPEC, volumes=(VolumeMount("/models", "models", read_only=True),))
    sandbox = await runner.start(request("python", "-u", "-c", READS_WHEN_ASKED, spec=spec))
    async with aclosing(sandbox.output()) as lines:
        await say(sandbox, "open")
        assert (await anext(lines)).text == "['old']"
        (cloud.volume("models") / "new").write_text("x")
        with pytest.raises((SandboxRefused, RunnerUnavailable), match=r"can't be reloaded: .*open files"):
            await runner.reload_volumes(sandbox)
        await say(sandbox, "close")
        assert (await anext(lines)).text == "['old']"
        cloud.unavailable(2)  # which the older SDK would meet
        await runner.reload_volumes(sandbox)
        cloud.unavailable(0)
        await say(sandbox, "look")
        assert (await anext(lines)).text == "['new', 'old']"


@pytest.mark.at("v1", "v2")
async def test_everything_in_the_spec_arrives(cloud: LoopbackModal, runner: ModalRunner, backend: str) -> None:
    spec = SandboxSpec(
        image=IMAGE,
        resources=Resources(cpu=1.5, memory=2048),
        timeout=77,
        cloud="aws",
        region=("us-east", "eu"),
        modal_environment="staging",
        secrets=("named",),
        volumes=(VolumeMount("/mnt/data", "data"), VolumeMount("/mnt/read", "models", read_only=True)),
        tags=(("team", "vision"),),
    )
    asked = request(spec=spec, environment={"PLAIN": "p"}, secret_environment={"TOKEN": "t0ken"})
    sandbox = await runner.start(asked)
    record = cloud.sandbox(sandbox.id)
    assert (record.cpu_milli, record.memory_mib) == (1500, 2048)
    assert (record.timeout, record.idle_timeout) == (77, 0)
    assert (record.cloud, record.region, record.modal_environment) == ("aws", ("us-east", "eu"), "staging")
    assert record.volumes == {"/mnt/data": "data", "/mnt/read": "models, read-only"}
    assert record.named_secrets == ("named",)
    assert record.tags == {"team": "vision", names.TAG_RUN_ID: "run", names.TAG_SANDBOX: "box"}
    assert record.environment == {"NAMED_SECRET": "from modal", "TOKEN": "t0ken", "PLAIN": "p"}
    assert (record.name, record.app, record.registry_image) == ("box", APP, IMAGE)
    assert record.backend == (1 if backend == "v1" else 2)
    assert sandbox.url == names.sandbox_page(sandbox.id) == f"https://modal.com/id/{sandbox.id}"
    assert await runner.find(APP, "box") is None
    found = await runner.find(APP, "box", "staging")
    assert found is not None
    assert [box.id for box in await runner.running({"team": "vision"}, "staging")] == [found.id]
    assert not await runner.running({"team": "vision"})


async def test_what_limits_the_network_arrives(cloud: LoopbackModal, runner: ModalRunner, backend: str) -> None:
    async def network(name: str, **limits: Any) -> tuple[str, tuple[str, ...], tuple[str, ...]]:
        sandbox = await runner.start(request(name=name, spec=replace(SPEC, **limits)))
        record = cloud.sandbox(sandbox.id)
        return record.network, record.allowed_cidrs, record.allowed_domains

    assert await network("free") == ("open", (), ())
    assert await network("blocked", block_network=True) == ("blocked", (), ())
    networks, domains = ("10.0.0.0/8",), ("zenml.example.com", "*.amazonaws.com")
    assert await network("networks", outbound_cidrs=networks) == ("allowlist", networks, ())
    both = replace(SPEC, outbound_cidrs=networks, outbound_domains=domains)
    if "outbound_domain_allowlist" in inspect.signature(modal.Sandbox.create).parameters:
        await runner.check(APP, [both])
        found = await network("both", outbound_cidrs=networks, outbound_domains=domains)
        assert found == ("allowlist", networks, domains)
    else:
        with pytest.raises(SandboxRefused, match=r"outbound_domain_allowlist.*modal>=1\.6"):
            await runner.check(APP, [both])


@pytest.mark.at("v1", "v2")
async def test_a_secret_is_nowhere_but_in_a_secret(cloud: LoopbackModal, runner: ModalRunner, backend: str) -> None:
    asked = request(secret_environment={"TOKEN": "t0ken"})
    sandbox = await runner.start(asked)
    record = cloud.sandbox(sandbox.id)
    assert "t0ken" not in repr((asked, sandbox, runner, record.argv, record.tags, record.name, record.app))
    assert "as-loopback" not in repr((runner, vars(runner)))


async def test_one_lookup_and_one_build_a_run(cloud: LoopbackModal, backend: str) -> None:
    async with runner_for(cloud) as runner:
        spec = replace(SPEC, secrets=("named",), volumes=(VolumeMount("/mnt/data", "data"),))
        await asyncio.gather(*(runner.start(request("true", name=f"box-{n}", spec=spec)) for n in range(10)))
    stats = cloud.stats()
    assert stats.created == 10
    assert stats.calls["AppGetOrCreate"] == 1
    assert stats.calls["VolumeGetOrCreate"] == 1
    assert stats.calls["SecretGetOrCreate"] == 1
    assert stats.calls["ImageGetOrCreate"] == 2  # the registry's, and our package on it
    assert stats.calls["ClientHello"] == 1
    async with runner_for(cloud) as runner:
        await runner.start(request("true", name="another"))
    assert cloud.stats().image_builds == 2


async def test_the_sandbox_has_the_very_package_of_this_process(cloud: LoopbackModal, tmp_path: Path) -> None:
    """One line changes, the version doesn't; the sandbox runs the change, without a release."""
    shutil.copytree(ROOT / "bridge", tmp_path / "bridge")
    host = tmp_path / "bridge" / "host" / "__main__.py"
    changed = host.read_text().replace('sys.stdout.write(f"{bridge.__file__}\\n")', 'sys.stdout.write("edited\\n")')
    assert changed != host.read_text()
    host.write_text(changed)
    script = f"""
import asyncio, bridge
from bridge.plan import SandboxSpec
from bridge.runners.base import SandboxRequest
from bridge.runners.modal import ModalRunner
async def main():
    async with ModalRunner() as runner:
        spec = SandboxSpec(image={IMAGE!r})
        command = runner.host_command("where")
        box = await runner.start(SandboxRequest(name="box", app="zenml-x", command=command, spec=spec))
        print(await box.wait(), [line.text async for line in box.output()])
asyncio.run(main())
"""
    environment = {**os.environ, "PYTHONPATH": str(tmp_path)}
    done = await asyncio.to_thread(
        subprocess.run, [sys.executable, "-c", script], env=environment, capture_output=True, text=True, cwd="/"
    )
    assert done.stdout == "exited with exit code 0 ['edited']\n", done.stderr


@pytest.mark.at("v1", "v2")
async def test_an_image_s_entrypoint_is_not_in_front_of_the_command(
    cloud: LoopbackModal, runner: ModalRunner, backend: str
) -> None:
    sandbox = await runner.start(request("echo", "hello", spec=replace(SPEC, image=ENTERED_IMAGE)))
    await sandbox.wait()
    assert await texts(sandbox) == ["hello"]


async def test_private_registry(cloud: LoopbackModal) -> None:
    spec = replace(SPEC, image=PRIVATE_IMAGE)
    async with runner_for(cloud) as runner:
        with pytest.raises(SandboxRefused, match="authentication required"):
            await runner.start(request(spec=spec))
    its_own = Registry("registry.example.com", lambda: CREDENTIALS)
    async with runner_for(cloud, registry=its_own) as runner:
        await runner.start(request(spec=spec))
    assert cloud.stats().calls["SecretGetOrCreate"] == 1, "that of the build"


async def test_the_credentials_of_one_registry_are_not_shown_to_another(cloud: LoopbackModal) -> None:
    others = Registry("registry.acme.com", lambda: CREDENTIALS)
    async with runner_for(cloud, registry=others) as runner:
        await runner.start(request("true"))
        with pytest.raises(SandboxRefused, match="authentication required"):
            await runner.start(request(name="private", spec=replace(SPEC, image=PRIVATE_IMAGE)))
    assert "SecretGetOrCreate" not in cloud.stats().calls


# Credentials.


async def test_credentials_of_modals_own_configuration(cloud: LoopbackModal) -> None:
    async with ModalRunner() as runner:
        await runner.start(request("true"))


async def test_wrong_credentials(cloud: LoopbackModal) -> None:
    with pytest.raises(CredentialsRefused, match=r"modal setup.*MODAL_TOKEN_ID.*token_id"):
        async with ModalRunner(token_id="ak-wrong", token_secret="as-wrong"):
            pass
    assert set(cloud.stats().calls) == {"ClientHello"}


async def test_no_credentials(cloud: LoopbackModal, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MODAL_TOKEN_ID")
    monkeypatch.delenv("MODAL_TOKEN_SECRET")
    with pytest.raises(CredentialsRefused, match=r"Token missing.*modal setup"):
        async with ModalRunner():
            pass
    assert not cloud.stats().calls


def test_half_a_token_pair() -> None:
    with pytest.raises(ValueError, match="both or neither"):
        ModalRunner(token_id="ak-half")


# What Modal refuses.


@pytest.mark.parametrize(
    ("spec", "words"),
    [
        (replace(SPEC, image=None), "no image"),
        (replace(SPEC, image="registry.example.com/nothing"), "manifest unknown"),
        (replace(SPEC, secrets=("missing",)), "secret 'missing'.*modal secret create"),
        (replace(SPEC, volumes=(VolumeMount("/v", "missing"),)), "volume 'missing'.*modal volume create"),
        (replace(SPEC, modal_environment="nowhere"), "nowhere"),
        (replace(SPEC, timeout=90_000), "timeout"),
        (replace(SPEC, cloud="nimbus"), "nimbus"),
        (replace(SPEC, resources=Resources(gpu=Gpu(("GTX",)))), "GTX"),
        (replace(SPEC, resources=Resources(memory=10_000_000)), "memory"),
        (replace(SPEC, tags=(("a b", "c"),)), "a b"),
    ],
    ids=["image", "registry", "secret", "volume", "environment", "timeout", "cloud", "gpu", "memory", "tag"],
)
async def test_refused(cloud: LoopbackModal, runner: ModalRunner, backend: str, spec: SandboxSpec, words: str) -> None:
    with pytest.raises(SandboxRefused, match=f"(?s){words}"):
        await runner.start(request(spec=spec))
    assert not cloud.sandboxes()


async def test_a_name_that_modal_does_not_take(cloud: LoopbackModal, runner: ModalRunner, backend: str) -> None:
    with pytest.raises(SandboxRefused, match="name"):
        await runner.start(request(name="a b"))


async def test_no_command(runner: ModalRunner) -> None:
    with pytest.raises(SandboxRefused, match="no command"):
        await runner.start(replace(request(), command=()))


# Capacity.


async def test_gpu_types_are_tried_in_order(cloud: LoopbackModal, runner: ModalRunner) -> None:
    cloud.capacity("H100", 0)
    cloud.capacity("A100", 1)
    sandbox = await runner.start(request(spec=with_gpus("H100", "A100", "T4", count=2)))
    record = cloud.sandbox(sandbox.id)
    assert (record.gpu_type, record.gpu_count) == ("T4", 2)
    assert [box.id for box in await runner.running({})] == [sandbox.id]
    other = await runner.start(request(name="other", spec=with_gpus("H100", "A100", "T4")))
    assert cloud.sandbox(other.id).gpu_type == "A100"


async def test_no_capacity(cloud: LoopbackModal, runner: ModalRunner) -> None:
    cloud.capacity("H100", 0)
    cloud.capacity("A100", 0)
    with pytest.raises(CapacityUnavailable, match=r"H100 or A100.*within 1 s for each GPU type"):
        await runner.start(request(spec=with_gpus("H100", "A100")))
    await eventually(lambda: all(box.status == "terminated" for box in cloud.sandboxes()))
    assert not cloud.stats().most_at_once


@pytest.mark.skipif(TOO_OLD_FOR_V2, reason="this SDK creates on V1 alone")
@pytest.mark.parametrize("refuses", [False, True], ids=["waits", "refuses"])
async def test_no_room_for_any_sandbox(
    cloud: LoopbackModal, runner: ModalRunner, monkeypatch: pytest.MonkeyPatch, refuses: bool
) -> None:
    """On V2, whichever way a full Modal behaves: what comes free in time is taken, and nothing is left behind."""
    monkeypatch.setenv("MODAL_SANDBOX_V2", "1")
    cloud.capacity("", 0)
    cloud.set(refuse_when_full=refuses)
    with pytest.raises(CapacityUnavailable, match="within 1 s"):
        await runner.start(request(spec=replace(SPEC, capacity_timeout=1)))
    await eventually(lambda: not cloud.stats().creating)
    assert all(box.status == "terminated" for box in cloud.sandboxes())
    calls = cloud.stats().calls["SandboxCreateV2"]
    start = asyncio.ensure_future(runner.start(request(spec=replace(SPEC, capacity_timeout=60))))
    await eventually(lambda: cloud.stats().calls["SandboxCreateV2"] > calls)
    cloud.capacity("", 1)
    assert cloud.sandbox((await start).id).status in ("pending", "running")


async def test_capacity_that_comes_free(cloud: LoopbackModal, runner: ModalRunner) -> None:
    cloud.capacity("H100", 0)
    start = asyncio.ensure_future(runner.start(request(spec=with_gpus("H100", capacity_timeout=60))))
    await eventually(lambda: len(cloud.sandboxes()) == 1)
    cloud.capacity("H100", 1)
    assert cloud.sandbox((await start).id).status == "running"


@pytest.mark.skipif(TOO_OLD_FOR_V2, reason="this SDK creates on V1 alone")
async def test_gpu_sandboxes_are_found_beside_v2(
    cloud: LoopbackModal, runner: ModalRunner, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MODAL_SANDBOX_V2", "1")
    boxes = [await runner.start(request(name="gpu", spec=with_gpus("T4"))), await runner.start(request(name="cpu"))]
    assert [cloud.sandbox(box.id).backend for box in boxes] == [1, 2]
    assert {box.id for box in await runner.running({names.TAG_RUN_ID: "run"})} == {box.id for box in boxes}
    for box in boxes:
        found = await runner.find(APP, box.name)
        assert found is not None
        assert found.id == box.id
        again = await runner.start(request(name=box.name, spec=with_gpus("T4") if box.name == "gpu" else SPEC))
        assert again.id == box.id


# How sandboxes end.


@pytest.mark.at("v1", "v2")
@pytest.mark.parametrize(
    ("fault", "end", "code"),
    [
        ("evict", End.EVICTED, None),
        ("oom", End.OUT_OF_MEMORY, None),
        ("lose", End.LOST, None),
        ("idle_out", End.LOST, None),
        ("forget", End.LOST, None),
        ("terminate", End.TERMINATED, None),
        ("kill", End.EXITED, 137),
    ],
)
async def test_ends(
    cloud: LoopbackModal, runner: ModalRunner, backend: str, fault: str, end: End, code: int | None
) -> None:
    sandbox = await runner.start(request("python", "-c", "print('up', flush=True); input()"))
    await first_line(sandbox)
    wait = asyncio.ensure_future(sandbox.wait())
    getattr(cloud, fault)(sandbox.id)
    ended = await wait
    assert (ended.end, ended.exit_code) == (end, code)
    fresh = await ModalSandbox.of(sandbox._handle, "box", runner._clients, 1)
    again = await fresh.poll()
    assert again is not None
    assert again.end is end


async def test_a_sandbox_that_never_starts(cloud: LoopbackModal, runner: ModalRunner, backend: str) -> None:
    cloud.set(init_failures=1)
    sandbox = await runner.start(request("true"))
    ended = await sandbox.wait()
    assert ended.end is End.NEVER_STARTED
    assert "failed to initialize" in ended.detail


async def test_memory(cloud: LoopbackModal, runner: ModalRunner, backend: str) -> None:
    cloud.set(enforce_memory=True)
    spec = replace(SPEC, resources=Resources(memory=128))
    code = "x = bytearray(300 << 20); input()"
    sandbox = await runner.start(request("python", "-c", code, spec=spec))
    assert (await sandbox.wait()).end is End.OUT_OF_MEMORY


# When Modal is away.


@pytest.mark.at("v1", "v2")
async def test_a_wait_survives_an_outage(cloud: LoopbackModal, runner: ModalRunner, backend: str) -> None:
    sandbox = await runner.start(request("python", "-c", "input()"))
    wait = asyncio.ensure_future(sandbox.wait())
    await eventually(lambda: bool({"SandboxWait", "SandboxWaitV2"} & cloud.stats().calls.keys()))
    cloud.unavailable(4)  # the SDK itself gives up after 0.7 s
    cloud.evict(sandbox.id)
    assert (await wait).end is End.EVICTED


async def test_a_wait_survives_a_dropped_connection(cloud: LoopbackModal, runner: ModalRunner, backend: str) -> None:
    sandbox = await runner.start(request())
    wait = asyncio.ensure_future(sandbox.wait())
    await eventually(lambda: bool({"SandboxWait", "SandboxWaitV2"} & cloud.stats().calls.keys()))
    cloud.pause()
    cloud.kill(sandbox.id)
    assert not (await asyncio.wait([wait], timeout=3))[0]
    cloud.resume()
    assert (await wait).exit_code == 137


async def test_a_listing_survives_an_outage(cloud: LoopbackModal, runner: ModalRunner, backend: str) -> None:
    sandbox = await runner.start(request())
    cloud.unavailable(3)
    assert [box.id for box in await runner.running({})] == [sandbox.id]


async def test_an_outage_that_lasts(cloud: LoopbackModal, backend: str) -> None:
    async with runner_for(cloud, outage=1) as runner:
        sandbox = await runner.start(request())
        wait = asyncio.ensure_future(sandbox.wait())
        await eventually(lambda: bool({"SandboxWait", "SandboxWaitV2"} & cloud.stats().calls.keys()))
        cloud.unavailable(600)
        cloud.terminate(sandbox.id)  # so that the long poll is over, and the next one is refused
        # The poll that was open may still bring the end; then there is nothing to be unsure of.
        done = await asyncio.gather(wait, return_exceptions=True)
        if not isinstance(done[0], RunnerUnavailable):
            fresh = ModalSandbox(sandbox._handle, "box", "", runner._clients, 1)
            with pytest.raises(RunnerUnavailable):
                await fresh.wait()
        for call in (runner.find(APP, "box"), runner.running({}), runner.start(request(name="other"))):
            with pytest.raises(RunnerUnavailable):
                await call
        cloud.unavailable(0)
        assert (await sandbox.wait()).end is End.TERMINATED


SAYS_WHEN_ASKED = "import sys\nfor line in sys.stdin: print(line.strip(), flush=True)"


@pytest.mark.slow  # a shorter outage is below; this one waits as long as output is read on
async def test_output_goes_on_after_an_outage_that_lasts(
    cloud: LoopbackModal, backend: str, caplog: pytest.LogCaptureFixture
) -> None:
    """Nobody could say for a while whether it had ended: that is no reason to read no more of it."""
    async with runner_for(cloud, outage=1) as runner:
        sandbox = await runner.start(request("python", "-u", "-c", SAYS_WHEN_ASKED))
        async with aclosing(sandbox.output()) as lines:
            await say(sandbox, "before")
            assert (await anext(lines)).text == "before"
            coming = asyncio.ensure_future(anext(lines))
            cloud.pause()
            with pytest.raises(RunnerUnavailable):
                await sandbox.wait()
            cloud.resume()
            done, _ = await asyncio.wait({coming}, timeout=DRAIN_SECONDS + 1)
            assert not done, "nothing was said meanwhile, and nothing is over"
            await say(sandbox, "after")
            assert (await coming).text == "after"
            if backend == "v1":  # whose output the control plane brings
                told = [record.getMessage() for record in caplog.records if "broke off" in record.getMessage()]
                assert told
                assert all(text.endswith("It is tried again until the sandbox has ended.") for text in told)
        await sandbox.terminate()


async def say(sandbox: ModalSandbox, words: str) -> None:
    """Write a line to the input of a sandbox's program."""
    async with sandbox.reached() as handle:
        handle.stdin.write(f"{words}\n")
        await handle.stdin.drain.aio()


async def test_a_lost_reply(cloud: LoopbackModal, runner: ModalRunner, backend: str) -> None:
    """Asking again finds what was made: one sandbox, and it is this caller's."""
    cloud.set(lost_replies=10)
    sandbox = await runner.start(request())
    assert [box.id for box in cloud.sandboxes()] == [sandbox.id]


async def test_a_lost_reply_that_nobody_waits_for(cloud: LoopbackModal, runner: ModalRunner, backend: str) -> None:
    """What was made without anybody knowing is ended when nobody wants it any more."""
    await runner.start(request("true", name="warm-up"))
    cloud.set(lost_replies=10)
    start = asyncio.ensure_future(runner.start(request()))
    await eventually(lambda: bool([box for box in cloud.sandboxes() if box.name == "box"]))
    start.cancel()
    await asyncio.wait([start])
    await eventually(lambda: cloud.sandbox("box").status == "terminated")


async def test_a_create_that_fails_inside_modal(cloud: LoopbackModal, runner: ModalRunner, backend: str) -> None:
    """Modal was reached, so it isn't repeated here: that costs an infrastructure retry."""
    cloud.create_error(4, Status.INTERNAL)
    with pytest.raises(RunnerUnavailable, match="injected"):
        await runner.start(request("true"))
    await runner.start(request("true"))


@pytest.mark.parametrize("away", ["unavailable", pytest.param("paused", marks=pytest.mark.slow)])
async def test_a_start_survives_an_outage(cloud: LoopbackModal, backend: str, away: str) -> None:
    """All of it: connecting, app, image and the create; the SDK itself gives up after 0.7 s."""

    def leave() -> asyncio.TimerHandle:
        if away == "unavailable":
            cloud.unavailable(600)
            back = partial(cloud.unavailable, 0)
        else:
            cloud.pause()
            back = cloud.resume
        return asyncio.get_running_loop().call_later(1.5, lambda: asyncio.ensure_future(asyncio.to_thread(back)))

    leave()
    async with runner_for(cloud) as runner:
        leave()
        await runner.start(request("true"))
        leave()
        await runner.start(request("true", name="another"))
    assert cloud.stats().created == 2


@pytest.mark.parametrize("room", [True, False], ids=["room", "no room"])
async def test_an_outage_while_a_sandbox_waits_for_its_machine(cloud: LoopbackModal, room: bool) -> None:
    """What was asked for before is found again, and still has to have a machine in time."""
    async with runner_for(cloud, create_rate=1000) as runner:
        cloud.capacity("H100", 0)
        start = asyncio.ensure_future(runner.start(request(spec=with_gpus("H100", "T4", capacity_timeout=6))))
        await eventually(lambda: len(cloud.sandboxes()) == 1)
        cloud.unavailable(3)
        if room:
            cloud.capacity("H100", 1)
        sandbox = await start
    assert cloud.sandbox(sandbox.id).gpu_type == ("H100" if room else "T4")
    await eventually(lambda: not cloud.stats().creating)
    assert [box.status for box in cloud.sandboxes()] == (["running"] if room else ["terminated", "running"])


async def test_a_pull_that_fails_once(cloud: LoopbackModal, runner: ModalRunner) -> None:
    cloud.image_pull_fails(1)
    with pytest.raises(RunnerUnavailable, match="connection reset"):
        await runner.start(request("true"))
    await runner.start(request("true"))


# One name, one sandbox; and none that nobody wants.


@pytest.mark.parametrize("delay", [0.0, 0.05, 0.3])
async def test_a_create_cancelled_in_its_rpc_leaves_nothing(
    cloud: LoopbackModal, runner: ModalRunner, backend: str, delay: float
) -> None:
    await runner.start(request("true", name="warm-up"))
    cloud.set(create_delay=0.2)
    start = asyncio.ensure_future(runner.start(request()))
    await asyncio.wait([start], timeout=delay)
    start.cancel()
    await asyncio.wait([start])
    if not start.cancelled():
        await start.result().terminate()
    await eventually(lambda: not cloud.stats().creating)
    assert not [box for box in cloud.sandboxes() if box.name == "box" and box.status in ("pending", "running")]


async def test_a_create_cancelled_while_it_waits_for_capacity(cloud: LoopbackModal, runner: ModalRunner) -> None:
    cloud.capacity("H100", 0)
    start = asyncio.ensure_future(runner.start(request(spec=with_gpus("H100", "H100", capacity_timeout=600))))
    await eventually(lambda: len(cloud.sandboxes()) == 1)
    start.cancel()
    await asyncio.wait_for(asyncio.wait([start]), 60)
    assert start.cancelled()
    await eventually(lambda: [box.status for box in cloud.sandboxes()] == ["terminated"])


async def test_cancelling_one_of_two_leaves_the_other(cloud: LoopbackModal, runner: ModalRunner, backend: str) -> None:
    cloud.set(create_delay=0.2)
    one, two = (asyncio.ensure_future(runner.start(request())) for _ in range(2))
    await asyncio.sleep(0)
    one.cancel()
    sandbox = await two
    assert one.cancelled()
    assert await sandbox.poll() is None


async def test_a_found_sandbox_is_not_undone(cloud: LoopbackModal, runner: ModalRunner, backend: str) -> None:
    """Re-attaching after a crash, and being cancelled at it, ends nothing."""
    sandbox = await runner.start(request())
    async with runner_for(cloud) as second:
        await second.start(request("true", name="warm-up"))
        cloud.set(create_delay=0.3)
        again = asyncio.ensure_future(second.start(request()))
        await asyncio.wait([again], timeout=0.1)
        again.cancel()
        await asyncio.wait([again])
    assert await sandbox.poll() is None


async def test_leaving_the_runner_ends_no_sandbox(cloud: LoopbackModal, backend: str) -> None:
    async with runner_for(cloud) as runner:
        sandbox = await runner.start(request())
    assert cloud.sandbox(sandbox.id).status in ("pending", "running")
    async with runner_for(cloud) as runner:
        assert [box.name for box in await runner.running({names.TAG_RUN_ID: "run"})] == ["box"]
        found = await runner.find(APP, "box")
        assert found is not None
        await found.terminate()


# The rate of creates.


async def test_throttled_creates_are_repeated(cloud: LoopbackModal, runner: ModalRunner, backend: str) -> None:
    cloud.set(creates_per_second=4)
    await asyncio.gather(*(runner.start(request("true", name=f"box-{n}")) for n in range(8)))
    assert cloud.stats().created == 8


async def test_the_create_rate_is_kept(cloud: LoopbackModal, backend: str) -> None:
    cloud.set(creates_per_second=5)  # a little air: what counts is when a create arrives
    async with runner_for(cloud, create_rate=4) as runner:
        await asyncio.gather(*(runner.start(request("true", name=f"box-{n}")) for n in range(9)))
    stats = cloud.stats()
    assert stats.calls.get("SandboxCreate", 0) + stats.calls.get("SandboxCreateV2", 0) == 9


@pytest.mark.parametrize("rate", [1.0, 4.0, 50.0])
async def test_turns_keep_their_distance(rate: float) -> None:
    limit = RateLimit(rate)
    turns: list[float] = []

    async def turn() -> None:
        await limit.turn()
        turns.append(asyncio.get_running_loop().time())

    await asyncio.gather(*(turn() for _ in range(4)))
    # None comes early; that one comes late, on a busy machine, doesn't move the next.
    assert all(turn - turns[0] >= (n - 0.05) / rate for n, turn in enumerate(turns) if n)


def test_a_rate_of_nothing() -> None:
    with pytest.raises(ValueError, match="positive"):
        RateLimit(0)


# Output.


async def test_output_survives_broken_streams(cloud: LoopbackModal, runner: ModalRunner, backend: str) -> None:
    cloud.set(broken_streams=5)
    sandbox = await runner.start(request("python", "-c", "for n in range(100_000): print(n)"))
    found = await texts(sandbox)
    assert len(found) == 100_000
    assert found == [str(n) for n in range(100_000)]


@pytest.mark.at("v1", "v2")
async def test_output_survives_an_outage(cloud: LoopbackModal, runner: ModalRunner, backend: str) -> None:
    code = "import sys; print('up', flush=True); sys.stdin.readline(); print('down')"
    sandbox = await runner.start(request("python", "-c", code))
    collected: list[str] = []

    async def collect() -> None:
        async for line in sandbox.output():
            collected.append(line.text)

    reading = asyncio.ensure_future(collect())
    await eventually(lambda: collected == ["up"])
    cloud.pause()
    assert not (await asyncio.wait([reading], timeout=2))[0]
    cloud.resume()
    sandbox._handle.stdin.write("go on\n")
    await sandbox._handle.stdin.drain.aio()
    await asyncio.wait_for(reading, 60)
    assert collected == ["up", "down"]


@pytest.mark.at("v1", "v2")
async def test_output_of_a_sandbox_that_modal_forgot(cloud: LoopbackModal, runner: ModalRunner, backend: str) -> None:
    sandbox = await runner.start(request("python", "-c", "print('up', flush=True); input()"))
    await first_line(sandbox)
    cloud.forget(sandbox.id)
    with pytest.raises(RunnerUnavailable):
        await texts(sandbox)


async def test_output_that_breaks_off_with_the_machine(cloud: LoopbackModal, runner: ModalRunner, backend: str) -> None:
    """What came is handed on, and the output ends."""
    sandbox = await runner.start(request("python", "-c", "print('up', flush=True); input()"))
    await first_line(sandbox)
    streams = {"SandboxGetLogs", "SandboxStdioReadV2"}
    await eventually(lambda: not streams & cloud.stats().in_flight.keys())
    cloud.set(stream_delay=1.0, broken_streams=1)
    reading = asyncio.ensure_future(texts(sandbox))
    await eventually(lambda: sum(cloud.stats().in_flight.get(name, 0) for name in streams) == 2)
    cloud.forget(sandbox.id)
    assert await reading == ["up"]


async def test_one_endless_line_costs_bounded_memory(cloud: LoopbackModal, runner: ModalRunner, backend: str) -> None:
    code = "import sys\nfor _ in range(300): sys.stdout.write('x' * 100_000)"
    sandbox = await runner.start(request("python", "-c", code))
    (line,) = await texts(sandbox)
    assert len(line) <= 20_000
    assert "30000000 characters" in line


# Many at once.


async def test_many_waits_leave_room_for_other_calls(cloud: LoopbackModal, backend: str) -> None:
    """200 long polls on a server that takes 100 streams a connection: a create still comes through."""
    cloud.set(max_streams=100)
    cloud.pause()
    cloud.resume()  # so that new connections have the new limit
    async with runner_for(cloud, create_rate=10_000) as runner:
        boxes = await asyncio.gather(*(runner.start(request(name=f"box-{n}")) for n in range(200)))
        waits = [asyncio.ensure_future(box.wait()) for box in boxes]
        # All of them at once, not in turns.
        waiting = ("SandboxWait", "SandboxWaitV2")
        await eventually(lambda: sum(cloud.stats().in_flight.get(name, 0) for name in waiting) == 200)
        began = time.monotonic()
        extra = await runner.start(request(name="extra"))
        assert time.monotonic() - began < 5
        await asyncio.gather(*(box.terminate() for box in (*boxes, extra)))
        assert {end.end for end in await asyncio.gather(*waits)} == {End.TERMINATED}
