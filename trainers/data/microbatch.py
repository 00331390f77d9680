"""Cut a global batch into micro-batches for every rank: pure arithmetic.

The global batch is the unit of mathematics: which samples it holds is a function of (seed, epoch,
step) alone. How it is cut is the unit of performance: sorted by length, balanced over the
data-parallel ranks, and within a token budget. Every sample weighs 1 / (size of its global batch)
wherever it lands, so the weighted sum of micro-batch gradients is the gradient of the whole batch.
Gradient accumulation is not a setting: it follows.
"""

import itertools
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

from cluster.costmodel.layout import Layout

RowIndices = np.ndarray  # [n] int64 indices of samples

_GOLDEN = np.uint64(0x9E3779B97F4A7C15)


@dataclass(frozen=True)
class MicroBatch:
    """Samples computed together, and the weight of each in the loss of the global batch."""

    rows: RowIndices
    weight: float


@dataclass(frozen=True)
class CutCost:
    """The cost of a micro-batch, in units of one token's linear layers.

    overhead: tokens that could be computed in the time one more micro-batch costs for kernel
    launches and for adding to the weight gradients.
    hidden_size: attention adds length / (6 hidden_size) a token, from 24 s h^2 + 4 s^2 h FLOPs a
    layer (Narayanan et al. 2021, arXiv 2104.04473, appendix). 0: attention is not counted.
    """

    overhead: float = 0.0
    hidden_size: int = 0

    def sample_costs(self, lengths: np.ndarray) -> np.ndarray:
        """Return the cost [n] of samples of `lengths` [n] computed without padding."""
        tokens = lengths.astype(np.float64)
        return tokens * (1 + tokens / (6 * self.hidden_size)) if self.hidden_size else tokens


