"""Write a cluster file for an offer of a plan, from the shipped file for that hardware.

EC2 instances become aws-gpu.yaml or aws-trainium.yaml with that one instance type; owned machines
become onprem.yaml, whose addresses the user fills in.
"""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

from cluster.hardware.catalog import read_table
from cluster.planning.plan import Offer, format_duration
from cluster.settings import SettingsError, read_cluster_yaml
from cluster.spec import SHIPPED_DIR
from cluster.yaml_schema import dump_yaml

KINDS = ("cuda", "neuron")
EXAMPLE_NETWORK = "192.0.2"  # RFC 5737: `check` asks to replace it


def write_cluster_file(offer: Offer, recipe: str, path: Path) -> None:
    """Write an offer's cluster file. Raises SettingsError if `path` exists or no file fits."""
    if path.exists():
        raise SettingsError(f"--write {path}: is there already; name another file")
    template, settings = cluster_settings(offer)
    head = _header_comments(offer, recipe, template, path)
    path.write_text("\n".join([*head, dump_yaml(settings)]), encoding="utf-8")


def cluster_settings(offer: Offer) -> tuple[str, dict[str, Any]]:
    """Return the name of the shipped file that fits an offer, and the settings filled in."""
    machine = offer.machine
    if machine.accelerator.kind not in KINDS:
        raise SettingsError(
            f"--write: {machine.name}: no cluster file is made for {machine.accelerator.name}; "
            "pick a row with GPUs or Trainium, or write it by hand from cluster/onprem.yaml"
        )
    if not machine.region or machine.ownership is not None:
        return "onprem.yaml", _onprem_settings(offer)
    if machine.name not in {row["instance"] for row in read_table("instances")}:
        raise SettingsError(
            f"--write: {machine.name}: is no instance of EC2; give it `owned:` in --owned FILE, "
            "and a file for machines of your own is made"
        )
    template = "aws-gpu.yaml" if machine.accelerator.kind == "cuda" else "aws-trainium.yaml"
    return template, _aws_settings(offer, template)


def _aws_settings(offer: Offer, template: str) -> dict[str, Any]:
    """Return the shipped file with one instance type, on demand and where priced as spot."""
    settings = copy.deepcopy(read_cluster_yaml(SHIPPED_DIR / template))
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
    settings["metadata"] |= {
        "devices_per_node": devices,
        "min_workers": devices,
        **_accelerator_metadata(offer),
    }
    if machine.on_demand is not None:
        settings["metadata"]["price_usd_per_hour"] = machine.on_demand
    return settings


def _onprem_settings(offer: Offer) -> dict[str, Any]:
    """Return the shipped file with an address to fill in for each machine of the offer."""
    settings = read_cluster_yaml(SHIPPED_DIR / "onprem.yaml")
    machine = offer.machine
    settings["cluster_name"] = f"bertha-{machine.name.lower().replace(' ', '-')}"
    addresses = [f"{EXAMPLE_NETWORK}.{10 + number}" for number in range(offer.nodes)]
    settings["provider"] |= {"head_ip": addresses[0], "worker_ips": addresses[1:]}
    settings["metadata"] |= {
        "accelerator": machine.accelerator.kind,
        "devices_per_node": machine.num_devices,
        **_accelerator_metadata(offer),
    }
    return settings


def _accelerator_metadata(offer: Offer) -> dict[str, str]:
    """Return the metadata that names the accelerator, if the shipped catalog has it."""
    name = offer.machine.accelerator.name
    shipped = {row["accelerator"] for row in read_table("accelerators")}
    return {"accelerator_name": name} if name in shipped else {}


def _header_comments(offer: Offer, recipe: str, template: str, path: Path) -> list[str]:
    """Return comments that say what the file is for."""
    cost = offer.price.dollars
    price = "price not published" if cost is None else f"${cost:,.2f} on demand"
    name = path.name
    return [
        f"# {offer.nodes} x {offer.machine.label}, {offer.accelerators} x "
        f"{offer.machine.accelerator.name},",
        f"# as `bertha plan {recipe}` quoted it: {format_duration(offer.seconds)}, {price}.",
        f"# Made from cluster/{template}, whose comments explain it.",
        f"#   bertha check {name}",
        f"#   bertha up {name}",
        f"#   ray job submit ... -- python -m bertha train {recipe} --cluster {name}",
        f"#   bertha down {name}",
    ]
