"""A cluster file from a row of a plan: the shipped file for that hardware, with its machines.

Machines of EC2 become aws-gpu.yaml or aws-trainium.yaml with that one kind; owned ones become
onprem.yaml, whose addresses the user fills in. Knows no prices but the offer's.
"""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

from cluster.hardware.catalog import table
from cluster.planning.plan import Offer, hours
from cluster.settings import SettingsError, read_yaml
from cluster.spec import SHIPPED, dump

KINDS = ("cuda", "neuron")
EXAMPLE = "192.0.2"  # RFC 5737: `check` asks for it to be filled in


def write(offer: Offer, recipe: str, path: Path) -> None:
    """Write the cluster file of an offer. Raises SettingsError where there is none, or a file."""
    if path.exists():
        raise SettingsError(f"--write {path}: is there already; name another file")
    template, settings = settings_of(offer)
    head = _head(offer, recipe, template, path)
    path.write_text("\n".join([*head, dump(settings)]), encoding="utf-8")


def settings_of(offer: Offer) -> tuple[str, dict[str, Any]]:
    """The shipped file that an offer's comes from, and its settings."""
    machine = offer.machine
    if machine.accelerator.kind not in KINDS:
        raise SettingsError(
            f"--write: {machine.name}: no cluster file is made for {machine.accelerator.name}; "
            "pick a row with GPUs or Trainium, or write it by hand from cluster/onprem.yaml"
        )
    if not machine.region or machine.ownership is not None:
        return "onprem.yaml", _onprem(offer)
    if machine.name not in {row["instance"] for row in table("instances")}:
        raise SettingsError(
            f"--write: {machine.name}: is no instance of EC2; give it `owned:` in --owned FILE, "
            "and a file for machines of your own is made"
        )
    template = "aws-gpu.yaml" if machine.accelerator.kind == "cuda" else "aws-trainium.yaml"
    return template, _aws(offer, template)


def _aws(offer: Offer, template: str) -> dict[str, Any]:
    """The shipped file with one kind: spot where a price of it is known, and on demand."""
    settings = copy.deepcopy(read_yaml(SHIPPED / template))
    machine, nodes = offer.machine, offer.nodes
    name = f"bertha-{machine.name.replace('.', '-')}"
    kinds, head = settings["available_node_types"], settings["head_node_type"]
    shipped = [kind for kind in kinds if kind != head]
    spot = next(kinds[kind] for kind in shipped if kind.endswith("-spot"))
    fixed = next(kinds[kind] for kind in shipped if not kind.endswith("-spot"))
    devices, is_neuron = machine.num_devices, machine.accelerator.kind == "neuron"
    resources = {"CPU": machine.vcpus, "neuron_cores": devices} if is_neuron else {}
    both = {f"{machine.name}-spot": spot, machine.name: fixed}
    for kind in both.values():
        kind |= {"min_workers": 0, "max_workers": nodes, "resources": resources}
        kind["node_config"] |= {"InstanceType": machine.name, "Placement": {"GroupName": name}}
    if machine.spot is None:
        del both[f"{machine.name}-spot"]
    next(iter(both.values()))["min_workers"] = nodes
    settings |= {"cluster_name": name, "max_workers": nodes}
    settings["provider"] |= {"region": machine.region, "security_group": {"GroupName": name}}
    settings["available_node_types"] = {head: kinds[head], **both}
    settings["metadata"] |= {"devices_per_node": devices, "min_workers": devices, **_named(offer)}
    if machine.on_demand is not None:
        settings["metadata"]["price_usd_per_hour"] = machine.on_demand
    return settings


def _onprem(offer: Offer) -> dict[str, Any]:
    """The shipped file with as many addresses to fill in as the offer has machines."""
    settings = read_yaml(SHIPPED / "onprem.yaml")
    machine = offer.machine
    settings["cluster_name"] = f"bertha-{machine.name.lower().replace(' ', '-')}"
    addresses = [f"{EXAMPLE}.{10 + number}" for number in range(offer.nodes)]
    settings["provider"] |= {"head_ip": addresses[0], "worker_ips": addresses[1:]}
    settings["metadata"] |= {
        "accelerator": machine.accelerator.kind,
        "devices_per_node": machine.num_devices,
        **_named(offer),
    }
    return settings


def _named(offer: Offer) -> dict[str, str]:
    """The accelerator, where a run finds it in the catalogue."""
    name = offer.machine.accelerator.name
    shipped = {row["accelerator"] for row in table("accelerators")}
    return {"accelerator_name": name} if name in shipped else {}


def _head(offer: Offer, recipe: str, template: str, path: Path) -> list[str]:
    """What the file is for, in comments: the plan's own words."""
    cost = offer.price.dollars
    told = "price not published" if cost is None else f"${cost:,.2f} on demand"
    name = path.name
    return [
        f"# {offer.nodes} x {offer.machine.label}, {offer.accelerators} x "
        f"{offer.machine.accelerator.name},",
        f"# as `python -m cluster plan {recipe}` quoted it: {hours(offer.seconds)}, {told}.",
        f"# Made from cluster/{template}, whose comments explain it.",
        f"#   python -m cluster check {name}",
        f"#   python -m cluster up {name}",
        f"#   ray job submit ... -- python -m trainers {recipe} --cluster {name}",
        f"#   python -m cluster down {name}",
    ]
