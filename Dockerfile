# One target an image:  docker build --target gateway -t understudy-gateway .
# The engine for CPUs is target `engine`, the one for GPUs target `engine-cuda`.
ARG PYTHON_IMAGE=python:3.11-slim-bookworm
# Ray's own LLM image: Ray Serve, vLLM and CUDA together. Of ours the engine needs the plugin for adapters.
ARG CUDA_ENGINE_IMAGE=rayproject/ray-llm:2.60.0-py311-cu130
ARG VERSION=0.1.0

# --- environments are made with uv, which is in no image
FROM ${PYTHON_IMAGE} AS build
COPY requirements/uv.txt /build/requirements/uv.txt
RUN python3 -m venv /build/uv && /build/uv/bin/pip install --quiet --require-hashes -r /build/requirements/uv.txt
# Without a cache, files are moved to where they belong: a layer holds them once.
ENV PATH=/build/uv/bin:$PATH UV_NO_CACHE=1 UV_PYTHON_DOWNLOADS=never
WORKDIR /build

FROM build AS build-services
COPY pyproject.toml README.md LICENSE ./
COPY services services
COPY pipelines pipelines
RUN uv build --quiet --wheel --out-dir /build/wheels .

# Gateway and controller keep no tests of their packages, no client for other event loops, and bytecode only of what the process imports when it starts.
FROM build AS build-gateway
COPY requirements/gateway.txt requirements/
RUN uv venv --quiet --python python3 /opt/understudy && uv pip install --quiet --python /opt/understudy/bin/python --require-hashes -r requirements/gateway.txt
COPY --from=build-services /build/wheels wheels
RUN uv pip install --quiet --python /opt/understudy/bin/python --no-deps wheels/*.whl \
    && find /opt/understudy -type d -name tests -prune -exec rm -r {} + \
    && /opt/understudy/bin/python -c "import services.gateway.__main__, services.gateway.trace_exporter, sqlalchemy.dialects.postgresql.psycopg, uvloop"

FROM build AS build-controller
COPY requirements/platform.txt requirements/
RUN uv venv --quiet --python python3 /opt/understudy && uv pip install --quiet --python /opt/understudy/bin/python --require-hashes -r requirements/platform.txt
COPY --from=build-services /build/wheels wheels
RUN uv pip install --quiet --python /opt/understudy/bin/python --no-deps wheels/*.whl \
    && find /opt/understudy -type d \( -name tests -o -path '*/kubernetes/aio' \) -prune -exec rm -r {} + \
    && /opt/understudy/bin/python -c "import services.rollout.__main__, services.serving.fetch, services.cli.main, sqlalchemy.dialects.postgresql.psycopg, mlflow"

FROM build AS build-mlflow
COPY requirements/mlflow.txt requirements/
RUN uv venv --quiet --python python3 /opt/mlflow \
    && uv pip install --quiet --compile-bytecode --python /opt/mlflow/bin/python --require-hashes -r requirements/mlflow.txt
