"""The contract suite against the Modal runner: real SDK, loopback Modal, both sandbox backends."""

from __future__ import annotations

import pytest

from bridge.runners.contract import CHECKS, Check, Lab, run_check
from bridge.runners.modal import ModalRunner
from tests.contract.modal_lab import SPEC
from tests.loopback import LoopbackModal


@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__)
async def test_modal(check: Check, cloud: LoopbackModal, backend: str) -> None:
    token_id, token_secret = cloud.token
    async with ModalRunner(token_id=token_id, token_secret=token_secret, create_rate=100) as runner:
        await run_check(check, runner, Lab(spec=SPEC, package=None))
    assert not cloud.stats().alive
