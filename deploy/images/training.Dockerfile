# Training on CPUs: from a log to a published release.
#
#   docker build -f deploy/images/training.Dockerfile -t segrec-training:0.1.0 .
#
# A plain torch brings CUDA, several GB of it. To leave that out, name the package index that holds torch's CPU builds:
# --build-arg PIP_EXTRA_INDEX_URL=...; only the installation of torch reads it.
ARG PYTHON_IMAGE=python:3.11.14-slim-bookworm

FROM ${PYTHON_IMAGE} AS build
WORKDIR /build
COPY requirements.lock ./
RUN pip install --no-cache-dir --constraint requirements.lock uv
ENV UV_LINK_MODE=copy UV_NO_CACHE=1 UV_PYTHON_DOWNLOADS=never VIRTUAL_ENV=/opt/segrec
ARG PIP_EXTRA_INDEX_URL
RUN uv venv --seed "$VIRTUAL_ENV" \
 && "$VIRTUAL_ENV/bin/python" -m pip install --no-cache-dir --constraint requirements.lock torch
# Dependencies first, all but our own client: this layer is built anew only when they change.
COPY pyproject.toml ./
COPY protos/pyproject.toml protos/
RUN echo segrec > own.txt \
 && uv pip install --compile-bytecode --constraint requirements.lock --excludes own.txt \
    --requirement pyproject.toml --requirement protos/pyproject.toml --extra training
COPY README.md ./
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
ENV PATH=/opt/segrec/bin:$PATH PYTHONUNBUFFERED=1
WORKDIR /var/lib/segrec
USER 10001:10001
# It ends by itself; how it ended is its exit code.
HEALTHCHECK NONE
ENTRYPOINT ["segrec-train"]
