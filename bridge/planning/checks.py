"""The checks behind :mod:`bridge.settings`, and the words in which a wrong value is refused.

Pydantic knows types and bounds but not what to do instead, and it prints its input, tokens included.
Everything here raises :class:`~bridge.errors.InvalidSettings` instead.
"""

from __future__ import annotations

import difflib
import ipaddress
import json
import posixpath
import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Literal, Union, get_args, get_origin

import annotated_types
from pydantic import BaseModel, ValidationError
from pydantic.fields import FieldInfo
from zenml.enums import ExecutionMode
from zenml.utils.secret_utils import is_secret_field, is_secret_reference

from bridge import names
from bridge.errors import InvalidSettings
from bridge.plan import VolumeMount

_GPU_TYPE = re.compile(r"[A-Za-z][A-Za-z0-9]*([-._+][A-Za-z0-9]+)*!?")  # `H100!` is an H100 and no better one
_PLACE = re.compile(r"[A-Za-z0-9]+([-_][A-Za-z0-9]+)*")
_MODAL_NAME = re.compile(r"[A-Za-z0-9\-_.]{1,64}")  # modal/_utils/name_utils.py: is_valid_object_name
_MODAL_ENVIRONMENT = re.compile(r"(?![Ee][Nn]-)[A-Za-z0-9][A-Za-z0-9\-_.]{0,63}")  # is_valid_environment_name
_MODAL_TAG = re.compile(r"[A-Za-z0-9._-]{1,63}")  # check_tag_dict
_LABEL = r"[A-Za-z0-9]([A-Za-z0-9-]{0,61}[A-Za-z0-9])?"
_DOMAIN = re.compile(rf"\*|(\*\.)?({_LABEL}\.)+{_LABEL}")  # modal/_outbound_policy.py: _DOMAIN_RE
_MOST_DOMAINS = 100
_NO_MOUNT = frozenset({"/", "/root", "/tmp"})  # modal/_utils/mount_utils.py: validate_mount_points
_OWN_TAGS = frozenset(
    {
        names.TAG_RUN_ID,
        names.TAG_PIPELINE,
        names.TAG_SANDBOX,
        names.TAG_SERVER,
        names.TAG_STACK,
        names.TAG_STEP,
        names.TAG_STEP_OPERATOR,
        names.TAG_STEP_RUN_ID,
        names.TAG_FLOW_RUN_ID,
    }
)
_SECRETIVE = re.compile(r"token|secret|key|password", re.IGNORECASE)
_UNTOLD = "***"
_MAY_BE_SECRET = frozenset({"prefect_api_url", "work_pool"})
"""Beside the fields that are secrets by themselves."""


def decoded(settings: type[BaseModel], values: Mapping[str, object]) -> dict[str, object]:
    """Return ``values`` without None, which never overrides anything, and with JSON strings of ZenML's CLI as
    the lists and mappings they stand for. Raises ``InvalidSettings`` for broken JSON and unknown names."""
    known = settings.model_fields
    if settings.model_config.get("extra") == "allow":
        _refuse_unknown(known, values, settings.COMPONENT_ONLY)  # type: ignore[attr-defined]
    return {
        name: _from_json(name, known[name], value) if name in known and isinstance(value, str) else value
        for name, value in values.items()
        if value is not None
    }


def _refuse_unknown(
    known: Mapping[str, FieldInfo], values: Mapping[str, object], component_only: frozenset[str]
) -> None:
    # What only a component can say passes: ZenML itself mixes the component's config into settings.
    for name, value in values.items():
        if name in known or name in component_only:
            continue
        near = difflib.get_close_matches(name, known, n=1)
        fix = f"Did you mean {near[0]}" if near else f"The settings are {', '.join(sorted(known))}"
        told = _UNTOLD if _SECRETIVE.search(name) else value
        raise InvalidSettings(name, told, "there is no such setting", fix)


