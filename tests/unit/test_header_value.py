"""A token that can't be sent is refused before a library quotes it."""

from __future__ import annotations

import httpx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from prefect.settings import PREFECT_API_KEY, temporary_settings

from bridge.errors import CredentialsRefused, InvalidSettings, PrefectUnavailable
from bridge.planning.header_value import is_sendable
from bridge.prefect_side.prefect_api import prefect_api, prefect_settings
from bridge.runners.modal import ModalRunner
from bridge.settings import ModalPrefectOrchestratorConfig

WRONG = ["s3cret\n", "s3cret é", "s3cret\t", " s3cret"]


@settings(deadline=None)
@given(st.text(max_size=20))
def test_what_is_let_through_can_be_sent(token: str) -> None:
    if is_sendable(token):
        request = httpx.Request("GET", "http://h", headers={"authorization": f"Bearer {token}"})
        assert request.headers["authorization"] == f"Bearer {token}"


@pytest.mark.parametrize("token", WRONG)
async def test_modal(token: str) -> None:
    with pytest.raises(CredentialsRefused, match=r"token_secret is no token.*line end") as caught:
        async with ModalRunner(token_id="ak-1", token_secret=token):
            pass
    assert "s3cret" not in str(caught.value)


@pytest.mark.parametrize("token", WRONG)
def test_prefect(token: str) -> None:
    config = ModalPrefectOrchestratorConfig(prefect_api_key=token)
    with pytest.raises(InvalidSettings, match=r"prefect_api_key='\*\*\*'.*line end") as caught:
        with prefect_settings(config):
            pass
    assert "s3cret" not in str(caught.value)
    with temporary_settings({PREFECT_API_KEY: token}):
        with pytest.raises(PrefectUnavailable, match="PREFECT_API_KEY is no key") as unset:
            with prefect_api():
                pass
    assert "s3cret" not in str(unset.value)
