"""Which allow lists keep a sandbox from ZenML, as far as that is certain."""

from __future__ import annotations

from dataclasses import replace

import pytest

from bridge.errors import NotTranslatable
from bridge.plan import SandboxSpec
from bridge.planning.network import check_way_to_zenml

DOMAINS = SandboxSpec(outbound_domains=("zenml.example.com", "*.amazonaws.com"))


@pytest.mark.parametrize(
    ("url", "problem", "fix"),
    [
        ("http://zenml.example.com", "TLS on port 443", "serve ZenML with https on port 443"),
        ("http://zenml.example.com:443", "TLS on port 443", "outbound_cidr_allowlist"),
        ("https://zenml.example.com:8443", "TLS on port 443", "outbound_cidr_allowlist"),
        ("http://127.0.0.1:8237", "TLS on port 443", "outbound_cidr_allowlist"),
        ("https://other.example.com", "isn't among them", "Add 'other.example.com'"),
        ("https://example.com", "isn't among them", "Add 'example.com'"),
        ("https://10.0.0.1", "isn't among them", "outbound_cidr_allowlist"),
    ],
)
def test_what_can_not_be_reached_by_domains_alone(url: str, problem: str, fix: str) -> None:
    with pytest.raises(NotTranslatable) as caught:
        check_way_to_zenml(DOMAINS, "step train", url)
    message = str(caught.value)
    assert message.startswith("outbound_domain_allowlist of step train=['zenml.example.com', '*.amazonaws.com']: ")
    assert all(text in message for text in (url, problem, fix))


@pytest.mark.parametrize(
    ("spec", "url"),
    [
        (DOMAINS, "https://zenml.example.com"),
        (DOMAINS, "https://ZenML.example.com:443/path"),
        (DOMAINS, "https://a.b.amazonaws.com"),
        (DOMAINS, "https://amazonaws.com"),
        (replace(DOMAINS, outbound_domains=("*",)), "https://anywhere.example.com"),
        (replace(DOMAINS, outbound_cidrs=("10.0.0.0/8",)), "http://zenml.example.com:8080"),
        (SandboxSpec(outbound_cidrs=("10.0.0.0/8",)), "http://zenml.example.com"),
        (SandboxSpec(), "http://zenml.example.com"),
        (DOMAINS, "sqlite:////home/me/.config/zenml/local_stores/zenml.db"),
    ],
)
def test_what_may_be_reached(spec: SandboxSpec, url: str) -> None:
    check_way_to_zenml(spec, "step train", url)
