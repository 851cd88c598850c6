# syntax=docker/dockerfile:1
# ZenML's server with this package, so that its dashboard can stop and refresh our runs: ZenML loads an orchestrator's
# class in the process that is asked. From the repository's root:
#
#   docker build -f deployments/zenml-server.Dockerfile -t zenml-modal-prefect-server .
#
# The server finds Prefect by PREFECT_API_URL, as every other process does. It needs a Modal token (MODAL_TOKEN_ID and
# MODAL_TOKEN_SECRET, or on the component) only to end sandboxes of a run whose flow has died.
ARG ZENML_VERSION=0.98.0

FROM python:3.12-slim AS build
WORKDIR /source
COPY pyproject.toml README.md LICENSE ./
COPY bridge bridge
RUN pip wheel --no-cache-dir --no-deps --wheel-dir /wheels .

FROM zenmldocker/zenml-server:${ZENML_VERSION}
ARG ZENML_VERSION
# `zenml[server]` is named again so that the resolver keeps the server's own limits: it excludes the fastapi that the
# newest Prefect asks for, and an older Prefect (3.7) is taken, which talks to newer servers. The import is a smoke test.
# hadolint ignore=DL3013
RUN --mount=type=bind,from=build,source=/wheels,target=/wheels \
    pip install --no-cache-dir "zenml[server]==${ZENML_VERSION}" /wheels/*.whl \
    && python -c "import bridge.flavors, bridge.orchestrator, prefect"
# User, entry point and command are the base image's: not root, uvicorn on port 8080.
