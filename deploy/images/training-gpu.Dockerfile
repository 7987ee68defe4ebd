# Training on NVIDIA GPUs: torch with CUDA 13, and K-means by RAPIDS cuML. The machine's driver must be 580 or newer.
#
#   docker build -f deploy/images/training-gpu.Dockerfile -t segrec-training-gpu:0.1.0 .
#
# cuML wants an older pandas than the rest, and torch from the package index wants CUDA 13 where cuml-cu12 wants 12; so
# this image has a lock file of its own. How to make it anew stands at its top.
ARG PYTHON_IMAGE=python:3.11.14-slim-bookworm

FROM ${PYTHON_IMAGE} AS build
WORKDIR /build
COPY requirements.lock deploy/images/requirements-gpu.lock ./
RUN pip install --no-cache-dir --constraint requirements.lock uv
ENV UV_LINK_MODE=copy UV_NO_CACHE=1 UV_PYTHON_DOWNLOADS=never VIRTUAL_ENV=/opt/segrec
RUN uv venv "$VIRTUAL_ENV" && uv pip install --no-deps --requirement requirements-gpu.lock
COPY pyproject.toml README.md ./
COPY protos protos
COPY server server
COPY training training
RUN uv pip install --compile-bytecode --no-deps --build-constraint requirements.lock ./protos .

FROM ${PYTHON_IMAGE}
# The same ids as the server's: both work on the model repository.
RUN groupadd --gid 10001 segrec \
 && useradd --uid 10001 --gid 10001 --no-create-home --home-dir /var/lib/segrec --shell /usr/sbin/nologin segrec \
 && install -d -o segrec -g segrec /models /var/lib/segrec/runs
COPY --from=build /opt/segrec /opt/segrec
ENV PATH=/opt/segrec/bin:$PATH \
    PYTHONUNBUFFERED=1 \
    NVIDIA_VISIBLE_DEVICES=all \
    NVIDIA_DRIVER_CAPABILITIES=compute,utility
WORKDIR /var/lib/segrec
USER 10001:10001
# It ends by itself; how it ended is its exit code.
HEALTHCHECK NONE
ENTRYPOINT ["segrec-train"]
