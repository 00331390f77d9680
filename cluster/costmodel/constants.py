"""Constants of the cost model and where they come from.

Those of `Constants` are fitted to published throughput of BERT by benchmarks/planner.py, which also
predicts each accelerator without its own rows and so knows the error. The rest are published. A
probe (trainers/planning/probe.py) replaces some of them for this machine.
"""

from __future__ import annotations

from dataclasses import dataclass

# Share of the peak that a large matmul reaches at best: the mean of 0.869 (A100 SXM), 0.811
# (A100 PCIe), 0.803 (H100 SXM) and 0.776 (B200) (stas00/ml-engineering, compute/accelerator).
SUSTAINED = 0.82
# Share of memory bandwidth, for transfers of 100 MB (Calculon, systems/a100_80g.json).
MEMORY_SHARE = 0.9
# Share of a network interface's rate in a collective: 0.9 (Calculon); EFA of p4d: 340 of 400 Gb/s
# (stas00).
NETWORK_SHARE = 0.9
# Share of NVLink each way in a collective: 235 of 300 GB/s on A100, 396 of 450 on H200 (stas00).
LINK_SHARE = 0.8
# Latency of a message in seconds, inside a node and across nodes (Calculon).
NEAR_LATENCY, FAR_LATENCY = 10e-6, 20e-6
# Messages of an inter-node all-reduce that wait for one another, times log2 of the nodes: NCCL's
# trees, over the buckets that gradients are cut into.
FAR_ROUNDS = 20
# Share of backward that communication may hide behind and never does: the first bucket's wait.
NEVER_HIDDEN = 0.1
# Operations in 8 bits cost half of the energy of 16 bits, TF32 twice.
ENERGY_OF_PRECISION = {"tf32": 2.0, "fp16": 1.0, "bf16": 1.0, "fp8": 0.5, "int8": 0.5}
# Reads and writes of the attention scores where attention is not fused: matmul, scaling, mask,
# softmax and dropout each read and write them, and softmax leaves fp32.
SCORE_PASSES = 12


@dataclass(frozen=True)
class Constants:
    """Fitted constants.

    flops_per_joule: of 16-bit matmuls on TSMC's 7 nm, at a device's power limit. wave: share of a
    wave of 128 x 128 tiles over all multiprocessors that is lost at each matmul. launch_seconds:
    overhead of a kernel. attention: rate of the attention core against other matmuls, as heads of
    64 fill half a tile. shared_link: share of PCIe each way, in a collective of several cards
    behind shared root ports. overlap: share of backward that hides gradient communication. waiting:
    lengthening of a step for each doubling of devices, as all wait for the slowest. passes_*:
    hidden-size numbers read and written a token and layer in forward, outside of matmuls, by kind
    of software. systolic: rate of Neuron cores against SUSTAINED.
    """

    flops_per_joule: float
    wave: float
    launch_seconds: float
    attention: float
    shared_link: float
    overlap: float
    waiting: float
    passes_optimised: float
    passes_partly: float
    passes_eager: float
    passes_engine: float
    systolic: float
    # Fitted by a probe alone, as published rows do not depend on them. embeddings: their memory
    # traffic (three lookups, a norm, a dropout) over a layer's. fresh_seconds: cost of a shape not
    # met before: a CPU's libraries generate code for it. speed: of this accelerator against the
    # model.
    embeddings: float = 0.5
    fresh_seconds: float = 0.0
    speed: float = 1.0


@dataclass(frozen=True)
class Stack:
    """A software stack: what it fuses, and what it keeps in 16 bits.

    passes: name of its constant. fused_attention: scores never reach memory. narrow: elementwise
    work in 16 bits too; else autocast keeps half of it in fp32. kernels: of a layer's forward, a
    third of those of a training step where backward has others.
    captured: launches are replayed (CUDA graphs, compiled engines). sharded: optimizer states are
    divided over the devices of a node. on_chip: activations of inference stay in on-chip memory.
    gradient_bytes: of a gradient in collectives of mixed precision.
    """

    name: str
    passes: str
    fused_attention: bool
    narrow: bool
    kernels: int
    captured: bool
    sharded: bool = False
    on_chip: bool = False
    gradient_bytes: int = 4


TORCH = Stack("torch", "passes_eager", True, False, 30, False)
# Bertha's own training on CUDA, eager: texts end to end under flash attention, dropout keyed by
# sample. Its kernels are counted (tests/trainers/planning/test_kernels.py); its speed has not been
# measured on hardware, so its memory passes are those of PyTorch's published rows.
PACKED = Stack("packed", "passes_eager", True, False, 52, False)
STACKS = {
    stack.name: stack
    for stack in (
        TORCH,
        Stack("torch-unfused", "passes_eager", False, False, 40, False),
        PACKED,
        Stack("packed-unfused", "passes_eager", False, False, 76, False),
        Stack("mlperf", "passes_optimised", True, True, 10, True, sharded=True, gradient_bytes=2),
        Stack("deeplearning-examples", "passes_partly", False, False, 10, True, gradient_bytes=2),
        Stack("tensorrt", "passes_engine", True, True, 7, True),
        Stack("neuron", "passes_partly", False, True, 10, True, gradient_bytes=2),
        Stack("neuron-engine", "passes_engine", True, True, 7, True, on_chip=True),
    )
}


CALIBRATED = Constants(
    flops_per_joule=0.752e12,
    wave=0.248,
    launch_seconds=5.12e-6,
    attention=0.615,
    shared_link=0.527,
    overlap=0.0352,
    waiting=0.00681,
    passes_optimised=58.7,
    passes_partly=26.8,
    passes_eager=55.0,
    passes_engine=19.5,
    systolic=0.543,
)

# Nine in ten published rows lie within this factor of their prediction, each accelerator predicted
# without its own rows (benchmarks/results/planner.json).
NINE_IN_TEN = 1.24


def training_stack(kind: str) -> Stack:
    """Return the stack by which Bertha trains on a `kind` of device."""
    return PACKED if kind == "cuda" else TORCH
