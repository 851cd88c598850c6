"""Whether the container registry takes the stack's credentials, asked as Docker asks.

The protocol is the registry's HTTP API V2 (https://distribution.github.io/distribution/spec/auth/token/): a 401 of
``/v2/`` says where a token is to be had, and with which scheme.
"""

from __future__ import annotations

import ipaddress
import re
import shlex
from collections.abc import Iterator

import httpx

from bridge.doctor.finding import Finding, Grade
from bridge.doctor.patient import Patient
from bridge.runners.registry import DOCKER_HUB

_SECONDS = 10.0
_PARAMETER = re.compile(r'(\w+)="([^"]*)"')


def registry(patient: Patient) -> Iterator[Finding]:
    """Whether Modal will be let in with the credentials that it is given."""
    check = "registry"
    if all(config.runner == "process" for _, config in patient.components):
        yield Finding(check, Grade.OK, "not used: local processes have no images")
        return
    found = patient.stack.container_registry
    if found is None:
        return  # Modal builds the images, or the stack's own check says that they come from nowhere
    try:
        pair = found.credentials
    except Exception as error:
        # A service connector or a secret store may raise anything of its own.
        what = f"the credentials of `{found.name}` can't be read ({type(error).__name__}: {error})"
        yield Finding(check, Grade.PROBLEM, what, _other_credentials(found.name))
        return
    yield from asked(found.config.uri, pair, found.name)


def asked(uri: str, pair: tuple[str, str] | None, name: str) -> Iterator[Finding]:
    """Whether the registry ``name`` at this address takes a user and a password."""
    check = "registry"
    try:
        status = log_in(uri, pair)
    except (httpx.HTTPError, httpx.InvalidURL, ValueError) as error:
        what = f"{uri} can't be asked ({type(error).__name__}: {error})"
        yield Finding(check, Grade.UNKNOWN, what, f"Check the uri of the container registry `{name}`, and the network")
        return
    given = "the stack's credentials" if pair else "nobody's credentials, the stack having none"
    if status in (401, 403):
        yield Finding(
            check,
            Grade.PROBLEM,
            f"{uri} refuses {given} ({status})",
            _other_credentials(name),
        )
    elif status >= 400:
        what = f"{uri} answers {status}: is it a container registry?"
        yield Finding(check, Grade.UNKNOWN, what, f"Check the uri of the container registry `{name}`")
    else:
        yield Finding(check, Grade.OK, f"{uri} takes {given}")


def _other_credentials(name: str) -> str:
    name = shlex.quote(name)
    return (
        "Give it good ones, `zenml secret create <secret> --username=<user> --password=<password>` and then "
        f"`zenml container-registry update {name} --authentication_secret=<secret>`, or connect it: "
        f"`zenml container-registry connect {name} --connector=<connector>`"
    )


def log_in(uri: str, pair: tuple[str, str] | None) -> int:
    """The status of a registry's ``/v2/`` after logging in.

    Raises ``httpx.HTTPError``, ``httpx.InvalidURL``, and ``ValueError`` for a token that isn't one.
    """
    base = base_url(uri)
    with httpx.Client(timeout=_SECONDS, follow_redirects=True) as client:
        answer = client.get(f"{base}/v2/")
        if answer.status_code != 401:
            return answer.status_code
        scheme, _, rest = answer.headers.get("www-authenticate", "").partition(" ")
        if scheme.lower() == "basic":
            return client.get(f"{base}/v2/", auth=pair).status_code if pair else 401
        wanted = dict(_PARAMETER.findall(rest))
        if scheme.lower() != "bearer" or "realm" not in wanted:
            return 401
        realm = wanted.pop("realm")
        token = client.get(realm, params=wanted, auth=pair)
        if token.status_code >= 400:
            return token.status_code
        said = token.json()
        bearer = said.get("token") or said.get("access_token") or ""
        return client.get(f"{base}/v2/", headers={"Authorization": f"Bearer {bearer}"}).status_code


def base_url(uri: str) -> str:
    """The address of the registry of an image prefix. Like Docker, it speaks HTTP to this machine alone."""
    host = uri.removeprefix("https://").removeprefix("http://").partition("/")[0]
    if host in DOCKER_HUB:
        return "https://registry-1.docker.io"
    name = host.rpartition(":")[0] or host
    return f"{'http' if name == 'localhost' or _is_loopback(name) else 'https'}://{host}"


def _is_loopback(name: str) -> bool:
    try:
        return ipaddress.ip_address(name.strip("[]")).is_loopback
    except ValueError:
        return False
