"""A Ray cluster YAML, the very file that `ray up` reads, as a value.

Our own keys live under `metadata:`, which Ray leaves alone. Knows no torch and no Ray.
"""

import difflib
import os
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import yaml
from pydantic import Field

from cluster.settings import Settings, SettingsError, read_yaml, validated

SHIPPED = Path(__file__).parent


class Metadata(Settings):
    """What Bertha must know of a cluster and Ray does not."""

    accelerator: Literal["cpu", "cuda", "neuron", "tpu"] = Field(
        "cpu", description="the kind of device that trains"
    )
    accelerator_name: str | None = Field(
        None, description="as the catalogue has it: A100-SXM4-80GB"
    )
    devices_per_node: int = Field(1, ge=0, description="training workers a node")
    device_memory_gib: float | None = Field(
        None,
        gt=0,
        description="memory of a device; default: for cpu a worker's share of the machine's",
    )
    storage: str = Field(
        "runs",
        description="where runs are kept: a directory all nodes see, or s3://BUCKET/PREFIX, in "
        "which {account} and {region} stand for yours",
    )
    cache: str = Field(
        "~/.cache/bertha", description="a directory of each node, for data made ready to train on"
    )
    max_failures: int = Field(3, ge=0, description="how often a run restarts by itself")
    min_workers: int | None = Field(
        None,
        ge=1,
        description="the fewest workers a run goes on with when others leave; default: all of them",
    )
    resize_seconds: float = Field(
        60.0, ge=0, description="how often a run with min_workers looks for workers that joined"
    )
    tpu_type: str | None = Field(None, description="of a TPU slice, as Ray names it: TPU-V6E")
    tpu_topology: str | None = Field(None, description="of a TPU slice, as 4x4")
    bucket: str | None = Field(
        None,
        description="of S3, made by `up`, which the nodes may use: a name, in which {account} and "
        "{region} stand for yours",
    )
    ssh_from: str = Field(
        "auto",
        description="addresses that may reach port 22, as 203.0.113.7/32; auto: this machine's own",
    )
    price_usd_per_hour: float | None = Field(None, ge=0, description="of a node, while it is held")
    power_watts: float | None = Field(None, ge=0, description="of a node under load")


@dataclass(frozen=True)
class ClusterSpec:
    """A cluster: its name, where it runs, how many training nodes, and our metadata.

    present: how many workers there are, where some have left.
    """

    name: str
    provider: str
    num_nodes: int
    metadata: Metadata
    present: int | None = None

    @property
    def num_workers(self) -> int:
        """Training workers, one a device. 0 trains inside the calling process."""
        if self.present is not None:
            return self.present
        return self.num_nodes * self.metadata.devices_per_node

    @property
    def is_elastic(self) -> bool:
        """Whether a run goes on with fewer workers when some leave."""
        return self.metadata.min_workers is not None

    @property
    def sizes(self) -> range:
        """The numbers of workers that a run may have."""
        return range(self.metadata.min_workers or self.num_workers, self.num_workers + 1)

    def at(self, num_workers: int) -> "ClusterSpec":
        """The same cluster while it has `num_workers`."""
        return replace(self, present=num_workers)

    @property
    def device_memory(self) -> float | None:
        """Bytes a device has; None where nobody said and nobody can know."""
        if self.metadata.device_memory_gib is not None:
            return self.metadata.device_memory_gib * 2**30
        if self.metadata.accelerator != "cpu":
            return None
        machine = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
        return machine / max(1, self.metadata.devices_per_node)

    @property
    def is_this_machine(self) -> bool:
        """Whether the cluster is only the machine it is asked from."""
        return self.provider == "local" and self.num_nodes == 1

    @property
    def cache(self) -> Path:
        """The node's cache directory."""
        return Path(self.metadata.cache).expanduser()

    def run_named(self, name: str) -> str:
        """Where a run of that name is kept, a path or a URL."""
        return f"{self.metadata.storage.rstrip('/')}/{name}"


def find(name: str | Path) -> Path:
    """A cluster file, or the shipped one of that name. Raises SettingsError for neither."""
    path = Path(name)
    if not path.is_file():
        path = SHIPPED / path.with_suffix(".yaml").name
    if not path.is_file():
        names = sorted(shipped.stem for shipped in SHIPPED.glob("*.yaml"))
        raise SettingsError(
            f"no cluster file {str(name)!r}: give a file, or one of {', '.join(names)}"
        )
    return path


def load(name: str | Path) -> ClusterSpec:
    """Read a cluster YAML, a file or the name of a shipped one.

    Raises SettingsError for a missing file, broken YAML, or wrong metadata.
    """
    path = find(name)
    return read(path, read_yaml(path))


def read(path: Path, settings: dict[str, Any]) -> ClusterSpec:
    """The settings of `path` as a cluster. Raises SettingsError for what `load` cannot use."""
    metadata = validated(Metadata, settings.get("metadata") or {}, f"{path}: metadata")
    provider = settings.get("provider")
    if not isinstance(provider, dict) or "type" not in provider:
        raise SettingsError(f"{path}: provider.type: missing; local, aws, ... as `ray up` reads it")
    cluster = ClusterSpec(
        name=str(settings.get("cluster_name", path.stem)),
        provider=str(provider["type"]),
        num_nodes=_num_nodes(settings, provider, path),
        metadata=metadata,
    )
    _check(cluster, path)
    return cluster


def dump(settings: Mapping[str, Any]) -> str:
    """Settings as the YAML of a cluster file, in their order, nothing by reference."""
    return yaml.dump(dict(settings), Dumper=_Plain, sort_keys=False, width=100)


class _Plain(yaml.SafeDumper):
    def ignore_aliases(self, data: Any) -> bool:
        return True


def _check(cluster: ClusterSpec, path: Path) -> None:
    """What metadata must agree on with itself and with the number of nodes."""
    metadata, most = cluster.metadata, cluster.num_workers
    if metadata.min_workers is not None and metadata.min_workers > most:
        raise SettingsError(
            f"{path}: metadata.min_workers = {metadata.min_workers}: the cluster has {most} "
            "worker(s), nodes times devices_per_node; lower it, or add nodes"
        )
    slice_known = metadata.tpu_type is not None and metadata.tpu_topology is not None
    if metadata.accelerator == "tpu" and most > 1 and not slice_known:
        raise SettingsError(
            f"{path}: metadata.accelerator = 'tpu': Ray places {most} workers by the kind of the "
            "slice; set tpu_type and tpu_topology"
        )


def _num_nodes(settings: dict[str, Any], provider: dict[str, Any], path: Path) -> int:
    """Training nodes: listed machines, or the least the worker types promise."""
    if provider["type"] == "local":
        workers = provider.get("worker_ips") or []
        return 1 + len(workers)
    types = settings.get("available_node_types") or {}
    head = settings.get("head_node_type")
    if head not in types:
        close = difflib.get_close_matches(str(head), types, n=1)
        meant = f"; did you mean {close[0]}?" if close else ""
        raise SettingsError(
            f"{path}: head_node_type = {head!r} is not in available_node_types{meant}"
        )
    return max(1, sum(int(t.get("min_workers", 0)) for name, t in types.items() if name != head))