def steps_per_epoch(num_samples: int, global_size: int) -> int:
    """Count the optimizer steps of an epoch; the last global batch may be smaller."""
    return -(-num_samples // global_size)


def epoch_order(seed: int, epoch: int, num_samples: int) -> RowIndices:
    """Return the order [n] of all samples in `epoch`: a function of its arguments alone."""
    generator = np.random.Generator(np.random.Philox(key=[seed, epoch]))
    return generator.permutation(num_samples)


def global_batch_rows(ordered: RowIndices, step_in_epoch: int, global_size: int) -> RowIndices:
    """Return the samples of one optimizer step, given the `epoch_order` of its epoch."""
    return ordered[step_in_epoch * global_size : (step_in_epoch + 1) * global_size]


@dataclass(frozen=True)
class CutConstraints:
    """Constraints of a layout on the number of micro-batches of a rank.

    min_count: the least, where there are samples enough, so that a pipeline fills. multiple: what
    divides it, as interleaved schedules need. equal_counts: the same on every rank, because each
    gathers parameters from the others.
    """

    min_count: int = 1
    multiple: int = 1
    equal_counts: bool = False

    @classmethod
    def for_layout(cls, layout: Layout) -> "CutConstraints":
        """Return the constraints of a resolved layout."""
        return cls(
            min_count=layout.num_stages,
            multiple=layout.pp if layout.stages_per_rank > 1 else 1,
            equal_counts=layout.dp_shard > 1,
        )


def cut_batch(
    rows: RowIndices,
    lengths: np.ndarray,
    num_ranks: int,
    token_budget: int,
    cost: CutCost,
    constraints: CutConstraints = CutConstraints(),
) -> list[list[MicroBatch]]:
    """Cut a global batch into a list of micro-batches for each of `num_ranks`.

    rows: [n] the samples; lengths: [n] their token counts. Padded tokens of a micro-batch stay
    within `token_budget` unless a single sample exceeds it. A rank left without samples gets one
    sample of weight 0, so that every rank takes part in the collectives of the step.
    """
    longest_first = np.argsort(-lengths, kind="stable")
    rows, lengths = rows[longest_first], lengths[longest_first]
    weight = 1.0 / len(rows)
    ranks = []
    for start, stop in _balance_ranks(cost.sample_costs(lengths), num_ranks):
        if start == stop:
            ranks.append([MicroBatch(rows[-1:], 0.0)])
            continue
        edges = start + _cheapest_cut(lengths[start:stop], token_budget, cost.overhead)
        spans = itertools.pairwise(edges)
        ranks.append([MicroBatch(rows[a:b], weight) for a, b in spans])
    most = max(map(len, ranks)) if constraints.equal_counts else 0
    return [
        _apply_constraints(share, max(most, constraints.min_count), constraints, rows[-1:])
        for share in ranks
    ]


def _apply_constraints(
    share: list[MicroBatch], count: int, constraints: CutConstraints, shortest: RowIndices
) -> list[MicroBatch]:
    """Cut `share` further, and fill it up with samples of weight 0, to meet the constraints."""
    count += -count % constraints.multiple
    share = _halve_largest(share, count)
    lacking = count - len(share) if constraints.equal_counts else -len(share) % constraints.multiple
    return share + [MicroBatch(shortest, 0.0)] * lacking


def _halve_largest(share: list[MicroBatch], count: int) -> list[MicroBatch]:
    """Halve the largest micro-batches until there are `count`, or none can be halved."""
    share = list(share)
    while len(share) < count:
        largest = max(range(len(share)), key=lambda index: len(share[index].rows))
        rows, weight = share[largest].rows, share[largest].weight
        if len(rows) < 2:
            break
        half = len(rows) // 2
        share[largest : largest + 1] = [
            MicroBatch(rows[:half], weight),
            MicroBatch(rows[half:], weight),
        ]
    return share


def count_tokens(micro_batches: Iterable[MicroBatch], lengths: np.ndarray) -> tuple[int, int]:
    """Count the (real, computed) tokens of micro-batches, given the `lengths` of all samples."""
    real = computed = 0
    for micro_batch in micro_batches:
        tokens = lengths[micro_batch.rows]
        real += int(tokens.sum())
        computed += int(tokens.max()) * len(tokens)
    return real, computed


def _balance_ranks(costs: np.ndarray, num_ranks: int) -> list[tuple[int, int]]:
    """Return contiguous spans of samples, one a rank, whose most expensive is as cheap as can be.

    The linear partition problem, by bisection on the bound: spans filled greedily up to a bound
    reach the end if and only if any partition stays within it.
    """
    if num_ranks == 1:
        return [(0, len(costs))]
    ends = np.concatenate([[0.0], np.cumsum(costs)])
    low, high = max(float(costs.max()), ends[-1] / num_ranks), float(ends[-1])
    for _ in range(30):
        bound = (low + high) / 2
        if _fill_spans(ends, bound, num_ranks)[-1] == len(costs):
            high = bound
        else:
            low = bound
    edges = _fill_spans(ends, high, num_ranks)
    return list(itertools.pairwise(edges))


def _fill_spans(ends: np.ndarray, bound: float, num_ranks: int) -> list[int]:
    """Return the edges of spans filled one after another up to `bound`."""
    edges = [0]
    for _ in range(num_ranks):
        # The last bits of a sum must not push a sample out of a span that is exactly full.
        limit = ends[edges[-1]] + bound * (1 + 1e-12)
        edges.append(int(np.searchsorted(ends, limit, side="right")) - 1)
    return edges


def _cheapest_cut(lengths: np.ndarray, token_budget: int, overhead: float) -> np.ndarray:
    """Return the edges of the cut of `lengths` (descending) that costs the fewest padded tokens.

    Dynamic programming from the end: best[i], the least cost of samples i and after, is the minimum
    over k of k * lengths[i] + overhead + best[i + k]. Lengths descend, so the first sample of a
    micro-batch is its longest, which every other one is padded to: k samples from i on cost
    k * lengths[i] tokens whatever the others are. In sorted order the best micro-batches are
    contiguous, so no other grouping has to be tried, and overhead alone keeps k above 1.
    """
    n = len(lengths)
    best = np.zeros(n + 1)
    size = np.ones(n, dtype=np.int64)
    for i in range(n - 1, -1, -1):
        # The token budget bounds k, but a single sample is computed even if it exceeds it.
        most = min(max(1, token_budget // int(lengths[i])), n - i)
        costs = np.arange(1, most + 1) * lengths[i] + best[i + 1 : i + 1 + most]
        size[i] = int(np.argmin(costs)) + 1
        best[i] = costs[size[i] - 1] + overhead
    edges = [0]
    while edges[-1] < n:
        edges.append(edges[-1] + int(size[edges[-1]]))
    return np.array(edges)


def sample_keys(seed: int, epoch: int, rows: np.ndarray) -> np.ndarray:
    """Return a key for each sample, [n] int64: splitmix64 over (seed, epoch, row).

    They seed what is random about a sample: its dropout masks and its masked tokens.
    """
    with np.errstate(over="ignore"):
        stream = splitmix(np.array([(seed << 32) + epoch], dtype=np.uint64))
        keys: np.ndarray = splitmix(stream + rows.astype(np.uint64) * _GOLDEN)
        return keys.view(np.int64)


def splitmix(x: np.ndarray) -> np.ndarray:
    """Hash uint64 numbers: one step of splitmix64 (Steele et al. 2014) from each."""
    x = x + _GOLDEN
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    mixed: np.ndarray = x ^ (x >> np.uint64(31))
    return mixed
