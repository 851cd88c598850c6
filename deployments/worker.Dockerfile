# syntax=docker/dockerfile:1
# A Prefect worker that runs ZenML pipelines; on Kubernetes also the image of the flow's pod. From the repository's root:
#
#   docker build -f deployments/worker.Dockerfile -t zenml-modal-prefect-worker .
#   docker build -f deployments/worker.Dockerfile -t zenml-modal-prefect-worker --build-arg INTEGRATIONS="s3fs boto3" .
#
# It holds none of your code: that runs in the sandboxes' image.
ARG PYTHON_VERSION=3.12

FROM python:${PYTHON_VERSION}-slim AS build
WORKDIR /source
COPY pyproject.toml README.md LICENSE ./
COPY bridge bridge
RUN pip wheel --no-cache-dir --no-deps --wheel-dir /wheels .

FROM python:${PYTHON_VERSION}-slim
# Requirements, separated by blanks, of the integrations of the stacks that this worker serves, as
# `zenml integration requirements <name>` prints them; on Kubernetes also prefect-kubernetes.
ARG INTEGRATIONS=""
ENV PYTHONUNBUFFERED=1 \
    ZENML_CONFIG_PATH=/home/worker/zenml \
    PREFECT_HOME=/home/worker/prefect \
    PREFECT_WORKER_WEBSERVER_HOST=127.0.0.1
# One command, so that the resolver sees all requirements together. Splitting INTEGRATIONS into words is meant.
# hadolint ignore=DL3013,SC2086
RUN --mount=type=bind,from=build,source=/wheels,target=/wheels \
    pip install --no-cache-dir /wheels/*.whl ${INTEGRATIONS}
RUN useradd --create-home --uid 1000 worker
USER 1000
WORKDIR /home/worker
HEALTHCHECK --interval=15s --timeout=5s --start-period=60s --retries=4 \
    CMD ["python", "-c", "import urllib.request; urllib.request.urlopen('http://127.0.0.1:8080/health', timeout=4)"]
# It drains on SIGTERM, which `prefect worker start` doesn't: see stop_grace_period in compose.yaml.
CMD ["modal-prefect", "worker", "--pool", "zenml", "--with-healthcheck"]
