"""The settings of an endpoint: one frozen value that whoever serves is told."""

import os
from pathlib import Path

from pydantic import Field

from cluster.settings import Settings
from serving.interface import Limits

BYTES_PER_GIB = 1 << 30


class Endpoint(Settings):
    """Where an endpoint listens, what it serves and with how much."""

    registry: str = Field(description="a directory or s3://BUCKET/PREFIX")
    host: str = "127.0.0.1"
    port: int = 8000
    min_replicas: int = Field(1, ge=1, description="processes of one thread each")
    max_replicas: int = Field(1, ge=1)
    downscale_seconds: float = Field(60.0, ge=0, description="of too little load before one goes")
    memory_gib: float = Field(4.0, gt=0, description="of models, in each replica")
    keys: Path | None = Field(None, description="file of API keys; without it inference is open")
    certificate: Path | None = Field(None, description="PEM with certificate and key, for TLS")
    cache: Path = Field(
        Path("~/.cache/bertha/models").expanduser(), description="of bundles that come from S3"
    )
    limits: Limits = Limits()
    log_requests: bool = Field(False, description="a JSON line for each request, without the text")
    traces: str | None = Field(None, description="URL of an OpenTelemetry collector, for spans")

    @property
    def memory_bytes(self) -> int:
        """Of models, in each replica."""
        return int(self.memory_gib * BYTES_PER_GIB)


def replicas_for(num_cores: int, memory_gib: float) -> int:
    """Replicas of one thread each that suit a machine: one a core, and a GiB and a half for each.

    Single threads that share nothing answered more than threads that share a model, and lost less
    when others took half of the machine.
    """
    return max(1, min(num_cores, int(memory_gib // 1.5)))


def memory_gib() -> float:
    """Memory of this machine."""
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / BYTES_PER_GIB
