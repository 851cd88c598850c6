"""Names are the user's, and may be anything: none breaks out of the command, path, URL or text that it is put into."""

from __future__ import annotations

import posixpath
import shlex
from pathlib import Path
from urllib.parse import unquote

import httpx
import pytest
from hypothesis import assume, example, given, settings
from hypothesis import strategies as st
from markdown_it import MarkdownIt
from prefect.types.names import ArtifactKey
from pydantic import TypeAdapter

from bridge import names
from bridge.errors import NotTranslatable
from bridge.flow_run.limits import LimitMissing
from bridge.host import __main__ as host
from bridge.host import wire
from bridge.host.entrypoint import StepEntrypoint, arguments_for
from bridge.plan import SandboxSpec
from bridge.planning.layers import ComponentSettings
from bridge.planning.translate import translate
from bridge.runners.base import SandboxRequest
from bridge.runners.local_state import LocalState
from bridge.runners.modal_create import tags_of
from tests.unit.snapshots import StepInput, snapshot

settings.register_profile("shared machine", deadline=None)
settings.load_profile("shared machine")

NASTY = st.text(alphabet="ab-=_./\\%&?#;:@<>[]()`'\"$!*|~{} \t\n\x1bé☃", max_size=40)
NAMES = st.one_of(NASTY, st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=60))
"""Without what no command line and no JSON can hold: NUL and halves of surrogate pairs, which ZenML's API refuses."""
CLIENT = httpx.Client(base_url="http://prefect/api")


@given(NAMES)
@example("--step-run-id=1")
@example("--run-id")
@example("-x")
@example("a=b")
@example("")
def test_a_step_stays_one_argument(step: str) -> None:
    assume(step != "--")  # see below
    argv = ["step", "--snapshot-id", "s", "--step", step]
    found = vars(host.options_of(argv))
    assert {name: value for name, value in found.items() if value is not None} == {
        "command": "step",
        "snapshot_id": "s",
        "step": step,
    }


@given(NAMES)
@example("---")
@example("--snapshot_id=other")
@example("x --step_run_id=1")
def test_a_step_stays_one_argument_of_zenmls_entrypoint(step: str) -> None:
    assume(step != "--")  # see below
    snapshot_id = "8a7c2cf0-0000-4000-8000-000000000000"
    arguments = StepEntrypoint(arguments_for(snapshot_id, step, None)).entrypoint_args
    assert (arguments["snapshot_id"], arguments["step_name"]) == (snapshot_id, step)
    assert not arguments.get("step_run_id")


def test_the_one_name_that_no_command_line_takes() -> None:
    made = snapshot({"--": StepInput()}, settings={"orchestrator": {"execution_mode": "per_step"}})
    with pytest.raises(NotTranslatable, match=r"'--'.*end of all options.*something else"):
        translate(made, component=ComponentSettings({}), component_name="orchestrator", stack_name="stack")


@given(NAMES, st.dictionaries(st.text(max_size=5), NAMES, max_size=3))
def test_a_call_of_a_host_stays_one_line(step: str, environment: dict[str, str]) -> None:
    call = wire.Call("key", step)
    line = call.line(environment)
    assert line.index(b"\n") == len(line) - 1
    assert wire.Call.of_line(line) == (call, environment)
    assert wire.Call.of_text(call.text()) == call


@given(NAMES, NAMES)
@example("..", "../..")
@example("/", "/etc/passwd")
def test_a_name_stays_in_its_folder(app: str, name: str) -> None:
    state = LocalState(Path("/state"))
    assert posixpath.dirname(posixpath.normpath(state.link_of(app, name))) == "/state/names"


@given(NAMES)
@example("..")
@example(".")
@example("a?b")
@example("a#b")
@example("a/../b")
@example("%2e%2e")
def test_a_name_stays_one_segment_of_a_url(name: str) -> None:
    """As Prefect's client makes one of it: with ``str.format``."""
    path = f"/deployments/name/{names.url_segment(name)}/after"
    url = CLIENT.build_request("GET", path).url
    segments = url.raw_path.decode().split("/")
    assert segments[:4] == ["", "api", "deployments", "name"]
    assert (unquote(segments[4]), segments[5:]) == (name, ["after"])
    assert not url.query
    assert not url.fragment


@given(NAMES)
@example("](http://elsewhere) [x")
@example("<a href=x>")
@example("\\](x)")
@example("![i](x)")
def test_a_name_stays_the_text_of_its_link(name: str) -> None:
    (block,) = [
        token
        for token in MarkdownIt().parse(f"- ZenML run: [{names.markdown_text(name)}](http://zenml/1)")
        if token.type == "inline"
    ]
    children = block.children or []
    links = [token.attrs["href"] for token in children if token.type == "link_open"]
    assert links == ["http://zenml/1"]
    assert {token.type for token in children} <= {"text", "text_special", "link_open", "link_close"}
    assert "".join(token.content for token in children).removeprefix("ZenML run: ") == " ".join(name.split())


@given(NAMES, NAMES)
def test_tags_of_the_user_hide_none_of_ours(name: str, stray: str) -> None:
    tags = {names.TAG_PIPELINE: names.modal_tag(name)}
    spec = SandboxSpec(tags=((names.TAG_PIPELINE, stray), (names.TAG_SANDBOX, stray)))
    request = SandboxRequest(name=names.sandbox_name("run", name, 1, 1), app="a", command=("c",), spec=spec, tags=tags)
    found = tags_of(request, spec)
    assert found[names.TAG_PIPELINE] == names.modal_tag(name)
    assert found[names.TAG_SANDBOX] == request.name


@given(NAMES, NAMES)
@example("A", "a")
@example("a b", "a-b")
def test_artifact_keys(one: str, other: str) -> None:
    keys = [names.artifact_key("steps", name) for name in (one, other)]
    for key in keys:
        TypeAdapter(ArtifactKey).validate_python(key)
    assert (keys[0] == keys[1]) == (one == other)


@pytest.mark.parametrize("name", ["a; rm -rf /", "$(x)", "a b", "it's"])
def test_a_command_to_copy_does_what_it_says(name: str) -> None:
    (command,) = [part for part in str(LimitMissing(name)).split("`") if part.startswith("prefect gcl create")]
    assert shlex.split(command)[:4] == ["prefect", "gcl", "create", name]