def _from_json(name: str, field: FieldInfo, value: str) -> object:
    shapes = _shapes(field)
    wanted = dict if dict in shapes else list if list in shapes else None
    if wanted is None or (str in shapes and not value.lstrip().startswith("[")):
        return value
    kind = "list" if wanted is list else "mapping"
    try:
        result = json.loads(value)
    except json.JSONDecodeError as error:
        raise InvalidSettings(name, value, f"this is not a {kind} in JSON: {error}", _fix(name, field)) from error
    if not isinstance(result, wanted):
        raise InvalidSettings(name, value, f"this is not a {kind}", _fix(name, field))
    return result


@contextmanager
def translated(settings: type[BaseModel], values: Mapping[str, object]) -> Iterator[None]:
    """Turn pydantic's errors into ``InvalidSettings``. ``values`` is what was asked for."""
    try:
        yield
    except ValidationError as error:
        raise _first_of(error, settings, values) from None


def _first_of(error: ValidationError, settings: type[BaseModel], values: Mapping[str, object]) -> InvalidSettings:
    details = error.errors(include_url=False)
    for detail in details:
        inner = detail.get("ctx", {}).get("error")
        if isinstance(inner, InvalidSettings):
            return inner
    first = details[0]
    name = str(first["loc"][0]) if first["loc"] else settings.__name__
    field = settings.model_fields.get(name)
    if field is None:
        return InvalidSettings(name, _UNTOLD, first["msg"], "See the description of the settings")
    value = _UNTOLD if is_secret_field(field) else values.get(name)
    others = sorted({str(other["loc"][0]) for other in details if other["loc"]} - {name})
    also = f". Look at {', '.join(others)} too" if others else ""
    if name == "execution_mode" and value in [mode.value for mode in ExecutionMode]:
        problem = "this is a failure mode of ZenML and belongs on the pipeline"
        return InvalidSettings(name, value, problem, f"Write @pipeline(execution_mode=...) for it. {_fix(name, field)}")
    problem = first["msg"][:1].lower() + first["msg"][1:]
    return InvalidSettings(name, value, problem, _fix(name, field) + also)


def _shapes(field: FieldInfo) -> list[object]:
    """The plain types that a field's annotation is a union of."""
    annotation = field.annotation
    members = get_args(annotation) if _is_union(annotation) else (annotation,)
    return [get_origin(member) or member for member in members if member is not type(None)]


def _is_union(annotation: object) -> bool:
    return get_origin(annotation) is Union or type(annotation).__name__ == "UnionType"


def _fix(name: str, field: FieldInfo) -> str:
    shapes = _shapes(field)
    if Literal in shapes:
        members = get_args(field.annotation) if _is_union(field.annotation) else (field.annotation,)
        choices = [choice for member in members for choice in get_args(member)]
        return f"Set {name} to one of {', '.join(map(repr, choices))}"
    if dict in shapes:
        return f"""Set {name} to a mapping, on the command line as JSON: '{{"key": "value"}}'"""
    if list in shapes:
        or_text = "a text or " if str in shapes else ""
        return f"""Set {name} to {or_text}a list of texts, on the command line as JSON: '["a", "b"]'"""
    if bool in shapes:
        return f"Set {name} to True or False"
    if int in shapes or float in shapes:
        return f"Set {name} to a {'whole ' if int in shapes else ''}number{_bounds(field)}"
    return f"Set {name} to a text"


def _bounds(field: FieldInfo) -> str:
    words = []
    for limit in field.metadata:
        if isinstance(limit, annotated_types.Ge):
            words.append(f"at least {limit.ge}")
        elif isinstance(limit, annotated_types.Gt):
            words.append(f"greater than {limit.gt}")
        elif isinstance(limit, annotated_types.Le):
            words.append(f"at most {limit.le}")
    return f", {' and '.join(words)}" if words else ""


def checked(settings: BaseModel) -> None:
    """Check what types and bounds don't. Raises ``InvalidSettings``."""
    fields = type(settings).model_fields
    values = vars(settings)  # plain attribute access would resolve references to secrets
    for name in settings.model_fields_set:
        value = values.get(name)
        if value is None:
            continue
        if is_secret_reference(value):
            _refuse_reference(name, fields[name], value)
            continue
        if not is_secret_field(fields[name]):
            _refuse_blank(name, value)
        check = _CHECKS.get(name)
        if check is not None:
            check(name, value)


