"""Read a Ray cluster YAML, the same file that `ray up` takes, into a `ClusterSpec`.

Bertha's own keys are under `metadata:`, which Ray ignores.
"""

import os
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from pydantic import Field

from cluster.settings import (
    Settings,
    SettingsError,
    did_you_mean,
    read_cluster_yaml,
    validate_settings,
)

SHIPPED_DIR = Path(__file__).parent

DeviceKind = Literal["cpu", "cuda", "neuron", "tpu"]


class ClusterMetadata(Settings):
    """Bertha's own keys of a cluster file."""

    accelerator: Literal["auto"] | DeviceKind = Field(
        "auto",
        description="the kind of device that trains; auto: cuda where the machine that starts the "
        "run has a GPU that torch can use, else cpu",
    )
    accelerator_name: str | None = Field(None, description="as in the catalog: A100-SXM4-80GB")
    devices_per_node: int = Field(
        1,
        ge=0,
        description="training workers a node; where `accelerator: auto` finds GPUs in the only "
        "machine, one each instead",
    )
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
    cache: str = Field("~/.cache/bertha", description="a directory of each node, for prepared data")
    max_failures: int = Field(3, ge=0, description="how often a run restarts by itself")
    small_runs_in_process: bool = Field(
        False,
        description="of this machine: whether a run that is shorter than starting Ray trains in "
        "the process that was asked for it, without workers",
    )
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
    """A cluster: name, provider, number of training nodes, and metadata.

    workers_present: the number of workers after some have left; None for all of them.
    instance_types: EC2 types of the workers, always-on types first; empty for owned machines.
    mounts: where the nodes have the files that Ray copies to them.
    """

    name: str
    provider: str
    num_nodes: int
    metadata: ClusterMetadata
    workers_present: int | None = None
    instance_types: tuple[str, ...] = ()
    region: str = ""
    mounts: tuple[str, ...] = ()

    @property
    def num_workers(self) -> int:
        """Number of training workers, one per device; 0 trains inside the calling process."""
        if self.workers_present is not None:
            return self.workers_present
        return self.num_nodes * self.metadata.devices_per_node

    @property
    def device_kind(self) -> DeviceKind:
        """The kind of device that trains: of an `auto` that nobody has resolved, cpu.

        `trainers.planning.accelerator` resolves it, as that needs torch.
        """
        kind = self.metadata.accelerator
        return "cpu" if kind == "auto" else kind

    def with_metadata(self, **changes: Any) -> "ClusterSpec":
        """Return the same cluster with some of Bertha's own keys changed. Raises SettingsError."""
        changed = replace(self, metadata=self.metadata.model_copy(update=changes))
        _check_consistency(changed, self.name)
        return changed

    @property
    def is_elastic(self) -> bool:
        """Whether a run continues with fewer workers when some leave."""
        return self.metadata.min_workers is not None

    @property
    def worker_counts(self) -> range:
        """All numbers of workers that a run may have."""
        return range(self.metadata.min_workers or self.num_workers, self.num_workers + 1)

    def with_workers(self, num_workers: int) -> "ClusterSpec":
        """Return the same cluster with `num_workers` workers present."""
        return replace(self, workers_present=num_workers)

    @property
    def device_memory_bytes(self) -> float | None:
        """Memory of a device in bytes; None for an accelerator whose memory is not given."""
        if self.metadata.device_memory_gib is not None:
            return self.metadata.device_memory_gib * 2**30
        if self.device_kind != "cpu":
            return None
        machine = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
        return machine / max(1, self.metadata.devices_per_node)

    @property
    def is_this_machine(self) -> bool:
        """Whether the cluster is only the local machine."""
        return self.provider == "local" and self.num_nodes == 1

    @property
    def cache_dir(self) -> Path:
        """Cache directory of a node."""
        return Path(self.metadata.cache).expanduser()

    def run_path(self, name: str) -> str:
        """Return the path or URL of the run called `name`."""
        return f"{self.metadata.storage.rstrip('/')}/{name}"


def find_cluster_file(name: str | Path) -> Path:
    """Return the path of a cluster file or of a shipped one. Raises SettingsError for neither."""
    path = Path(name)
    if not path.is_file():
        path = SHIPPED_DIR / path.with_suffix(".yaml").name
    if not path.is_file():
        names = sorted(shipped.stem for shipped in SHIPPED_DIR.glob("*.yaml"))
        raise SettingsError(
            f"no cluster file {str(name)!r}: give a file, or one of {', '.join(names)}"
        )
    return path


def load_cluster_spec(name: str | Path) -> ClusterSpec:
    """Read a cluster YAML, a file or a shipped one's name. Raises SettingsError if unusable."""
    path = find_cluster_file(name)
    return parse_cluster_spec(path, read_cluster_yaml(path))


def parse_cluster_spec(path: Path, settings: dict[str, Any]) -> ClusterSpec:
    """Build the spec from the settings read from `path`. Raises SettingsError if unusable."""
    metadata = validate_settings(
        ClusterMetadata, settings.get("metadata") or {}, f"{path}: metadata"
    )
    provider = settings.get("provider")
    if not isinstance(provider, dict) or "type" not in provider:
        raise SettingsError(f"{path}: provider.type: missing; local, aws, ... as `ray up` reads it")
    mounts = settings.get("file_mounts")
    cluster = ClusterSpec(
        name=str(settings.get("cluster_name", path.stem)),
        provider=str(provider["type"]),
        num_nodes=_num_nodes(settings, provider, path),
        metadata=metadata,
        instance_types=worker_instance_types(settings),
        region=str(provider.get("region") or ""),
        mounts=tuple(map(str, mounts)) if isinstance(mounts, Mapping) else (),
    )
    _check_consistency(cluster, path)
    return cluster


def worker_instance_types(settings: Mapping[str, Any]) -> tuple[str, ...]:
    """Return the instance types of the enabled workers, always-on types first.

    A node type is disabled by `max_workers: 0`; a head without workers trains itself. Malformed
    parts are skipped, since validation reports them.
    """
    types = settings.get("available_node_types")
    kinds = dict(types) if isinstance(types, Mapping) else {}
    head = kinds.pop(str(settings.get("head_node_type")), None)
    mappings = [kind for kind in kinds.values() or (head,) if isinstance(kind, Mapping)]
    enabled = [kind for kind in mappings if kind is head or kind.get("max_workers") != 0]
    enabled.sort(key=lambda kind: not kind.get("min_workers"))
    nodes = [kind.get("node_config") for kind in enabled]
    instances = (node.get("InstanceType") for node in nodes if isinstance(node, Mapping))
    return tuple(dict.fromkeys(str(instance) for instance in instances if instance))


def _check_consistency(cluster: ClusterSpec, path: Path | str) -> None:
    """Raise SettingsError where metadata contradicts itself or the number of nodes."""
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
    """Count the training nodes: listed machines, or the sum of min_workers."""
    if provider["type"] == "local":
        workers = provider.get("worker_ips") or []
        return 1 + len(workers)
    types = settings.get("available_node_types") or {}
    head = settings.get("head_node_type")
    if head not in types:
        meant = did_you_mean(str(head), types)
        raise SettingsError(
            f"{path}: head_node_type = {head!r} is not in available_node_types{meant}"
        )
    return max(1, sum(int(t.get("min_workers", 0)) for name, t in types.items() if name != head))
