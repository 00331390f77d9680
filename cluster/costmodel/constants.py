"""The few constants of the cost model, what each means, and where it comes from.

Those of `Constants` are fitted to published throughput of BERT by benchmarks/planner.py, which also
predicts each accelerator without its own rows and so knows the error. The rest stand in books and
papers. A probe (trainers/planning/probe.py) replaces `speed` for the machine at hand. Knows no
torch.
"""

from __future__ import annotations

from dataclasses import dataclass

# Of the peak, what a large product of matrices reaches at best: the mean of 0.869 (A100 SXM), 0.811
# (A100 PCIe), 0.803 (H100 SXM) and 0.776 (B200) (stas00/ml-engineering, compute/accelerator).
SUSTAINED = 0.82
# Of memory bandwidth, for transfers of 100 MB (Calculon, systems/a100_80g.json).
MEMORY_SHARE = 0.9
# Of a network card's rate in a collective: 0.9 (Calculon); EFA of p4d: 340 of 400 Gb/s (stas00).
NETWORK_SHARE = 0.9
# Of NVLink each way in a collective: 235 of 300 GB/s on A100, 396 of 450 on H200 (stas00).
LINK_SHARE = 0.8
# Seconds that a message needs besides its bytes, inside a node and across (Calculon).
NEAR_LATENCY, FAR_LATENCY = 10e-6, 20e-6
# Messages of an inter-node all-reduce that wait for one another, times log2 of the nodes: NCCL's
# trees, over the buckets that gradients are cut into.
FAR_ROUNDS = 20
# Share of backward that communication may hide behind and never does: the first bucket's wait.
NEVER_HIDDEN = 0.1
# Operations in 8 bits cost half of the energy of 16 bits, TF32 twice.
ENERGY_OF_PRECISION = {"tf32": 2.0, "fp16": 1.0, "bf16": 1.0, "fp8": 0.5, "int8": 0.5}
# Reads and writes of the attention scores where attention is not fused: product, scaling, mask,
# softmax and dropout each read and write them, and softmax leaves fp32.
SCORE_PASSES = 12


@dataclass(frozen=True)
class Constants:
    """What is fitted.

    flops_per_joule: of 16-bit products of matrices on TSMC's 7 nm, at a device's power limit.
    wave: of a wave of 128 x 128 tiles over all multiprocessors, the share lost at each product.
    launch_seconds: what a kernel costs besides its work. attention: rate of the attention core
    against other products, whose heads of 64 fill a tile by half. shared_link: of PCIe each way, in
    a collective of several cards behind shared roots. overlap: share of backward that gradients
    travel behind. waiting: longer step for each doubling of devices, since the slowest is waited
    for. passes_*: hidden-size numbers read and written a token and layer in forward, outside of
    products, by kinds of software. systolic: rate of Neuron cores against SUSTAINED.
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
    # Not fitted to published rows, which do not tell them; a probe does. embeddings: what they move
    # in layers' worth of traffic: three lookups, a norm and a dropout. fresh_seconds: what a
    # micro-batch of another shape than those before costs besides: a processor's libraries write
    # code for it. speed: of the accelerator at hand against the model.
    embeddings: float = 0.5
    fresh_seconds: float = 0.0
    speed: float = 1.0


@dataclass(frozen=True)
class Stack:
    """Software: what it fuses, and what it keeps in 16 bits.

    passes: which constant. fused_attention: scores never reach memory. narrow: elementwise work in
    16 bits too; else autocast keeps half of it in fp32. kernels: of a layer's forward. captured:
    launches are replayed (CUDA graphs, compiled engines), so that they are small. sharded:
    optimizer states are divided over the devices of a node. on_chip: activations of inference stay
    in on-chip memory. gradient_bytes: of an exchanged gradient in mixed precision.
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
STACKS = {
    stack.name: stack
    for stack in (
        TORCH,
        Stack("torch-unfused", "passes_eager", False, False, 40, False),
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
