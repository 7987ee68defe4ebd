# The server, without torch and without Triton: production uses NVIDIA's container for that.
#
#   docker build -f deploy/images/server.Dockerfile -t segrec-server:0.1.0 .
ARG PYTHON_IMAGE=python:3.11.14-slim-bookworm

FROM ${PYTHON_IMAGE} AS build
WORKDIR /build
COPY requirements.lock ./
RUN pip install --no-cache-dir --constraint requirements.lock uv
ENV UV_LINK_MODE=copy UV_NO_CACHE=1 UV_PYTHON_DOWNLOADS=never VIRTUAL_ENV=/opt/segrec
# Dependencies first, all but our own client: this layer is built anew only when they change.
COPY pyproject.toml ./
COPY protos/pyproject.toml protos/
RUN uv venv "$VIRTUAL_ENV" \
 && echo segrec > own.txt \
 && uv pip install --compile-bytecode --constraint requirements.lock --excludes own.txt \
    --requirement pyproject.toml --requirement protos/pyproject.toml --extra server
COPY README.md ./
COPY protos protos
COPY server server
COPY training training
RUN uv pip install --compile-bytecode --no-deps --build-constraint requirements.lock ./protos .

FROM ${PYTHON_IMAGE}
RUN groupadd --gid 10001 segrec \
 && useradd --uid 10001 --gid 10001 --no-create-home --home-dir /var/lib/segrec --shell /usr/sbin/nologin segrec \
 && install -d -o segrec -g segrec /models /var/lib/segrec
COPY --from=build /opt/segrec /opt/segrec
COPY deploy/images/health.py /opt/segrec/health.py
# Loopback, the default, would be out of reach from outside the container.
ENV PATH=/opt/segrec/bin:$PATH \
    PYTHONUNBUFFERED=1 \
    SEGREC_ADDRESS=0.0.0.0:50051 \
    SEGREC_MODEL_ADDRESS=0.0.0.0:50052 \
    SEGREC_METRICS_ADDRESS=0.0.0.0:50053 \
    SEGREC_REPOSITORY=/models
WORKDIR /var/lib/segrec
USER 10001:10001
EXPOSE 50051 50052 50053
STOPSIGNAL SIGTERM
# Not ready until a release is active, so the start period says nothing about a first start without one.
HEALTHCHECK --interval=10s --timeout=5s --start-period=30s --retries=3 \
  CMD ["python", "/opt/segrec/health.py", "127.0.0.1:50051"]
ENTRYPOINT ["segrec-serve"]