# It also fetches versions' files for engines' pods: here are the clients of all stores.
COPY --from=build-services /build/wheels wheels
RUN uv pip install --quiet --python /opt/mlflow/bin/python --no-deps wheels/*.whl && /opt/mlflow/bin/python -m services.serving.fetch --help > /dev/null

# --- what every image of ours shares: an unprivileged user, no package manager's leftovers, labels
FROM ${PYTHON_IMAGE} AS runtime
ARG VERSION
LABEL org.opencontainers.image.source="understudy" org.opencontainers.image.version="${VERSION}" org.opencontainers.image.licenses="Apache-2.0"
RUN useradd --uid 10001 --user-group --create-home --shell /usr/sbin/nologin understudy
ENV PYTHONUNBUFFERED=1 PYTHONDONTWRITEBYTECODE=1 DO_NOT_TRACK=true
WORKDIR /home/understudy

FROM runtime AS gateway
COPY --from=build-gateway /opt/understudy /opt/understudy
ENV PATH=/opt/understudy/bin:$PATH
USER 10001
EXPOSE 8080
ENTRYPOINT ["python", "-m", "services.gateway"]

FROM runtime AS controller
COPY --from=build-controller /opt/understudy /opt/understudy
ENV PATH=/opt/understudy/bin:$PATH
USER 10001
ENTRYPOINT ["python", "-m", "services.rollout"]

FROM runtime AS mlflow
COPY --from=build-mlflow /opt/mlflow /opt/mlflow
ENV PATH=/opt/mlflow/bin:$PATH
USER 10001
EXPOSE 5000
ENTRYPOINT ["python", "-m", "mlflow", "server", "--host", "0.0.0.0"]

# A PostgreSQL for trials, from Debian's package; in production the chart is given the URL of a real one.
FROM ${PYTHON_IMAGE} AS postgresql
ARG VERSION
LABEL org.opencontainers.image.source="understudy" org.opencontainers.image.version="${VERSION}" org.opencontainers.image.licenses="PostgreSQL"
RUN mkdir /etc/postgresql-common && echo "create_main_cluster = false" > /etc/postgresql-common/createcluster.conf \
    && apt-get update -qq && apt-get install -y -qq --no-install-recommends postgresql-15 && rm -rf /var/lib/apt/lists/* \
    && usermod --uid 10001 postgres && groupmod --gid 10001 postgres \
    && install -d -o 10001 -g 10001 /var/lib/postgresql/data /var/run/postgresql
COPY --chmod=755 docker/postgresql-entrypoint.sh /usr/local/bin/postgresql-entrypoint
ENV PATH=/usr/lib/postgresql/15/bin:$PATH PGDATA=/var/lib/postgresql/data/pgdata LANG=C.UTF-8
USER 10001
EXPOSE 5432
STOPSIGNAL SIGINT
ENTRYPOINT ["postgresql-entrypoint"]

FROM runtime AS engine
# vLLM's CPU kernels link libnuma; torch compiles nothing at run time when dynamo is off, so no compiler is needed.
RUN apt-get update -qq && apt-get install -y -qq --no-install-recommends libnuma1 && rm -rf /var/lib/apt/lists/*
# 7 GB: made in place, since a copy would need that much twice. What it is made of is copied, not mounted: buildah takes a layer from its
# cache whatever lies in a mount.
COPY requirements/engine.txt /opt/requirements.txt
RUN --mount=type=bind,from=build,source=/build/uv,target=/build/uv \
    export PATH=/build/uv/bin:$PATH UV_NO_CACHE=1 UV_PYTHON_DOWNLOADS=never && uv venv --quiet --python python3 /opt/engine \
    && uv pip install --quiet --compile-bytecode --python /opt/engine/bin/python --no-deps --require-hashes -r /opt/requirements.txt
COPY --from=build-services /build/wheels /opt/wheels
RUN --mount=type=bind,from=build,source=/build/uv,target=/build/uv \
    /build/uv/bin/uv pip install --quiet --no-cache --compile-bytecode --python /opt/engine/bin/python --no-deps /opt/wheels/*.whl
# One process an engine, no fetching of files that are there: services/serving/engine_plugin.py and local_engine.py say why.
ENV PATH=/opt/engine/bin:$PATH TORCHDYNAMO_DISABLE=1 VLLM_CPU_KVCACHE_SPACE=1 UNDERSTUDY_ENGINE_IN_PROCESS=1 \
    RAYLLM_VLLM_ENGINE_CLS=services.serving.local_engine:LocalEngine \
    HF_HUB_OFFLINE=1 VLLM_NO_USAGE_STATS=1 RAY_USAGE_STATS_ENABLED=0 RAY_SERVE_ENABLE_HA_PROXY=1 RAY_SERVE_LLM_ENABLE_DIRECT_STREAMING=1
USER 10001
EXPOSE 8000

FROM ${CUDA_ENGINE_IMAGE} AS engine-cuda
# Adapters are loaded by services/serving/engine_plugin.py.
COPY --from=build-services /build/wheels /opt/wheels
RUN python3 -m pip install --quiet --no-cache-dir --no-deps /opt/wheels/*.whl
ENV HF_HUB_OFFLINE=1 VLLM_NO_USAGE_STATS=1 RAY_USAGE_STATS_ENABLED=0 RAY_SERVE_ENABLE_HA_PROXY=1 RAY_SERVE_LLM_ENABLE_DIRECT_STREAMING=1
EXPOSE 8000
