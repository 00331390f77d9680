"""Cut a global batch into micro-batches for every rank: pure arithmetic.

The global batch is the unit of mathematics: which samples it holds is a function of (seed, epoch,
step) alone. How it is cut is the unit of performance. Texts lie end to end, so no sample is dearer
for its neighbours: samples are dealt to the data-parallel ranks so that all finish together, and a
rank computes as few micro-batches as its memory allows. Every sample weighs 1 / (size of its global
batch) wherever it lands, so the weighted sum of micro-batch gradients is the gradient of the whole
batch. Gradient accumulation is not a setting: it follows.
"""

import heapq
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


def sample_costs(
    lengths: np.ndarray, hidden_size: int, max_length: int | None = None
) -> np.ndarray:
    """Return the cost [n] of samples of `lengths` [n], in units of one token's linear layers.

    Attention adds length / (6 hidden_size) a token, from 24 s h^2 + 4 s^2 h FLOPs a layer
    (Narayanan et al. 2021, arXiv 2104.04473, appendix). hidden_size: 0 where there is none.
    max_length: of a sequence, where a sample may be several windows of a text.
    """
    tokens = lengths.astype(np.float64)
    if not hidden_size:
        return tokens
    attended = tokens if max_length is None else np.minimum(tokens, max_length)
    return tokens * (1 + attended / (6 * hidden_size))


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
    hidden_size: int = 0,
    constraints: CutConstraints = CutConstraints(),
    max_length: int | None = None,
) -> list[list[MicroBatch]]:
    """Cut a global batch into a list of micro-batches for each of `num_ranks`, the largest last.

    rows: [n] the samples; lengths: [n] their token counts. Tokens of a micro-batch stay within
    `token_budget`, or the longest sample where that exceeds it. hidden_size, max_length: of
    `sample_costs`. A rank with too few samples gets micro-batches of weight 0, so that every rank
    takes part in the collectives of the step.
    """
    longest_first = np.argsort(-lengths, kind="stable")
    rows, lengths = rows[longest_first], lengths[longest_first]
    shares = deal(sample_costs(lengths, hidden_size, max_length), num_ranks)
    counts = [
        max(constraints.min_count, _fewest_parts(lengths[share], token_budget)) for share in shares
    ]
    if constraints.equal_counts:
        counts = [max(counts)] * num_ranks
    weight, filler = 1.0 / len(rows), MicroBatch(rows[-1:], 0.0)
    ranks = []
    for share, count in zip(shares, counts, strict=True):
        count += -count % constraints.multiple
        parts = [share[part] for part in deal(lengths[share], max(1, min(count, len(share))))]
        # Gradients are exchanged behind the last backward, so that should be the longest.
        parts.sort(key=lambda part: int(lengths[part].sum()))
        wanted = count if constraints.equal_counts or constraints.multiple > 1 else 1
        cut = [MicroBatch(rows[part], weight) for part in parts if len(part)]
        ranks.append([filler] * (wanted - len(cut)) + cut)
    return ranks


def count_tokens(micro_batches: Iterable[MicroBatch], lengths: np.ndarray) -> int:
    """Count the tokens of micro-batches, given the `lengths` of all samples."""
    return sum(int(lengths[micro_batch.rows].sum()) for micro_batch in micro_batches)


def _fewest_parts(lengths: np.ndarray, token_budget: int) -> int:
    """Return how few parts `deal` can make of samples of `lengths` (descending) in the budget."""
    if not len(lengths):
        return 1
    most = max(token_budget, int(lengths[0]))
    count = -(-int(lengths.sum()) // most)
    while max(lengths[part].sum() for part in deal(lengths, count)) > most:
        count += 1
    return count


def deal(costs: np.ndarray, count: int) -> list[np.ndarray]:
    """Deal samples of `costs` (descending) to `count` parts of nearly equal sums.

    Each goes to the part that has least, so the largest part exceeds the best possible by at most a
    third (Graham 1969, SIAM J. Appl. Math. 17, 416-429). Returns the samples [n] int64 of each.
    """
    if count == 1:
        return [np.arange(len(costs))]
    loads = [(0.0, part) for part in range(count)]
    parts: list[list[int]] = [[] for _ in range(count)]
    for sample, cost in enumerate(costs.tolist()):
        load, part = loads[0]
        parts[part].append(sample)
        heapq.heapreplace(loads, (load + cost, part))
    return [np.array(part, dtype=np.int64) for part in parts]


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
