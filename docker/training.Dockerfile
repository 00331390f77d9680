# A node of a training cluster: the image of `ray start` on each machine, or of a job.
#   docker build -f docker/training.Dockerfile -t bertha-training .
FROM python:3.11-slim
# Options of `pip install torch`: the index of PyTorch's builds for the device.
ARG TORCH_OPTIONS=
# hadolint ignore=DL3008
RUN apt-get update \
    && apt-get install --yes --no-install-recommends openssh-client rsync \
    && rm -rf /var/lib/apt/lists/*
WORKDIR /bertha
RUN python -m venv /opt/bertha \
    && /opt/bertha/bin/pip install --no-cache-dir ${TORCH_OPTIONS} torch==2.13.0
COPY pyproject.toml README.md LICENSE bertha.py ./
COPY cluster cluster
COPY trainers trainers
COPY tuning tuning
COPY serving serving
RUN /opt/bertha/bin/pip install --no-cache-dir ".[train,tune,serve,explain,aws]" \
    && useradd --uid 10001 --create-home bertha
ENV PATH=/opt/bertha/bin:$PATH RAY_AUTH_MODE=token
USER 10001
# Ray's ports are for the cluster's own network; publish none of them.
ENTRYPOINT ["bertha"]
CMD ["--help"]
