"""Spot machines that do not come, replaced by machines on demand.

Ray's autoscaler goes on asking for the kind whose min_workers are not met, and never turns to
another. So after `ray up` the machines are counted, and what is missing is moved from the spot kind
to the kind of the same instance type that is on demand.
"""

from __future__ import annotations

import copy
import time
from collections import Counter
from collections.abc import Callable, Mapping
from typing import Any

from cluster.launch import aws
from cluster.launch.aws import Account

PATIENCE_SECONDS, EVERY_SECONDS = 240.0, 10.0


def missing(
    settings: Mapping[str, Any],
    account: Account,
    say: Callable[[str], None],
    wait: Callable[[float], None] = time.sleep,
) -> dict[str, int]:
    """Spot machines that did not come in time, by kind; empty where all came, or none is wanted."""
    wanted = {
        kind: int(node["min_workers"])
        for kind, node in settings["available_node_types"].items()
        if is_spot(node) and node.get("min_workers")
    }
    waited, told = 0.0, -1
    while wanted:
        there = Counter(each.kind for each in aws.running(account, str(settings["cluster_name"])))
        short = {kind: most - there[kind] for kind, most in wanted.items() if there[kind] < most}
        come = sum(wanted.values()) - sum(short.values())
        if come != told:
            say(f"spot      {come} of {sum(wanted.values())} machines have come")
            told = come
        if not short or waited >= PATIENCE_SECONDS:
            return short
        wait(EVERY_SECONDS)
        waited += EVERY_SECONDS
    return {}


def moved(settings: Mapping[str, Any], short: Mapping[str, int]) -> dict[str, Any]:
    """The settings with what is short asked for on demand, as far as a kind for that has room."""
    made = copy.deepcopy(dict(settings))
    kinds = made["available_node_types"]
    for name, count in short.items():
        twin = _twin(made, name)
        if twin is None:
            continue
        room = kinds[twin].get("max_workers", count) - kinds[twin].get("min_workers", 0)
        number = min(count, room)
        kinds[name]["min_workers"] -= number
        kinds[twin]["min_workers"] = kinds[twin].get("min_workers", 0) + number
    return made


def is_spot(kind: Mapping[str, Any]) -> bool:
    """Whether a kind of machine is spot."""
    market = kind["node_config"].get("InstanceMarketOptions") or {}
    return bool(market.get("MarketType") == "spot")


def _twin(settings: Mapping[str, Any], name: str) -> str | None:
    """The kind on demand with the same instance type."""
    kinds = settings["available_node_types"]
    wanted = kinds[name]["node_config"]["InstanceType"]
    for other, kind in kinds.items():
        same = kind["node_config"]["InstanceType"] == wanted
        if same and other != settings["head_node_type"] and not is_spot(kind):
            return str(other)
    return None
