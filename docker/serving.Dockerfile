# A server of bundles. Build at the repository's root, with the device's torch:
#   docker build -f docker/serving.Dockerfile -t bertha-serving .
#   docker run --read-only --tmpfs /tmp --shm-size 1g -p 127.0.0.1:8000:8000 \
#     -v "$PWD/runs/mine/bundle:/bundle:ro" bertha-serving
FROM python:3.11-slim AS build
# Options of `pip install torch`: the index of PyTorch's builds for the device.
ARG TORCH_OPTIONS=
WORKDIR /src
RUN python -m venv /opt/bertha \
    && /opt/bertha/bin/pip install --no-cache-dir ${TORCH_OPTIONS} torch==2.13.0
COPY pyproject.toml README.md LICENSE bertha.py ./
COPY cluster cluster
COPY trainers trainers
COPY tuning tuning
COPY serving serving
RUN /opt/bertha/bin/pip install --no-cache-dir ".[serve,engines,explain,grpc]"

FROM python:3.11-slim
RUN useradd --uid 10001 --no-create-home --shell /usr/sbin/nologin bertha
COPY --from=build /opt/bertha /opt/bertha
# All that is written goes to /tmp, so that the root file system may be read-only.
ENV PATH=/opt/bertha/bin:$PATH HOME=/tmp PYTHONDONTWRITEBYTECODE=1 HF_HUB_OFFLINE=1
USER 10001
EXPOSE 8000
HEALTHCHECK --interval=10s --timeout=3s --start-period=120s \
    CMD ["python", "-c", "import urllib.request as r; r.urlopen('http://127.0.0.1:8000/health', timeout=2)"]
ENTRYPOINT ["bertha", "serve"]
# It listens at every address of the container, and answers to the name under which it is published.
CMD ["/bundle", "--host", "0.0.0.0", "--allow-host", "localhost", "--registry", "/tmp/registry"]