def _refuse_reference(name: str, field: FieldInfo, value: object) -> None:
    # A plan is printed and compared; only what the component needs to talk to Modal and Prefect may be secret.
    if name not in _MAY_BE_SECRET and not is_secret_field(field):
        raise InvalidSettings(name, value, "this can't be a reference to a secret", "Write the value itself")


def refuse_half_a_token(config: BaseModel) -> None:
    """Refuse a Modal token id without its secret, or the other way round, without repeating either."""
    values = vars(config)
    for here, there in (("token_id", "token_secret"), ("token_secret", "token_id")):
        if values.get(here) and not values.get(there):
            raise InvalidSettings(
                there,
                values.get(there),
                f"{here} is set and {there} is not",
                f"Give the component --{there}=... too, or neither of them to use Modal's own configuration",
            )
        if values.get(here) is not None and not str(values[here]).strip():
            raise InvalidSettings(
                here, values[here], "it is blank", "Give the token as Modal shows it, or leave it out"
            )


def _refuse_blank(name: str, value: object) -> None:
    if isinstance(value, str):
        texts: list[object] = [value]
    elif isinstance(value, list):
        texts = value
    else:
        return
    if any(isinstance(text, str) and not text.strip() for text in texts):
        raise InvalidSettings(name, value, "a blank text names nothing", f"Give a name, or leave {name} out")


def _check_gpu(name: str, value: object) -> None:
    types = [value] if isinstance(value, str) else value
    assert isinstance(types, list)
    if not types:
        raise InvalidSettings(
            name,
            value,
            "an empty list names no GPU type",
            "Name at least one type, or leave gpu out to use no GPU",
        )
    for kind in types:
        if ":" in kind:
            count = kind.partition(":")[2] or "1"
            raise InvalidSettings(
                name,
                value,
                "the count is not part of the GPU type",
                f"Write gpu={kind.partition(':')[0]!r} and ask for the count with ResourceSettings(gpu_count={count})",
            )
        if not _GPU_TYPE.fullmatch(kind):
            raise InvalidSettings(
                name,
                value,
                f"{kind!r} is no name of a GPU type",
                "Give a type of modal.com/docs/guide/gpu such as 'A100', or a list to be tried in order",
            )
    _refuse_twice(name, value, types)


def _check_place(name: str, value: object) -> None:
    places = [value] if isinstance(value, str) else value
    assert isinstance(places, list)
    if not places:
        raise InvalidSettings(name, value, "an empty list names no region", f"Name one, or leave {name} out")
    for place in places:
        if not _PLACE.fullmatch(place):
            fix = f"Give it as Modal writes it, such as {'us-east' if name == 'region' else 'aws'!r}"
            raise InvalidSettings(name, value, f"{place!r} is no name of a {name}", fix)
    _refuse_twice(name, value, places)


def _check_environment(name: str, value: object) -> None:
    if not _MODAL_ENVIRONMENT.fullmatch(str(value)):
        raise InvalidSettings(
            name,
            value,
            "Modal allows no such environment",
            "Give a name that `modal environment list` shows",
        )


def _check_secrets(name: str, value: object) -> None:
    assert isinstance(value, list)
    for secret in value:
        _refuse_object_name(name, value, secret, "Secret")
    _refuse_twice(name, value, value)


