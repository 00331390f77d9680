"""One global batch, cut into micro-batches for every rank: pure arithmetic.

The global batch is the unit of mathematics: which samples it holds is a function of (seed, epoch,
step) alone. How it is cut is the unit of performance: sorted by length, balanced over the
data-parallel ranks, and within a token budget. Every sample weighs 1 / (size of its global batch)
wherever it lands, so the weighted sum of micro-batch gradients is the gradient of the whole batch.
Gradient accumulation is not a setting: it follows. Knows no torch.
"""

import itertools
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

from cluster.costmodel.layout import Layout

Rows = np.ndarray  # [n] int64 indices of samples


@dataclass(frozen=True)
class MicroBatch:
    """Samples computed together, and what each one weighs in the loss of the global batch."""

    rows: Rows
    weight: float


@dataclass(frozen=True)
class Cost:
    """What a micro-batch costs, in units of one token's linear layers.

    overhead: tokens that one more micro-batch is worth: launches, and writing weight gradients.
    hidden_size: attention adds length / (6 hidden_size) a token, from 24 s h^2 + 4 s^2 h FLOPs a
    layer (Narayanan et al. 2021, arXiv 2104.04473, appendix). 0: attention is not counted.
    """

    overhead: float = 0.0
    hidden_size: int = 0

    def of_samples(self, lengths: np.ndarray) -> np.ndarray:
        """Cost [n] of samples of `lengths` [n] computed without padding."""
        tokens = lengths.astype(np.float64)
        return tokens * (1 + tokens / (6 * self.hidden_size)) if self.hidden_size else tokens


def steps_per_epoch(num_samples: int, global_size: int) -> int:
    """Optimizer steps that see every sample once; the last global batch may be smaller."""
    return -(-num_samples // global_size)


def order(seed: int, epoch: int, num_samples: int) -> Rows:
    """The order [n] of all samples in `epoch`: a function of its arguments alone."""
    generator = np.random.Generator(np.random.Philox(key=[seed, epoch]))
    return generator.permutation(num_samples)


def global_batch(ordered: Rows, step_in_epoch: int, global_size: int) -> Rows:
    """The samples of one optimizer step, given the `order` of its epoch."""
    return ordered[step_in_epoch * global_size : (step_in_epoch + 1) * global_size]


@dataclass(frozen=True)
class Demands:
    """What a layout demands of a cut beside speed.

    at_least: micro-batches a rank, where samples allow it, so that a pipeline fills. multiple: what
    divides their number, as interleaved schedules need. alike: every rank computes as many, because
    each gathers parameters from the others.
    """

    at_least: int = 1
    multiple: int = 1
    alike: bool = False

    @classmethod
    def of(cls, layout: Layout) -> "Demands":
        """What a resolved layout demands."""
        return cls(
            at_least=layout.num_stages,
            multiple=layout.pp if layout.stages_per_rank > 1 else 1,
            alike=layout.dp_shard > 1,
        )


def cut(
    rows: Rows,
    lengths: np.ndarray,
    num_ranks: int,
    token_budget: int,
    cost: Cost,
    demands: Demands = Demands(),
) -> list[list[MicroBatch]]:
    """Cut a global batch: a list of micro-batches for each of `num_ranks`.

    rows: [n] the samples; lengths: [n] their token counts. Padded tokens of a micro-batch stay
    within `token_budget` unless a single sample exceeds it. A rank left without samples gets one
    sample of weight 0, so that every rank takes part in the collectives of the step.
    """
    longest_first = np.argsort(-lengths, kind="stable")
    rows, lengths = rows[longest_first], lengths[longest_first]
    weight = 1.0 / len(rows)
    ranks = []
    for start, stop in _balance(cost.of_samples(lengths), num_ranks):
        if start == stop:
            ranks.append([MicroBatch(rows[-1:], 0.0)])
            continue
        edges = start + _cheapest_cut(lengths[start:stop], token_budget, cost.overhead)
        spans = itertools.pairwise(edges)
        ranks.append([MicroBatch(rows[a:b], weight) for a, b in spans])
    together = max(map(len, ranks)) if demands.alike else 0
    return [_met(share, max(together, demands.at_least), demands, rows[-1:]) for share in ranks]


def _met(share: list[MicroBatch], count: int, demands: Demands, shortest: Rows) -> list[MicroBatch]:
    """`share` cut further, and filled up with a sample of weight 0, to meet `demands`."""
    count += -count % demands.multiple
    share = _split(share, count)
    lacking = count - len(share) if demands.alike else -len(share) % demands.multiple
    return share + [MicroBatch(shortest, 0.0)] * lacking


def _split(share: list[MicroBatch], count: int) -> list[MicroBatch]:
    """`share` with its largest micro-batches halved until there are `count`, or none can be."""
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


def padding_share(micro_batches: Iterable[MicroBatch], lengths: np.ndarray) -> tuple[int, int]:
    """(real, computed) tokens of micro-batches, given the `lengths` of all samples."""
    real = computed = 0
    for micro_batch in micro_batches:
        of_rows = lengths[micro_batch.rows]
        real += int(of_rows.sum())
        computed += int(of_rows.max()) * len(of_rows)
    return real, computed


def _balance(costs: np.ndarray, num_ranks: int) -> list[tuple[int, int]]:
    """Contiguous spans of samples, one a rank, whose dearest is as cheap as can be.

    The linear partition problem, by bisection on the bound.
    """
    if num_ranks == 1:
        return [(0, len(costs))]
    ends = np.concatenate([[0.0], np.cumsum(costs)])
    low, high = max(float(costs.max()), ends[-1] / num_ranks), float(ends[-1])
    for _ in range(30):
        bound = (low + high) / 2
        if _fill(ends, bound, num_ranks)[-1] == len(costs):
            high = bound
        else:
            low = bound
    edges = _fill(ends, high, num_ranks)
    return list(itertools.pairwise(edges))


def _fill(ends: np.ndarray, bound: float, num_ranks: int) -> list[int]:
    """Edges of spans filled one after another up to `bound`."""
    edges = [0]
    for _ in range(num_ranks):
        limit = ends[edges[-1]] + bound * (1 + 1e-12)
        edges.append(int(np.searchsorted(ends, limit, side="right")) - 1)
    return edges


def _cheapest_cut(lengths: np.ndarray, token_budget: int, overhead: float) -> np.ndarray:
    """Edges of the cut of `lengths` (descending) that costs the fewest padded tokens.

    Dynamic programming from the end: best[i] = min over k of k * lengths[i] + overhead + best[i+k].
    """
    n = len(lengths)
    best = np.zeros(n + 1)
    size = np.ones(n, dtype=np.int64)
    for i in range(n - 1, -1, -1):
        most = min(max(1, token_budget // int(lengths[i])), n - i)
        costs = np.arange(1, most + 1) * lengths[i] + best[i + 1 : i + 1 + most]
        size[i] = int(np.argmin(costs)) + 1
        best[i] = costs[size[i] - 1] + overhead
    edges = [0]
    while edges[-1] < n:
        edges.append(edges[-1] + int(size[edges[-1]]))
    return np.array(edges)
