"""ZenML's server, the stack, and what its components need."""

from __future__ import annotations

from collections.abc import Iterator

import httpx
import zenml
from zenml.enums import StackComponentType, StoreType
from zenml.models import ComponentResponse
from zenml.stack import Stack

from bridge import names
from bridge.cleanup import login
from bridge.components import OurConfig, title
from bridge.doctor.finding import Finding, Grade, told
from bridge.doctor.installation import unfit
from bridge.doctor.patient import Patient, Unmet
from bridge.planning.validation import check_operator_stack, check_stack
from bridge.settings import ModalPrefectOrchestratorConfig
from bridge.versions import series

_SERVER = "zenml server"
_WORDS = 200
_SECONDS = 5.0
"""How long the server may take to answer at all. ZenML's own client tries for half a minute, and says so each time."""


def server(patient: Patient) -> Iterator[Finding]:
    """Whether ZenML's server answers, is of the client's release, and can be reached by sandboxes."""
    try:
        url = patient.server_url
    except Exception as error:
        # What SQLAlchemy and pydantic say of a URL that is none.
        what = f"ZenML's server can't be used: its URL can't be read ({type(error).__name__}: {_first_line(error)})"
        fix = "Check ZENML_STORE_URL, which begins with https:// or http://, or log in with `zenml login <url>`"
        yield Finding(_SERVER, Grade.PROBLEM, what, fix)
        return
    if url and (silent := no_answer(url)):
        yield silent
        return
    try:
        store = patient.store
        info = store.get_store_info()
    except Exception as error:
        # ZenML and what is below it raise many kinds; whichever it is, the server gave no answer.
        what = f"ZenML's server can't be used ({type(error).__name__}: {_first_line(error)})"
        yield Finding(_SERVER, Grade.UNKNOWN, what, "Check `zenml status`, and log in with `zenml login <url>`")
        raise Unmet("ZenML's server can't be used") from error
    there = str(info.version)
    if differ := of_one_series(there):
        yield differ
        return
    if store.type == StoreType.REST:
        yield Finding(_SERVER, Grade.OK, f"ZenML {there} at {store.url}")
        if at := login.ends_at():
            yield Finding(_SERVER, Grade.NOTE, login.what_ends(at), login.HOW_TO_LAST)
        return
    yield Finding(
        _SERVER,
        Grade.NOTE,
        "ZenML keeps its data in a local database: fine for one laptop, out of Modal's reach",
        "For Modal sandboxes log in to a ZenML server: `zenml login <url>`",
    )


def no_answer(url: str) -> Finding | None:
    """What is wrong where nobody answers for ZenML's server. Whether it is the right one is ZenML's client's matter."""
    try:
        # No credentials go there, so whose certificate it is doesn't matter.
        status = httpx.get(f"{url}/health", timeout=_SECONDS, verify=False).status_code
    except (httpx.HTTPError, httpx.InvalidURL) as error:
        why = f"doesn't answer ({_first_line(error) or type(error).__name__})"
    else:
        if status < 500:
            return None
        why = f"isn't there: what answers in its place says {status}"
    fix = (
        "Start it, or see to the network between; if it has moved, log in where it is with `zenml login <url>`, or "
        "mend ZENML_STORE_URL if that is set"
    )
    return Finding(_SERVER, Grade.UNKNOWN, f"ZenML's server at {url} {why}", fix)


def of_one_series(there: str, here: str = zenml.__version__) -> Finding | None:
    """What is wrong where ZenML's server is of another release series than the client."""
    if series(there) == series(here):
        return None
    what = f"ZenML's server is {there}, and the client here is {here}"
    return Finding(_SERVER, Grade.PROBLEM, what, f"pip install 'zenml=={there}', or bring the server to {here}")


def stack(patient: Patient) -> Iterator[Finding]:
    """Whether the stack has a component of ours, can be loaded, and can run where sandboxes are."""
    check, model = "stack", patient.stack_model
    try:
        components = patient.components
    except Unmet:
        flavors = [found.flavor_name for found in model.components.get(StackComponentType.ORCHESTRATOR, [])]
        yield Finding(
            check,
            Grade.PROBLEM,
            f"the stack `{model.name}` has the orchestrator flavour {', '.join(flavors)}, not `{names.FLAVOR}`",
            "Activate a stack that has it, `zenml stack set <name>`, or name one with --stack; to make one: "
            f"`zenml orchestrator flavor register {names.ORCHESTRATOR_FLAVOR_SOURCE}`, `zenml orchestrator register "
            f"modal --flavor {names.FLAVOR}`, `zenml stack register modal -o modal -a <artifact store>`",
        )
        return
    for component, error in patient.unreadable:
        yield told(check, Grade.PROBLEM, f"{title(component)}: {error}", "Mend the component's configuration")
    if patient.unreadable:
        return  # nor can the stack be loaded
    try:
        loaded = patient.stack
    except Exception as error:
        # A flavour's code may raise whatever it likes when it is imported or reads its configuration.
        yield Finding(
            check,
            Grade.PROBLEM,
            f"the stack `{model.name}` can't be loaded ({type(error).__name__}: {_first_line(error)})",
            _how_to_load(patient),
        )
        return
    # What is wrong for both components is wrong once.
    wrong = dict.fromkeys(found for one in components for found in _in_the_way(patient, loaded, *one))
    yield from wrong
    if not wrong:
        shown = "; ".join(f"{title(component)}, runner {config.runner}" for component, config in components)
        yield Finding(check, Grade.OK, f"`{model.name}`: {shown}")


def _in_the_way(patient: Patient, loaded: Stack, component: ComponentResponse, config: OurConfig) -> Iterator[Finding]:
    """What keeps a component from running steps in this stack."""
    check = "stack"
    if isinstance(config, ModalPrefectOrchestratorConfig):
        fits, message = check_stack(loaded, config)
    else:
        fits, message = check_operator_stack(loaded, config, component.name)
    if not fits:
        yield told(check, Grade.PROBLEM, message, "Change the stack with `zenml stack update`")
    elif config.runner == "modal" and patient.store.type != StoreType.REST:
        yield Finding(
            check,
            Grade.PROBLEM,
            f"the stack `{patient.stack_model.name}` runs steps on Modal, which can't reach ZenML's local database",
            "Log in to a ZenML server with `zenml login <url>`, or run steps here: `zenml "
            f"{component.type.value.replace('_', '-')} update {component.name} --runner=process`",
        )


def integrations(patient: Patient) -> Iterator[Finding]:
    """Whether what the stack's components need is installed here. A worker needs the same."""
    _ = patient.components  # only of a stack that has some
    bad = unfit(sorted(patient.stack.requirements()), "integrations")
    yield from bad
    if not bad:
        yield Finding("integrations", Grade.OK, "what the stack's components need is installed")
    if pool := patient.work_pool:
        yield Finding(
            "integrations",
            Grade.NOTE,
            f"runs are carried out by a worker of `{pool}`: what is installed there is seen only from there",
            "Call `modal-prefect doctor` where the worker runs too, in its environment",
        )


def _how_to_load(patient: Patient) -> str:
    known = {
        found.flavor.integration
        for components in patient.stack_model.components.values()
        for found in components
        if found.flavor.integration and found.flavor.integration not in ("built-in", "custom")
    }
    if known:
        return f"zenml integration install {' '.join(sorted(known))} -y"
    return "Put the code of the stack's custom flavours where Python finds it, or fix what the message says"


def _first_line(error: Exception) -> str:
    line = next(iter(str(error).splitlines()), "")
    return line if len(line) <= _WORDS else f"{line[: _WORDS - 1]}…"  # some quote a whole page