def _check_volumes(name: str, value: object) -> None:
    assert isinstance(value, dict)
    seen: dict[str, str] = {}
    names_seen: set[str] = set()
    for path, volume in value.items():
        plain = posixpath.normpath(path)
        if not path.startswith("/"):
            raise InvalidSettings(
                name, value, f"{path!r} is no absolute path", "Start mount paths with /, as in '/data'"
            )
        if plain in _NO_MOUNT:
            fix = "Mount below it, as in '/data' or '/root/data'"
            raise InvalidSettings(name, value, f"Modal mounts no volume at {path!r}", fix)
        if plain in seen:
            fix = "Give each volume a path of its own"
            raise InvalidSettings(name, value, f"{seen[plain]!r} and {path!r} are the same path", fix)
        if path != plain:
            raise InvalidSettings(name, value, f"{path!r} is not in its plain form", f"Write {plain!r}")
        seen[plain] = path
        mounted = VolumeMount.of(path, volume).name
        _refuse_object_name(name, value, mounted, "Volume")
        if mounted in names_seen:  # modal/_utils/mount_utils.py: validate_volumes
            fix = "Mount it once, and read from there"
            raise InvalidSettings(name, value, f"Modal mounts volume {mounted!r} at one path only", fix)
        names_seen.add(mounted)


def _check_cidrs(name: str, value: object) -> None:
    assert isinstance(value, list)
    for text in value:
        try:
            if "/" not in text:
                raise ValueError(f"{text!r} has no length of its prefix")
            ipaddress.ip_network(text)
        except ValueError as error:
            fix = "Write networks as in '10.0.0.0/8', one address as in '203.0.113.7/32'"
            raise InvalidSettings(name, value, str(error), fix) from error
    _refuse_twice(name, value, value)


def _check_domains(name: str, value: object) -> None:
    assert isinstance(value, list)
    if len(value) > _MOST_DOMAINS:
        fix = f"Name {_MOST_DOMAINS} at most; '*.example.com' stands for all below it"
        raise InvalidSettings(name, value, f"Modal takes no {len(value)} domains", fix)
    for text in value:
        if _is_address(text):
            fix = "Name it in outbound_cidr_allowlist, as in '203.0.113.7/32'"
            raise InvalidSettings(name, value, f"{text!r} is an address and no name of a domain", fix)
        if not _DOMAIN.fullmatch(text):
            fix = (
                "Write 'zenml.example.com', or '*.example.com' for all below it: no scheme, port or path, two parts at "
                "least, each of 63 letters, digits and - at most"
            )
            raise InvalidSettings(name, value, f"{text!r} is no name of a domain", fix)
    _refuse_twice(name, value, value)


def _is_address(text: str) -> bool:
    try:
        ipaddress.ip_network(text)
    except ValueError:
        return False
    return True


def _check_tags(name: str, value: object) -> None:
    assert isinstance(value, dict)
    for key, text in value.items():
        if key in _OWN_TAGS:
            raise InvalidSettings(name, value, f"the tag {key!r} is set by modal-prefect", "Choose another key")
        for word in (key, text):
            if not _MODAL_TAG.fullmatch(word):
                fix = "Use ASCII letters, digits and -_. only, 1 to 63 of them, in keys and values"
                raise InvalidSettings(name, value, f"Modal takes no tag with {word!r}", fix)


def _check_url(name: str, value: object) -> None:
    if not re.match(r"https?://[^/\s]+", str(value)):
        fix = "Give the whole URL of the API, as in 'http://127.0.0.1:4200/api'"
        raise InvalidSettings(name, value, "this is no http or https URL", fix)


def _refuse_object_name(field: str, value: object, name: str, kind: str) -> None:
    if not _MODAL_NAME.fullmatch(name):
        fix = f"Give the name of a Modal {kind}: letters, digits and -_., 64 at most"
        raise InvalidSettings(field, value, f"Modal has no {kind} called {name!r}", fix)


def _refuse_twice(name: str, value: object, texts: list[str]) -> None:
    for text in texts:
        if texts.count(text) > 1:
            raise InvalidSettings(name, value, f"{text!r} stands there twice", "Name each once")


_CHECKS: dict[str, Callable[[str, object], None]] = {
    "gpu": _check_gpu,
    "cloud": _check_place,
    "region": _check_place,
    "modal_environment": _check_environment,
    "secrets": _check_secrets,
    "build_secrets": _check_secrets,
    "volumes": _check_volumes,
    "outbound_cidr_allowlist": _check_cidrs,
    "outbound_domain_allowlist": _check_domains,
    "tags": _check_tags,
    "prefect_api_url": _check_url,
}
