"""What counts as ZenML's server refusing the sandbox's token: as its client says so, and what comes of it in a step."""

from __future__ import annotations

from itertools import pairwise

import pytest
from zenml.constants import ENV_ZENML_WORKLOAD_TOKEN_EXPIRATION_LEEWAY
from zenml.exceptions import AuthorizationException, CredentialsNotValid

from bridge.host.refusal import came_with_the_end_of_the_run, is_refusal

OVER = CredentialsNotValid(
    f"The pipeline run has finished ... configuring the `{ENV_ZENML_WORKLOAD_TOKEN_EXPIRATION_LEEWAY}`"
)
DELETED = CredentialsNotValid("Authentication error: error retrieving token. Pipeline run 1 does not exist.")


def raised(*errors: BaseException) -> BaseException:
    """The last of these errors, each raised while the one before was handled."""
    for before, error in pairwise(errors):
        try:
            try:
                raise before
            except BaseException:
                raise error
        except BaseException:
            continue
    return errors[-1]


@pytest.mark.parametrize(
    ("errors", "expected"),
    [
        ((OVER,), (True, True)),
        ((OVER, CredentialsNotValid("No valid credentials found.")), (True, True)),
        ((OVER, AuthorizationException("Authorization failed for store")), (True, True)),
        ((ValueError("the step's own"), CredentialsNotValid(str(OVER))), (True, True)),
        ((DELETED,), (True, False)),
        ((AuthorizationException("not yours"),), (False, False)),
        ((ValueError("the step's own"), KeyError("no such run")), (False, False)),
    ],
)
def test_what_is_a_refusal(errors: tuple[BaseException, ...], expected: tuple[bool, bool]) -> None:
    error = raised(*errors)
    assert (is_refusal(error), came_with_the_end_of_the_run(error)) == expected


def test_errors_that_came_of_each_other() -> None:
    one, other = ValueError("one"), ValueError("other")
    one.__cause__, other.__cause__ = other, one
    assert not is_refusal(one)
