"""Whether a live Ray is that of a cluster file, by the name in the file it was brought up with."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import yaml

from cluster.doctor.observations import Node
from cluster.errors import BerthaError
from cluster.spec import ClusterSpec


class ClusterNotFoundError(BerthaError):
    """There is no live cluster to probe; the message says how to reach one."""


def check_identity(
    cluster: ClusterSpec,
    addresses: Sequence[str],
    nodes: Sequence[Node],
    names: Mapping[str, str | None],
) -> None:
    """Raise ClusterNotFoundError where the Ray that was joined is not that of the cluster's file.

    names: what the head knows as its cluster's name; {} where it does not answer, so that nothing
    is known. A Ray that was started by hand has none: there one of the listed addresses is enough,
    and the file of this machine alone has one node.
    """
    present = [node.address for node in nodes]
    by_hand = len(nodes) == 1 if cluster.is_this_machine else bool({*present} & {*addresses})
    for name in names.values():
        if name == cluster.name or (name is None and by_hand):
            return
        what = "was started without a cluster file" if name is None else f"is cluster {name}"
        raise ClusterNotFoundError(
            f"the Ray here {what}, with the nodes {', '.join(present)}: not {cluster.name}, of "
            f"which the file speaks; name the file of that Ray, or run the doctor on a node of "
            f"{cluster.name}"
        )


def read_cluster_name(gcs_address: str, proc: Path = Path("/proc")) -> str | None:
    """Return the `cluster_name` of the file that the Ray at `gcs_address` was brought up with.

    To be asked on its head: `ray up` starts the autoscaler there with a copy of the file. None
    where Ray was started without one, or the copy cannot be read. proc: the processes.
    """
    for directory in proc.iterdir():
        try:
            words = (directory / "cmdline").read_bytes().decode(errors="replace").split("\0")
        except OSError:  # ended, or no process
            continue
        options = dict(word.partition("=")[::2] for word in words)
        config = options.get("--autoscaling-config")
        if config and _is_same_gcs(options.get("--gcs-address", ""), gcs_address):
            try:
                settings = yaml.safe_load(Path(config).expanduser().read_text(encoding="utf-8"))
                return str(settings["cluster_name"])
            except (OSError, ValueError, yaml.YAMLError, KeyError, TypeError):
                return None
    return None


def _is_same_gcs(own: str, asked: str) -> bool:
    """Return whether two addresses are of one GCS, where `asked` may be that of the loopback."""
    host, _, port = asked.rpartition(":")
    is_loopback = host in ("127.0.0.1", "localhost", "[::1]")
    return own == asked or (is_loopback and own.rpartition(":")[2] == port)
