"""Whether ZenML's server refuses this sandbox's token: it dies with its run, whose steps may still be at work.

Imports ZenML.
"""

from __future__ import annotations

from collections.abc import Iterator

from zenml.constants import ENV_ZENML_WORKLOAD_TOKEN_EXPIRATION_LEEWAY
from zenml.exceptions import CredentialsNotValid


def is_refusal(error: BaseException) -> bool:
    """Whether an error, or one of those that it came of, says so."""
    return any(_refusals(error))


def came_with_the_end_of_the_run(error: BaseException) -> bool:
    """Whether the server says that the run is over: then no token for it is ever taken again.

    It names the variable that would have made the token live longer (zenml/zen_server/auth.py).
    """
    return any(ENV_ZENML_WORKLOAD_TOKEN_EXPIRATION_LEEWAY in str(refusal) for refusal in _refusals(error))


def _refusals(error: BaseException | None) -> Iterator[CredentialsNotValid]:
    # ZenML's client says instead that it can't log in, where it tried to.
    seen: set[int] = set()
    while error is not None and id(error) not in seen:
        if isinstance(error, CredentialsNotValid):
            yield error
        seen.add(id(error))
        error = error.__context__ if error.__cause__ is None else error.__cause__
