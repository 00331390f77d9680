"""Published throughput of BERT: workload, hardware and sequences a second.

One function for each table of benchmarks/data/. What a table omits (lengths of sequences, software,
precision) is here with its source.
"""

import csv
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from cluster.costmodel.constants import STACKS, SUSTAINED, Stack
from cluster.costmodel.model_shape import Head, ModelShape
from cluster.costmodel.step_time import StepWork
from cluster.hardware.catalog import Catalog
from cluster.hardware.types import GIGA, Accelerator, Topology

DATA = Path(__file__).parent / "data"

# Half of MLPerf's tokens at 512 are padding, and unpadded they are not computed (Krell et al. 2021,
# arXiv 2107.02027: twice as fast without). Were lengths uniform, a token would attend to 2/3
# of 512.
MEAN, ATTENDED = 256.0, 341.0
MASKED = 0.15 * MEAN
# NVIDIA/DeepLearningExamples trains phase 2 on batches of one 64-token bin of length each
# (scripts/run_pretraining.sh: bin_size_64), phase 1 unbinned: padded by half a bin.
BINNED, BINNED_ATTENDED = MEAN + 32, ATTENDED + 32
PREDICTED_TOKENS = {128: 20, 512: 80}  # its max_predictions_per_seq
# MLPerf evaluates 10,000 sequences after floor(0.05 (230.23 batch + 3,000,000) / 25,000) 25,000
# trained ones (training_policies, BERT).
EVALUATED = 10_000
ACTIVATIONS_FIT = 56  # sequences of 512 that an 80 GB device takes at once in these submissions
# Per-device batches of DeepLearningExamples on V100, where its table leaves them out (its README).
V100_BATCHES = {(128, "fp32"): 32, (128, "fp16"): 64, (512, "fp32"): 8, (512, "fp16"): 16}


@dataclass(frozen=True)
class PublishedRow:
    """One published figure, in sequences a second. copies: of the model, each with the work."""

    kind: str
    name: str
    work: StepWork
    topology: Topology
    stack: Stack
    throughput: float
    copies: int = 1
    note: str = ""

    @property
    def accelerator(self) -> str:
        """Name of the accelerator."""
        return self.topology.accelerator.name.removeprefix("a core of ")


