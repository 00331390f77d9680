"""Configuration of an endpoint, and how many replicas it gets."""

import math
import os
from collections.abc import Sequence
from pathlib import Path
from statistics import fmean
from typing import Any, Literal

from pydantic import Field, field_validator, model_validator

from cluster.settings import Settings
from serving.deployment.haproxy import NUM_SLOTS
from serving.http.hosts import HostNames, is_loopback, parse_host
from serving.http.log_lines import LogFormat
from serving.http.origins import parse_origin
from serving.http.prefix import parse_prefix
from serving.interface import PROMISED_WAIT_SECONDS, Limits

BYTES_PER_GIB = 1 << 30
TARGET_UTILIZATION = 0.7  # share of the time that an engine computes, at most
MAX_GROWTH = 2.0  # factor at once


class EndpointConfig(Settings):
    """Where an endpoint listens, what it serves and with how much."""

    registry: str = Field(description="a directory or s3://BUCKET/PREFIX")
    host: str = "127.0.0.1"
    port: int = Field(8000, ge=1, le=65535)
    min_replicas: int = Field(1, ge=1, description="processes of one thread each")
    max_replicas: int = Field(1, ge=1, le=NUM_SLOTS)
    device: Literal["auto", "cpu", "cuda", "neuron", "xpu", "mps"] = Field(
        "auto", description="kind that replicas compute on; auto: a GPU where there is one"
    )
    gpus_per_replica: float | None = Field(
        None, gt=0, le=1, description="share of a GPU, its memory included; default: an even one"
    )
    downscale_seconds: float = Field(60.0, ge=0, description="of too little load before one goes")
    memory_gib: float = Field(4.0, gt=0, description="of models on the device, each replica")
    keys: Path | None = Field(None, description="file of API keys; without it inference is open")
    allowed_hosts: tuple[str, ...] = Field(
        (), description="names beside its own that it answers to, as a proxy before it sends them"
    )
    allowed_origins: tuple[str, ...] = Field(
        (), description="whose pages may read answers, as https://app.example, or *"
    )
    root_path: str = Field("", description="prefix of the paths that a proxy passes on")
    certificate: Path | None = Field(None, description="PEM with certificate and key, for TLS")
    cache: Path = Field(
        Path("~/.cache/bertha/models").expanduser(), description="of bundles that come from S3"
    )
    grpc: bool = Field(False, description="answer calls of gRPC too, at the same port")
    limits: Limits = Limits()
    cache_mib: float = Field(
        0.0, ge=0, le=2**20, description="of answers to texts that come again, each replica"
    )
    feedback: Path | None = Field(
        None, description="directory for right answers that clients send; without it none are taken"
    )
    log_requests: bool = Field(False, description="a JSON line for each request, without the text")
    log_format: LogFormat = Field(
        "text", description="json: a line for each request, and messages as such lines too"
    )
    log_file: Path | None = Field(
        None, description="that these lines are appended to; default: standard output"
    )
    traces: str | None = Field(None, description="URL of an OpenTelemetry collector, for spans")

    @model_validator(mode="after")
    def _check_share(self) -> "EndpointConfig":
        if self.gpus_per_replica is not None and self.device not in ("auto", "cuda", "xpu"):
            raise ValueError(
                f"gpus_per_replica = {self.gpus_per_replica:g} with device = {self.device}: such a "
                "replica holds no GPU; leave the share out, or set device to cuda"
            )
        return self

    @property
    def memory_bytes(self) -> int:
        """Memory for models, in each replica."""
        return int(self.memory_gib * BYTES_PER_GIB)

    @property
    def logs_requests(self) -> bool:
        """Whether each request leaves a line."""
        return self.log_requests or self.log_format == "json" or self.log_file is not None

    @property
    def response_bytes(self) -> int:
        """Memory for answers to texts that come again, in each replica."""
        return int(self.cache_mib * (1 << 20))

    @property
    def host_names(self) -> HostNames | None:
        """The names that requests may be addressed to; None for any.

        On loopback these are checked, because only pages from elsewhere know it by another name.
        """
        own = parse_host(f"[{self.host}]" if ":" in self.host else self.host)
        if self.allowed_hosts or is_loopback(own):
            return HostNames([own, *map(parse_host, self.allowed_hosts)])
        return None

    @field_validator("allowed_origins")
    @classmethod
    def _parse_origins(cls, origins: tuple[str, ...]) -> tuple[str, ...]:
        return tuple(map(parse_origin, origins))

    @field_validator("root_path")
    @classmethod
    def _parse_root_path(cls, path: str) -> str:
        return parse_prefix(path)

    @field_validator("allowed_hosts")
    @classmethod
    def _check_names(cls, names: tuple[str, ...]) -> tuple[str, ...]:
        for name in names:
            if not name or parse_host(name) != name.lower().removesuffix("."):
                raise ValueError(
                    f"{name!r} is no host name; give a name or an address alone, without scheme "
                    "and port, as in box.lan or [fd00::1]"
                )
        return names


def suggest_replicas(num_cores: int, memory_gib: float) -> int:
    """Return how many one-thread replicas suit a machine: one a core, with 1.5 GiB each.

    Single threads that share nothing answered more than threads that share a model, and lost less
    when others took half of the machine.
    """
    return max(1, min(num_cores, int(memory_gib // 1.5)))


def machine_memory_gib() -> float:
    """Return the memory of this machine."""
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / BYTES_PER_GIB


def limit_per_node(num_replicas: int, places: Sequence[int]) -> int:
    """Return how many of the replicas one node may hold. places: how many fit on each node.

    As many as must fit where one node is missing, spread evenly: so whichever node dies takes no
    more than its share, also after another has died and come back. More where the nodes are so
    unequal that not all replicas would find a place.
    """
    limit = math.ceil(num_replicas / max(1, len(places) - 1))
    while limit < num_replicas and sum(min(limit, free) for free in places) < num_replicas:
        limit += 1
    return limit


def autoscaling_policy(context: Any) -> tuple[int, dict[str, Any]]:
    """Return the wanted number of replicas, and no state; called by Serve every few seconds.

    context: Serve's `AutoscalingContext` with what each replica reported. Delays and bounds are
    Serve's.
    """
    metrics = context.aggregated_metrics or {}
    busy = fmean((metrics.get("busy") or {"": 0.0}).values())
    waited = fmean((metrics.get("waited_seconds") or {"": 0.0}).values())
    return desired_replicas(context.target_num_replicas, busy, waited), {}


def desired_replicas(num_replicas: int, busy: float, waited_seconds: float) -> int:
    """Return the replicas with which engines are busy less than `TARGET_UTILIZATION`.

    busy: mean over replicas, 0 to 1. If requests wait too long, at least one replica is added.
    """
    now = max(1, num_replicas)
    number = math.ceil(now * busy / TARGET_UTILIZATION - 1e-9)
    if waited_seconds > PROMISED_WAIT_SECONDS:
        number = max(number, now + 1)
    return max(1, min(number, math.ceil(now * MAX_GROWTH)))
