"""Parameters and FLOPs of a model, from its sizes alone.

`trainers/models/shape.py` makes a ModelShape from a Transformers configuration.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from functools import cached_property
from typing import Literal

Head = Literal["classification", "masked-lm", "linear"]
Recompute = Literal["none", "selective", "full"]

MASKED_SHARE = 0.15  # of the tokens, by default (Devlin et al. 2018, 3.1)
BALANCED_AT = 128  # tokens of a sequence for which pipeline stages are balanced


@dataclass(frozen=True)
class ModelShape:
    """Sizes of an encoder and its head.

    max_positions and type_vocab_size are 0 where there is no such table. embedding_size differs
    from hidden_size where a projection stands between them (ELECTRA). gated: the feed-forward has a
    second matrix upwards (GLU). biases: of the layers, the norms and the head's dense layer.
    pre_norm: norms stand before attention and feed-forward, and one more behind the last layer
    (ModernBERT). cls_only: a classifier's last layer computes its output for [CLS] alone. head
    "linear" is a plain linear map of hidden_size numbers.
    """

    hidden_size: int
    num_layers: int
    num_heads: int
    intermediate_size: int
    vocab_size: int
    max_positions: int
    type_vocab_size: int
    embedding_size: int
    head: Head
    num_labels: int = 0
    gated: bool = False
    biases: bool = True
    pre_norm: bool = False
    cls_only: bool = True

    @classmethod
    def for_linear(cls, num_features: int, num_labels: int) -> ModelShape:
        """Return the shape of a linear map of `num_features` numbers to `num_labels`."""
        return cls(num_features, 0, 0, 0, 0, 0, 0, 0, "linear", num_labels)

    @property
    def embedding_parameters(self) -> int:
        """Parameters of the tables, their norm, and the projection where sizes differ."""
        if self.head == "linear":
            return 0
        tables = self.vocab_size + self.max_positions + self.type_vocab_size
        projection = 0
        if self.embedding_size != self.hidden_size:
            projection = self.embedding_size * self.hidden_size + self.hidden_size
        return (
            tables * self.embedding_size + self._norm_parameters(self.embedding_size) + projection
        )

    @property
    def layer_parameters(self) -> int:
        """Parameters of one layer: attention, feed-forward and two norms."""
        return self.layer_matrices + self.layer_vectors

    @property
    def layer_matrices(self) -> int:
        """Weights of one layer's linear maps, which tensor parallelism divides."""
        ups = 2 if self.gated else 1
        return 4 * self.hidden_size**2 + (ups + 1) * self.hidden_size * self.intermediate_size

    @property
    def layer_vectors(self) -> int:
        """Biases and norms of one layer."""
        ups = 2 if self.gated else 1
        biases = 5 * self.hidden_size + ups * self.intermediate_size
        return biases * self.biases + 2 * self._norm_parameters(self.hidden_size)

    @property
    def head_parameters(self) -> int:
        """Parameters after the layers; a decoder tied to the word embeddings counts once."""
        hidden, out = self.hidden_size, self.embedding_size
        if self.head == "linear":
            return (hidden + 1) * self.num_labels
        if self.head == "masked-lm":
            dense = hidden * out + out * self.biases
            return (
                dense
                + self._norm_parameters(out)
                + self.vocab_size
                + self._norm_parameters(hidden) * self.pre_norm
            )
        dense = hidden * hidden + hidden * self.biases
        norms = (
            2 * self._norm_parameters(hidden) * self.pre_norm
        )  # behind the last layer, and in the head
        return dense + norms + (hidden + 1) * self.num_labels

    @property
    def num_parameters(self) -> int:
        """All parameters, as Transformers' own model of this shape has."""
        # ModernBERT's first attention reads the embeddings' norm and has none of its own.
        missing = (
            self._norm_parameters(self.hidden_size) if self.pre_norm and self.num_layers else 0
        )
        layers = self.num_layers * self.layer_parameters - missing
        return self.embedding_parameters + layers + self.head_parameters

    @property
    def reads_cls_alone(self) -> bool:
        """Whether the last layer computes its output only for the first token."""
        return self.head == "classification" and self.cls_only

    def count_masked(self, num_tokens: int) -> int:
        """Estimate the tokens of `num_tokens` that a masked-lm head predicts."""
        return -(-int(num_tokens * MASKED_SHARE * 100) // 100) if self.head == "masked-lm" else 0

    def layer_flops(self, s: float, queries: float | None = None) -> float:
        """Return one layer's forward FLOPs over `s` tokens, with outputs for `queries` of them.

        24 s h^2 + 4 s^2 h for a feed-forward of 4h (Narayanan et al. 2021, arXiv 2104.04473,
        appendix), where each product of matrices counts 2 a multiply-add: 8 s h^2 for queries,
        keys, values and output, 4 s^2 h for scores and context, 4 s h i for the feed-forward. It
        is an encoder: nothing is halved for causality.
        """
        q = s if queries is None else queries
        return self._layer_flops(s, q, q * s)

    def _layer_flops(self, keys: float, queries: float, pairs: float) -> float:
        """Return one layer's forward FLOPs; pairs: of a query and a key that it attends to."""
        hidden, ups = self.hidden_size, 2 if self.gated else 1
        projections = (
            4 * queries * hidden**2 + 4 * keys * hidden**2
        )  # queries, output; keys, values
        core = 4 * pairs * hidden
        return projections + core + 2 * (ups + 1) * queries * hidden * self.intermediate_size

    def embedding_flops(self, s: float) -> float:
        """Return the forward FLOPs before the layers: only a projection multiplies."""
        if self.embedding_size == self.hidden_size:
            return 0.0
        return 2.0 * s * self.embedding_size * self.hidden_size

    def head_flops(self, masked: float = 0) -> float:
        """Return the head's forward FLOPs for one sequence; masked-lm predicts `masked` tokens.

        2 m e (h + V): the dense layer and the decoder, on masked tokens alone.
        """
        if self.head == "masked-lm":
            return 2.0 * masked * self.embedding_size * (self.hidden_size + self.vocab_size)
        dense = 0 if self.head == "linear" else self.hidden_size
        return 2.0 * self.hidden_size * (dense + self.num_labels)

    def layers_flops(self, s: int, layers: range | None = None) -> float:
        """Return the forward FLOPs of `layers`, default all, for one sequence of `s` tokens."""
        return sum(
            self.layer_flops(s, 1 if self.reads_cls_alone and i == self.num_layers - 1 else None)
            for i in (range(self.num_layers) if layers is None else layers)
        )

    def forward_flops(self, s: int, masked: int | None = None) -> float:
        """Return the FLOPs of one forward pass of one sequence of `s` tokens."""
        m = self.count_masked(s) if masked is None else masked
        return self.embedding_flops(s) + self.layers_flops(s) + self.head_flops(m)

    def training_flops(self, s: int, masked: int | None = None) -> float:
        """Return the FLOPs of training on one sequence: backward is twice a forward.

        Recomputation is left out, as MFU does (PaLM, arXiv 2204.02311, appendix B).
        """
        return 3 * self.forward_flops(s, masked)

    def batch_training_flops(
        self,
        samples: int,
        tokens: int,
        squared_tokens: int,
        masked: float = 0.0,
        frozen_layers: int | None = None,
    ) -> float:
        """Return the FLOPs of training on a batch, from the lengths of its texts: model FLOPs.

        tokens: of all samples. squared_tokens: the sum over samples of the square of their tokens.
        masked: tokens that a masked-lm head predicts, over all samples. frozen_layers: that have no
        backward, with the embeddings; None: all is trained.

        The sum of `training_flops` over the samples: each weight of a matrix costs 6 FLOPs a token
        that it multiplies (2 forward, 4 backward), attention 12 h a pair of tokens of one text and
        layer. What no answer needs is not counted, as it is not computed: padding, and all of a
        classifier's last layer but keys, values and [CLS]. Nor are norms, dropout, softmax,
        lookups, recomputation and the optimizer.
        """
        whole = self.num_layers - (self.reads_cls_alone and self.num_layers > 0)
        of_layers = [self._layer_flops(tokens, tokens, squared_tokens)] * whole
        if whole < self.num_layers:
            of_layers.append(self._layer_flops(tokens, samples, tokens))
        is_masked = self.head == "masked-lm"
        head = self.head_flops(masked) if is_masked else samples * self.head_flops()
        flops = 3 * (self.embedding_flops(tokens) + sum(of_layers) + head)
        if frozen_layers is not None:
            flops -= 2 * (self.embedding_flops(tokens) + sum(of_layers[:frozen_layers]))
        return flops

    @cached_property
    def _stage_costs(self) -> tuple[float, list[float], float]:
        """Relative time of embeddings, each layer, and head."""
        s = min(BALANCED_AT, self.max_positions or BALANCED_AT)
        layers = [self.layers_flops(s, range(i, i + 1)) for i in range(self.num_layers)]
        # Embeddings multiply nothing but move as much memory as a tenth of a layer's elementwise
        # part; the exact share only has to break ties towards a lighter first stage.
        before = self.embedding_flops(s) + 0.1 * self.layer_flops(s)
        return before, layers, self.head_flops(self.count_masked(s))

    def _norm_parameters(self, width: int) -> int:
        return width * (2 if self.biases else 1)


def split_into_stages(shape: ModelShape, num_stages: int) -> list[range]:
    """Return the layers of each pipeline stage, in order, so that the slowest stage is fastest.

    The first stage also has the embeddings, the last also the head; a classifier's last layer,
    which computes one token, counts for what it costs. Every stage has a layer.
    """
    assert 1 <= num_stages <= max(1, shape.num_layers), "check_layout refuses empty stages"
    before, layers, after = shape._stage_costs
    ends = [0.0, *itertools.accumulate(layers)]
    total = shape.num_layers

    def cost(start: int, stop: int) -> float:
        first = before if start == 0 else 0.0
        return first + ends[stop] - ends[start] + (after if stop == total else 0.0)

    # Dynamic programming: best[n] is the best cut of the first n layers into the stages so far, as
    # (slowest stage, sum of squares, edges); the squares make the most even of equal cuts win.
    best: dict[int, tuple[float, float, tuple[int, ...]]] = {0: (0.0, 0.0, (0,))}
    for stage in range(num_stages):
        left = num_stages - stage - 1
        following: dict[int, tuple[float, float, tuple[int, ...]]] = {}
        for stop in range(stage + 1, total - left + 1) if left else (total,):
            following[stop] = min(
                (max(slowest, added), squares + added * added, (*edges, stop))
                for start, (slowest, squares, edges) in best.items()
                if start < stop or total == 0
                for added in (cost(start, stop),)
            )
        best = following
    edges = best[total][2]
    return [range(start, stop) for start, stop in itertools.pairwise(edges)]