def read_mlperf(catalog: Catalog, path: Path = DATA / "mlperf_bert.csv") -> Iterator[PublishedRow]:
    """Yield the rows of MLPerf Training: BERT-large, unpadded, evaluation included."""
    for row in _read_csv(path):
        if not row["seq_per_s_incl_eval"]:
            continue
        topology = _find_topology(catalog, row)
        if topology is None:
            continue
        accelerator, batch = topology.accelerator, int(row["global_batch"])
        precision = "fp8" if accelerator.name.startswith("H100") else accelerator.half_precision
        if accelerator.kind == "cuda" and precision == "bf16":
            precision = "fp16"
        trained = max(1, int(0.05 * (230.23 * batch + 3e6) // 25_000)) * 25_000
        work = StepWork(
            _bert_shape("large", "masked-lm"), batch, ACTIVATIONS_FIT, MEAN, ATTENDED, MASKED
        )
        work = replace(work, precision=precision, optimizer="lamb", eval_ratio=EVALUATED / trained)
        stack, note = STACKS["mlperf"], ""
        if accelerator.kind == "cpu":
            stack = STACKS["torch-unfused"]
        if row["system"].endswith("baseline"):  # Hugging Face's BERT: dense, all tokens scored
            stack = STACKS["torch-unfused"]
            work = replace(work, tokens=512.0, attended_tokens=512.0, masked_tokens=512.0)
        if row.get("division") == "open":
            note = "open division: model or method may differ"
        yield PublishedRow(
            "mlperf",
            row["system"],
            work,
            topology,
            stack,
            float(row["seq_per_s_incl_eval"]),
            note=note,
        )


def read_training(
    catalog: Catalog, path: Path = DATA / "bert_training_throughput.csv"
) -> Iterator[PublishedRow]:
    """Yield the rows of NVIDIA's and AWS's tables: pretraining, fine-tuning, and inference."""
    for row in _read_csv(path):
        accelerator = _find_accelerator(catalog, row["hardware"])
        if accelerator is None:
            continue
        nodes, length = int(row["n_nodes"]), int(row["seq_len"])
        near = int(row["n_accel"]) // nodes
        work, note = _training_work(row, accelerator)
        stack = STACKS["neuron" if accelerator.kind == "neuron" else "deeplearning-examples"]
        name = f"{row['workload']} s{length} {work.precision}"
        topology = Topology(accelerator, near, nodes, _assume_network(accelerator, near))
        published = PublishedRow(
            "training", name, work, topology, stack, float(row["seq_per_s"]), note=note
        )
        yield replace(published, note=_flag_not_dense(published, length) or note)


def _training_work(row: Mapping[str, str], accelerator: Accelerator) -> tuple[StepWork, str]:
    """Return (the work of a row, a note on its sequences)."""
    length, devices = int(row["seq_len"]), int(row["n_accel"])
    precision, pretrains = row["precision"].split("+")[0], "SQuAD" not in row["workload"]
    neuron = accelerator.kind == "neuron"
    micro = row["microbatch_per_device"] or V100_BATCHES.get((length, precision), 8)
    micro_batch = int(micro) * accelerator.cores  # each with a copy
    tokens, attended, note = float(length), float(length), ""
    if pretrains and length == 512 and not neuron:
        tokens, attended, note = BINNED, BINNED_ATTENDED, "sequences in bins of 64"
    work = StepWork(
        _bert_shape(
            "large" if "large" in row["workload"] else "base",
            "masked-lm" if pretrains else "classification",
        ),
        16384 if neuron else _global_batch(row, pretrains, micro_batch, devices),
        micro_batch,
        tokens,
        attended,
        float(PREDICTED_TOKENS.get(length, 0)) if pretrains else 0.0,
        precision,
        "adamw" if "AdamW" in row["workload"] or not pretrains else "lamb",
        trains="inference" not in row["workload"],
    )
    return work, note


def read_serving(
    catalog: Catalog, path: Path = DATA / "bert_serving_throughput.csv"
) -> Iterator[PublishedRow]:
    """Yield the rows of TensorRT's and Neuron's tables: batches of one length, one by one."""
    for row in _read_csv(path):
        accelerator = _find_accelerator(catalog, row["hardware"])
        if accelerator is None:
            continue
        neuron, copies = accelerator.kind == "neuron", accelerator.cores  # each with a copy
        size = next((s for s in ("distil", "large") if s in row["model"]), "base")
        length = float(row["seq_len"])
        precision = "bf16" if neuron else row["precision"]
        shape, batch = _bert_shape(size, "classification"), int(row["batch"])
        work = StepWork(shape, batch, float(batch), length, length, 0.0, precision, trains=False)
        topology = Topology(accelerator.core, 1, 1, None)
        stack = STACKS["neuron-engine" if neuron else "tensorrt"]
        name = f"{row['model']} s{row['seq_len']} b{row['batch']} {work.precision}"
        yield PublishedRow("serving", name, work, topology, stack, float(row["seq_per_s"]), copies)


def _find_topology(catalog: Catalog, row: Mapping[str, str]) -> Topology | None:
    """Return the topology of a submission, by its description and systems.csv."""
    accelerator = _find_accelerator(catalog, row["accelerator"])
    if accelerator is None:
        return None
    nodes = int(row["n_nodes"])
    devices = int(row["n_accel"]) or 2 * nodes  # sockets of a processor
    near = devices // nodes
    system = next((r for r in _read_csv(DATA / "systems.csv") if r["pattern"] in row["system"]), {})
    network = _assume_network(accelerator, near)
    if system.get("network_gbps_a_node"):
        network = float(system["network_gbps_a_node"]) * GIGA / 8
    if system.get("watts"):
        accelerator = replace(accelerator, watts=float(system["watts"]))
    if system.get("link_gb_per_s"):
        accelerator = replace(accelerator, link_rate=float(system["link_gb_per_s"]) * GIGA)
    bridged = "nvbridge" in row["system"].lower() or system.get("bridged") == "yes"
    return Topology(accelerator, near, nodes, network, bridged)


def _assume_network(accelerator: Accelerator, near: int) -> float:
    """Assume the bytes/s of a node's network: 200 or 400 Gb/s a device with links, else 100."""
    if accelerator.link == "pcie":
        return 100 * GIGA / 8
    return near * (400 if (accelerator.process_nm or 7) <= 5 else 200) * GIGA / 8


def _find_accelerator(catalog: Catalog, text: str) -> Accelerator | None:
    aliases = _read_csv(DATA / "aliases.csv")
    names = (r["accelerator"] for r in aliases if r["pattern"] in text.upper())
    name = next(names, None)
    return catalog.accelerators.get(name) if name else None


def _flag_not_dense(row: PublishedRow, length: int) -> str:
    """Return a note if dense sequences would need more than the sustained peak, or ""."""
    peak = row.topology.accelerator.peak_flops(row.work.precision)
    assert peak is not None
    flops = row.work.shape.forward_flops(length) * (3 if row.work.trains else 1)
    share = flops * row.throughput / row.topology.devices / peak
    return f"dense it would be {share:.0%} of the peak: not dense" if share > SUSTAINED else ""


def _global_batch(row: Mapping[str, str], pretrains: bool, micro: int, devices: int) -> int:
    """Return the sequences of a step; in pretraining by the schedules of You et al. 2020."""
    if not pretrains:
        return micro * devices
    return (65536 if row["seq_len"] == "128" else 32768) // 8 * devices


def _bert_shape(size: str, head: Head) -> ModelShape:
    """Return the shape of a published BERT; question answering has two numbers a token."""
    hidden, layers = {"large": (1024, 24), "base": (768, 12), "distil": (768, 6)}[size]
    types = 0 if size == "distil" else 2
    return ModelShape(
        hidden, layers, hidden // 64, 4 * hidden, 30522, 512, types, hidden, head, 2, cls_only=False
    )


def _read_csv(path: Path) -> list[dict[str, str]]:
    with path.open(encoding="utf-8", newline="") as lines:
        return list(csv.DictReader(lines))
