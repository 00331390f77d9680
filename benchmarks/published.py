"""Published throughput of BERT as values: what was computed, where, and how fast it was.

Each table of benchmarks/data/ is read by one function. What a table does not say stands here, with
where it is said: lengths of sequences, software, precision. Knows no predictions.
"""

import csv
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from cluster.costmodel.constants import STACKS, SUSTAINED, Stack
from cluster.costmodel.model_shape import Head, Shape
from cluster.costmodel.step_time import Work
from cluster.hardware.catalog import Catalogue
from cluster.hardware.types import GIGA, Accelerator, Place

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
class Row:
    """One published figure. copies: of the model on the place, each with the work."""

    kind: str
    name: str
    work: Work
    place: Place
    stack: Stack
    seen: float
    copies: int = 1
    note: str = ""

    @property
    def accelerator(self) -> str:
        """Whose row it is."""
        return self.place.accelerator.name.removeprefix("a core of ")


def mlperf(catalogue: Catalogue, path: Path = DATA / "mlperf_bert.csv") -> Iterator[Row]:
    """Rows of MLPerf Training: BERT-large, unpadded, whole systems, evaluation in the time."""
    for row in _read(path):
        if not row["seq_per_s_incl_eval"]:
            continue
        place = _system(catalogue, row)
        if place is None:
            continue
        accelerator, batch = place.accelerator, int(row["global_batch"])
        precision = "fp8" if accelerator.name.startswith("H100") else accelerator.half_precision
        if accelerator.kind == "cuda" and precision == "bf16":
            precision = "fp16"
        trained = max(1, int(0.05 * (230.23 * batch + 3e6) // 25_000)) * 25_000
        work = Work(_bert("large", "masked-lm"), batch, ACTIVATIONS_FIT, MEAN, ATTENDED, MASKED)
        work = replace(work, precision=precision, optimizer="lamb", evaluated=EVALUATED / trained)
        stack, note = STACKS["mlperf"], ""
        if accelerator.kind == "cpu":
            stack = STACKS["torch-unfused"]
        if row["system"].endswith("baseline"):  # Hugging Face's BERT: dense, all tokens scored
            stack = STACKS["torch-unfused"]
            work = replace(work, tokens=512.0, attended=512.0, masked=512.0)
        if row.get("division") == "open":
            note = "open division: model or method may differ"
        yield Row(
            "mlperf",
            row["system"],
            work,
            place,
            stack,
            _number(row, "seq_per_s_incl_eval"),
            note=note,
        )


def training(
    catalogue: Catalogue, path: Path = DATA / "bert_training_throughput.csv"
) -> Iterator[Row]:
    """Rows of NVIDIA's and AWS's own tables: pretraining, fine-tuning, and its inference."""
    for row in _read(path):
        accelerator = _accelerator(catalogue, row["hardware"])
        if accelerator is None:
            continue
        nodes, length = int(row["n_nodes"]), int(row["seq_len"])
        near = int(row["n_accel"]) // nodes
        work, note = _trained(row, accelerator)
        stack = STACKS["neuron" if accelerator.kind == "neuron" else "deeplearning-examples"]
        name = f"{row['workload']} s{length} {work.precision}"
        place = Place(accelerator, near, nodes, _cards(accelerator, near))
        found = Row("training", name, work, place, stack, _number(row, "seq_per_s"), note=note)
        yield replace(found, note=_impossible(found, length) or note)


def _trained(row: Mapping[str, str], accelerator: Accelerator) -> tuple[Work, str]:
    """(the work of a row of `training`, what is known of its sequences beyond the table)."""
    length, devices = int(row["seq_len"]), int(row["n_accel"])
    precision, pretrains = row["precision"].split("+")[0], "SQuAD" not in row["workload"]
    neuron = accelerator.kind == "neuron"
    micro = row["microbatch_per_device"] or V100_BATCHES.get((length, precision), 8)
    micro_batch = int(micro) * accelerator.cores  # each with a copy
    tokens, attended, note = float(length), float(length), ""
    if pretrains and length == 512 and not neuron:
        tokens, attended, note = BINNED, BINNED_ATTENDED, "sequences in bins of 64"
    work = Work(
        _bert(
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


def serving(
    catalogue: Catalogue, path: Path = DATA / "bert_serving_throughput.csv"
) -> Iterator[Row]:
    """Rows of TensorRT's and Neuron's tables: batches of one length, answered one after another."""
    for row in _read(path):
        accelerator = _accelerator(catalogue, row["hardware"])
        if accelerator is None:
            continue
        neuron, copies = accelerator.kind == "neuron", accelerator.cores  # each with a copy
        size = next((s for s in ("distil", "large") if s in row["model"]), "base")
        length = float(row["seq_len"])
        work = Work(_bert(size, "classification"), int(row["batch"]), float(row["batch"]), length,
                    length, 0.0, "bf16" if neuron else row["precision"], trains=False)  # fmt: skip
        place = Place(accelerator.core, 1, 1, None)
        stack = STACKS["neuron-engine" if neuron else "tensorrt"]
        name = f"{row['model']} s{row['seq_len']} b{row['batch']} {work.precision}"
        yield Row("serving", name, work, place, stack, _number(row, "seq_per_s"), copies)


def _system(catalogue: Catalogue, row: Mapping[str, str]) -> Place | None:
    """Where a submission ran, with what its description says beyond the accelerator's name."""
    accelerator = _accelerator(catalogue, row["accelerator"])
    if accelerator is None:
        return None
    nodes = int(row["n_nodes"])
    devices = int(row["n_accel"]) or 2 * nodes  # sockets of a processor
    near = devices // nodes
    known = next((r for r in _read(DATA / "systems.csv") if r["pattern"] in row["system"]), {})
    network = _cards(accelerator, near)
    if known.get("network_gbps_a_node"):
        network = float(known["network_gbps_a_node"]) * GIGA / 8
    if known.get("watts"):
        accelerator = replace(accelerator, watts=float(known["watts"]))
    if known.get("link_gb_per_s"):
        accelerator = replace(accelerator, link_rate=float(known["link_gb_per_s"]) * GIGA)
    bridged = "nvbridge" in row["system"].lower() or known.get("bridged") == "yes"
    return Place(accelerator, near, nodes, network, bridged)


def _cards(accelerator: Accelerator, near: int) -> float:
    """Bytes/s of a node's network where nobody says: 200 Gb/s a device with links, else 100."""
    if accelerator.link == "pcie":
        return 100 * GIGA / 8
    return near * (400 if (accelerator.process_nm or 7) <= 5 else 200) * GIGA / 8


def _accelerator(catalogue: Catalogue, text: str) -> Accelerator | None:
    aliases = _read(DATA / "aliases.csv")
    found = (r["accelerator"] for r in aliases if r["pattern"] in text.upper())
    name = next(found, None)
    return catalogue.accelerators.get(name) if name else None


def _impossible(row: Row, length: int) -> str:
    """Said where the row, were its sequences dense, would be above what its units can compute."""
    peak = row.place.accelerator.peak(row.work.precision)
    assert peak is not None
    of_one = row.work.shape.forward_flops(length) * (3 if row.work.trains else 1)
    share = of_one * row.seen / row.place.devices / peak
    return f"dense it would be {share:.0%} of the peak: not dense" if share > SUSTAINED else ""


def _global_batch(row: Mapping[str, str], pretrains: bool, micro: int, devices: int) -> int:
    """Sequences of a step: of the schedules of both phases on 8 devices (You et al. 2020)."""
    if not pretrains:
        return micro * devices
    return (65536 if row["seq_len"] == "128" else 32768) // 8 * devices


def _bert(size: str, head: Head) -> Shape:
    """The published BERTs; question answering is a head of two numbers a token."""
    hidden, layers = {"large": (1024, 24), "base": (768, 12), "distil": (768, 6)}[size]
    types = 0 if size == "distil" else 2
    return Shape(
        hidden, layers, hidden // 64, 4 * hidden, 30522, 512, types, hidden, head, 2, cls_only=False
    )


def _number(row: Mapping[str, str], name: str) -> float:
    return float(row[name])


def _read(path: Path) -> list[dict[str, str]]:
    with path.open(encoding="utf-8", newline="") as lines:
        return list(csv.DictReader(lines))
