"""Decide what `metadata.accelerator: auto` means on this machine, once, before anything else is.

A run resolves its cluster here first; what comes after sees cpu, cuda, neuron or tpu. Looking costs
the import of torch, which the cluster package does without. Not run on a machine with a GPU.
"""

from dataclasses import dataclass

import torch

from cluster.hardware.catalog import load_catalog
from cluster.local_ray import is_submitted
from cluster.planning.devices import devices_of_cluster
from cluster.planning.this_machine import read_gpu_models
from cluster.settings import SettingsError
from cluster.spec import ClusterSpec


@dataclass(frozen=True)
class AcceleratorChoice:
    """A cluster whose accelerator is named, and a line that says what was found; often none."""

    cluster: ClusterSpec
    line: str = ""


def resolve_accelerator(cluster: ClusterSpec) -> AcceleratorChoice:
    """Return `cluster` with the accelerator that its runs train on.

    auto: cuda where torch can use a GPU of this machine; of rented machines their own kind; else
    cpu. Where the cluster is this machine alone, it has a worker for each GPU (none, if the file
    says 0), and name and memory of the GPUs fill in what the file leaves out. A cluster that is
    resolved already is returned as it is. Raises SettingsError where auto finds fewer GPUs than
    `min_workers`.
    """
    wanted = cluster.metadata.accelerator
    finds_gpu = cluster.provider == "local" and torch.cuda.is_available()
    if wanted == "auto" and not finds_gpu:
        kind = devices_of_cluster(cluster).topology.accelerator.kind
        return AcceleratorChoice(cluster.with_metadata(accelerator=kind), _unusable_gpu(cluster))
    if wanted == "auto":
        changed, count = cluster.with_metadata(accelerator="cuda"), ""
        if cluster.is_this_machine:
            changed = _describe_gpus(cluster, torch.cuda.device_count())
            count = f"{max(1, changed.num_workers)} x "
        found = f"device    {count}{torch.cuda.get_device_name()}: training on cuda"
        return AcceleratorChoice(changed, f"{found}; metadata.accelerator: cpu would not")
    if wanted == "cuda" and finds_gpu and cluster.is_this_machine:
        return AcceleratorChoice(_describe_gpus(cluster, None))
    return AcceleratorChoice(cluster)


def check_accelerator(cluster: ClusterSpec) -> None:
    """Raise SettingsError where a run on this machine alone asks for a GPU that torch cannot use.

    Of a job that was submitted to a cluster, Ray says what its machines have.
    """
    is_here = cluster.is_this_machine and not is_submitted()
    if is_here and cluster.device_kind == "cuda" and not torch.cuda.is_available():
        raise SettingsError(
            f"metadata.accelerator = 'cuda': torch {torch.__version__} can use no GPU of this "
            f"machine{_reason()}; set it to auto or cpu, or give the run a machine with one"
        )


def _describe_gpus(cluster: ClusterSpec, workers: int | None) -> ClusterSpec:
    """Return `cluster`, which is this machine, with the GPUs that torch finds in it.

    workers: one for each GPU; None for as many as the file says.
    """
    metadata, indices = cluster.metadata, range(torch.cuda.device_count())
    names = {torch.cuda.get_device_name(index) for index in indices}
    memory = min(torch.cuda.get_device_properties(index).total_memory for index in indices)
    known = load_catalog().find_device(names.pop()) if len(names) == 1 else None
    per_node = metadata.devices_per_node
    if workers is not None and per_node:  # 0 trains in the calling process, on the first GPU
        per_node = workers
    return cluster.with_metadata(
        accelerator="cuda",
        devices_per_node=per_node,
        accelerator_name=metadata.accelerator_name or (known.name if known else None),
        device_memory_gib=metadata.device_memory_gib or memory / 2**30,
    )


def _unusable_gpu(cluster: ClusterSpec) -> str:
    """Say that this machine has a GPU which torch cannot use, where its driver knows one."""
    if not cluster.is_this_machine or not read_gpu_models():
        return ""
    return (
        f"device    cpu: torch {torch.__version__} can use no GPU of this machine{_reason()}; "
        "training on the processor"
    )


def _reason() -> str:
    models = read_gpu_models()
    if not models:
        return ", and no NVIDIA driver is loaded"
    if torch.version.cuda is None:
        return f", which has {models[0]}: this torch was built without CUDA, install one with it"
    return f", which has {models[0]}: is it hidden by CUDA_VISIBLE_DEVICES, or its driver too old?"
