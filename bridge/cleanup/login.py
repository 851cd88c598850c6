"""This process's login at ZenML's server: whether it lasts as long as a run may take.

ZenML's client renews it with a password or an API key by itself. The token that `zenml login` leaves behind, or that is
in ``ZENML_STORE_API_TOKEN``, ends when it ends.
"""

from __future__ import annotations

import base64
import binascii
import json
from datetime import datetime, timezone

from zenml.client import Client
from zenml.login.credentials import ServerType
from zenml.login.credentials_store import get_credentials_store
from zenml.zen_stores.rest_zen_store import RestZenStore

HOW_TO_LAST = (
    "Set `ZENML_STORE_API_KEY` to the key of a service account (`zenml service-account create <name>` shows one) "
    "where flows run"
)


def ends_at() -> datetime | None:
    """Return when the login of this process ends; None where it doesn't, or can be renewed."""
    store = Client().zen_store
    if not isinstance(store, RestZenStore):
        return None
    known = get_credentials_store()
    credentials = known.get_credentials(store.url)
    if credentials is None or credentials.api_token is None:
        return None
    if credentials.api_key is not None or (credentials.username is not None and credentials.password is not None):
        return None
    # Of a server on this machine ZenML says so whatever there is.
    if credentials.type is not ServerType.LOCAL and known.can_login(store.url):
        return None
    token = credentials.api_token
    return token.expires_at or expiry_of(token.access_token)


def expiry_of(token: str) -> datetime | None:
    """Return when a token ends, as it says itself; None where it says nothing of it."""
    try:
        _, claims, _ = token.split(".")
        expires = json.loads(base64.urlsafe_b64decode(claims + "=" * (-len(claims) % 4)))["exp"]
        return datetime.fromtimestamp(expires, timezone.utc)
    except (ValueError, binascii.Error, KeyError, TypeError):
        return None


def what_ends(at: datetime) -> str:
    """Say that the login ends, and when."""
    shown = at.astimezone(timezone.utc).strftime("%Y-%m-%d %H:%M UTC")
    return f"ZenML's login here is a token that ends at {shown}, and there is nothing to renew it with"


def warning() -> str | None:
    """Return what to tell whoever starts a run with a login that ends; None where it lasts."""
    at = ends_at()
    if at is None:
        return None
    after = "A run that takes longer is lost: nothing of it can be recorded, and its sandboxes end"
    return f"{what_ends(at)}. {after}. {HOW_TO_LAST}."
