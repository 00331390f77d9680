"""The extra time that a layout costs over computing alone, for ordering layouts.

What is faster by a few percent on real hardware only a probe can tell. Knows no torch.
"""

from cluster.job import Job
from cluster.layout import Layout
from cluster.memory import uses_fsdp

SELECTIVE_COST = 0.03  # of a step: elementwise operations run twice
COMPLEXITY = 0.02  # of a step for each further kind of parallelism: what no formula counts


def cost(job: Job, layout: Layout, token_budget: int) -> float:
    """Extra time of a step as a share of computing alone.

    Recomputed FLOPs; bytes moved times what a device computes meanwhile; the pipeline's bubble
    (p - 1) / m (Narayanan et al. 2021, arXiv 2104.04473, 2.2.1); a little for each kind of
    parallelism. An all-reduce of n bytes over N ranks moves 2 n (N - 1) / N of each, first inside
    nodes and then a part each across; gather and scatter half of that each. FSDP gathers twice and
    scatters once; tensor parallel reduces the hidden states of each layer four times, six with
    recompute; half of what data-parallel ranks exchange hides behind backward.
    """
    shape, regime = job.shape, job.regime(layout, token_budget)
    s, width = job.max_length, 4 if job.precision == "fp32" else 2
    samples = regime.sequences * regime.num_micro_batches
    masked, (near_rate, far_rate) = job.masked, job.flops_a_byte
    ideal = samples * shape.training_flops(s, masked) / (layout.tp * layout.pp)
    again = samples * shape.recomputed_flops(s, layout.recompute) / (layout.tp * layout.pp)
    held = shape.num_parameters / (layout.tp * layout.pp)
    inside = layout.tp * layout.dp_shard <= job.devices_per_node
    rate = near_rate if inside else far_rate
    moved = 0.0
    if uses_fsdp(layout):
        gathers = 2 * width * regime.num_micro_batches + 4 * regime.num_micro_batches
        moved += 0.5 * gathers * held * _ring(layout.dp_shard) * rate
    copies = layout.dp // layout.dp_shard
    if not uses_fsdp(layout) and shape.head == "classification":
        held -= shape.vocab_size * shape.embedding_size  # only rows looked up travel
    beside = max(1, job.devices_per_node // (layout.tp * layout.dp_shard))  # copies in a node
    beside = min(copies, beside)
    per_byte = _ring(beside) * near_rate + _ring(copies // beside) * far_rate / beside
    moved += 0.5 * 2 * 4 * held / layout.dp_shard * per_byte
    hidden = samples * s * shape.hidden_size * width
    sums = 6 if layout.recompute == "full" else 4
    layers = shape.num_layers / layout.pp
    moved += sums * layers * 2 * hidden * _ring(layout.tp) * near_rate
    if layout.pp > 1:
        edges = 2 * 2 * samples * s * shape.hidden_size  # fp32, to and fro
        moved += edges * (far_rate if _spans_nodes(job) else near_rate)
    bubble = (layout.pp - 1) / regime.num_micro_batches / layout.stages_per_rank
    kinds = (layout.dp_shard > 1) + 2 * (layout.tp > 1) + 3 * (layout.pp > 1)
    kinds += layout.sequence_parallel
    small = job.overhead_tokens * (1 / token_budget - 1 / job.token_budget)
    extra = SELECTIVE_COST if layout.recompute == "selective" else 0.0
    return (again + moved) / ideal + bubble + extra + small + COMPLEXITY * kinds


def _spans_nodes(job: Job) -> bool:
    return job.num_devices > job.devices_per_node


def _ring(ranks: int) -> float:
    """Share of a buffer that a rank sends in one half of an all-reduce over `ranks`."""
    return (ranks - 1) / ranks
