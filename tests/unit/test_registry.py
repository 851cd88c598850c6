"""Which images come from a container registry."""

from __future__ import annotations

import pytest

from bridge.runners.registry import Registry


@pytest.mark.parametrize(
    ("uri", "own", "of_others"),
    [
        ("ghcr.io/me", ["ghcr.io/me/ml:1", "ghcr.io/me/ml@sha256:0"], ["ghcr.io/meme/ml", "me/ml", "quay.io/me/ml"]),
        ("localhost:5000", ["localhost:5000/ml:1"], ["localhost/ml", "localhost:5000.evil.com/ml", "ml:1"]),
        (
            "europe-docker.pkg.dev/acme/ml",
            ["europe-docker.pkg.dev/acme/ml/train:1", "europe-docker.pkg.dev/acme/ml/train@sha256:0"],
            ["europe-docker.pkg.dev/acme/other/train", "us-docker.pkg.dev/acme/ml/train", "acme/ml/train"],
        ),
        # Docker leaves `docker.io/` out, and where ZenML had Docker build an image it knows it by such a name.
        ("docker.io/me", ["docker.io/me/ml", "me/ml@sha256:0", "index.docker.io/me/ml"], ["you/ml", "quay.io/me/ml"]),
        ("docker.io", ["docker.io/me/ml", "me/ml@sha256:0", "python:3.11"], ["localhost/ml", "quay.io/docker.io/ml"]),
        ("me", ["me/ml:1", "docker.io/me/ml:1"], ["me.com/ml:1", "quay.io/me/ml", "me:1"]),
    ],
)
def test_the_credentials_are_for_images_of_their_registry(uri: str, own: list[str], of_others: list[str]) -> None:
    registry = Registry(uri, lambda: None)
    assert [image for image in [*own, *of_others] if registry.has(image)] == own
