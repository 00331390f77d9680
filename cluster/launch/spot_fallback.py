"""Replace spot instances that do not come with on-demand ones.

Ray's autoscaler keeps asking for the node type whose min_workers are not met, and never tries
another. So after `ray up` the instances are counted, and the missing ones are moved from the spot
type to the on-demand type of the same instance type.
"""

import copy
import time
from collections import Counter
from collections.abc import Callable, Mapping
from typing import Any

from cluster.launch import aws
from cluster.launch.aws import AwsAccount

TIMEOUT_SECONDS, POLL_SECONDS = 240.0, 10.0


def wait_for_spot(
    settings: Mapping[str, Any], account: AwsAccount, log: Callable[[str], None]
) -> dict[str, int]:
    """Wait for the spot instances; return how many are missing after the timeout, by node type."""
    wanted = {
        kind: int(node["min_workers"])
        for kind, node in settings["available_node_types"].items()
        if is_spot(node) and node.get("min_workers")
    }
    cluster, waited, last_logged = str(settings["cluster_name"]), 0.0, -1
    while wanted:
        present = Counter(each.node_type for each in aws.running_instances(account, cluster))
        missing = {kind: n - present[kind] for kind, n in wanted.items() if present[kind] < n}
        arrived = sum(wanted.values()) - sum(missing.values())
        if arrived != last_logged:
            log(f"spot      {arrived} of {sum(wanted.values())} machines have come")
            last_logged = arrived
        if not missing or waited >= TIMEOUT_SECONDS:
            return missing
        time.sleep(POLL_SECONDS)
        waited += POLL_SECONDS
    return {}


def move_to_on_demand(settings: Mapping[str, Any], missing: Mapping[str, int]) -> dict[str, Any]:
    """Return the settings with missing spot instances on demand, within max_workers."""
    moved = copy.deepcopy(dict(settings))
    kinds = moved["available_node_types"]
    for name, count in missing.items():
        twin = _on_demand_twin(moved, name)
        if twin is None:
            continue
        room = kinds[twin].get("max_workers", count) - kinds[twin].get("min_workers", 0)
        number = min(count, room)
        kinds[name]["min_workers"] -= number
        kinds[twin]["min_workers"] = kinds[twin].get("min_workers", 0) + number
    return moved


def is_spot(kind: Mapping[str, Any]) -> bool:
    """Whether a node type is spot."""
    market = kind["node_config"].get("InstanceMarketOptions") or {}
    return bool(market.get("MarketType") == "spot")


def _on_demand_twin(settings: Mapping[str, Any], name: str) -> str | None:
    kinds = settings["available_node_types"]
    instance = kinds[name]["node_config"]["InstanceType"]
    for other, kind in kinds.items():
        same = kind["node_config"]["InstanceType"] == instance
        if same and other != settings["head_node_type"] and not is_spot(kind):
            return str(other)
    return None
