"""Texts laid end to end, without padding: what every model computes on, in training and serving.

`PackedBatch` is a batch in host memory, as numbers; `PackedTexts` is what a model must know of one
besides its tokens, on a device. Linear layers and norms see one row of tokens. Attention keeps each
text to itself (`trainers.models.attention`), some of it on a padded view, `PaddedView`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import torch
from torch import Tensor

from trainers.models.static_rows import fit_into_rows

INPUTS = ("ids", "texts", "positions", "reads")  # of a network
FOLD_INPUTS = ("grid", "owners", "places")  # further inputs of a graph that is exported from it


@dataclass(frozen=True)
class PackedBatch:
    """Texts end to end.

    ids: [t] int64 tokens; of a linear model numbers, float32. texts: [t] int64, which text a token
    is of. positions: [t] int64, its row of the position table. reads: [n] int64, the tokens whose
    outputs are asked for: the first of each text; of a masked language model the masks. lengths:
    tokens of each text.
    """

    ids: np.ndarray
    texts: np.ndarray
    positions: np.ndarray
    reads: np.ndarray
    lengths: tuple[int, ...]

    @classmethod
    def from_rows(
        cls,
        rows: Sequence[np.ndarray],
        positions: Sequence[np.ndarray],
        reads: np.ndarray | None = None,
    ) -> PackedBatch:
        """Pack the tokens of each text and their positions. reads: None for the first of each."""
        lengths = tuple(map(len, rows))
        ids = np.concatenate(rows)
        return cls(
            ids=ids.astype(np.int64) if ids.dtype.kind == "i" else ids,
            texts=np.repeat(np.arange(len(rows)), lengths),
            positions=np.concatenate(positions),
            reads=np.cumsum((0, *lengths[:-1])) if reads is None else reads,
            lengths=lengths,
        )

    @property
    def arrays(self) -> tuple[np.ndarray, ...]:
        """The arrays in the order of INPUTS."""
        return self.ids, self.texts, self.positions, self.reads

    @property
    def graph_inputs(self) -> dict[str, np.ndarray]:
        """The inputs of an exported graph by name (`PaddedView`)."""
        grid, owners, places = pad_into_rows(self.lengths)
        return dict(zip((*INPUTS, *FOLD_INPUTS), (*self.arrays, grid, owners, places), strict=True))


@dataclass(frozen=True, eq=False)
class PackedTexts:
    """The texts of a packed batch on a device, as a model and its attention need them.

    lengths: tokens of each text, known to the host. texts: [t] int64, which text a token is of.
    positions: [t] int64, its place in its text. reads: [n] int64, the tokens whose outputs are
    asked for. keys: [number of texts] int64 of `sample_keys`; None where nothing is dropped. width:
    of the rows that no text reaches out of, where a device needs few shapes: pads fill the rows,
    and are of no text of `lengths`. 0: nothing is padded.
    """

    lengths: tuple[int, ...]
    texts: Tensor
    positions: Tensor
    reads: Tensor
    keys: Tensor | None = None
    width: int = 0

    @classmethod
    def from_lengths(
        cls,
        lengths: Sequence[int] | np.ndarray,
        move: Callable[[np.ndarray], Tensor] = torch.from_numpy,
        reads: Tensor | None = None,
        keys: Tensor | None = None,
        pads: np.ndarray | None = None,
        width: int = 0,
    ) -> PackedTexts:
        """Describe texts of `lengths`. move: to their device. reads: None for the first tokens.

        pads: tokens after each text that are of none, in rows of `width`.
        """
        sizes = np.asarray(lengths, dtype=np.int64)
        starts = np.cumsum(sizes) - sizes
        texts = np.repeat(np.arange(len(sizes)), sizes)
        positions = np.arange(len(texts)) - starts[texts]
        if pads is not None:  # they are of one text more, at its first place
            ends = np.cumsum(sizes).repeat(pads)
            texts, positions = np.insert(texts, ends, len(sizes)), np.insert(positions, ends, 0)
            starts = starts + np.cumsum(pads) - pads
        reads = move(starts) if reads is None else reads
        return cls(tuple(sizes.tolist()), move(texts), move(positions), reads, keys, width)

    @property
    def longest(self) -> int:
        """Tokens of the longest text."""
        return max(self.lengths)

    @cached_property
    def offsets(self) -> Tensor:
        """[number of texts + 1] int32: where each text starts, and the number of all tokens."""
        texts = torch.arange(len(self.lengths) + 1, device=self.texts.device)
        return torch.searchsorted(self.texts, texts, out_int32=True)

    @property
    def is_even(self) -> bool:
        """Whether all texts are of one length: the batch is then a matrix already."""
        return len(set(self.lengths)) == 1

    @cached_property
    def rows(self) -> PaddedView:
        """Rows as wide as the longest text, several short texts in a row; not where `is_even`."""
        return self._view(pad_into_rows(self.lengths))

    @cached_property
    def text_rows(self) -> PaddedView:
        """One row for each text, in their order."""
        return self._view(pad_each(self.lengths))

    @cached_property
    def dropout_hashes(self) -> dict[tuple[int, int, int], Tensor]:
        """Tables of dropout, kept until the backward is over: recomputation needs them again."""
        return {}

    def row_bias(self, dtype: torch.dtype) -> Tensor:
        """Return which tokens of a row see each other, to add to scores: [r, 1, w, w]."""
        rows = self.texts.view(-1, self.width)
        return _to_bias((rows[:, :, None] == rows[:, None])[:, None], dtype)

    def read_bias(self, dtype: torch.dtype) -> Tensor:
        """Return which tokens those that are read see, to add to scores: [1, 1, n, t]."""
        return _to_bias((self.texts[self.reads][:, None] == self.texts)[None, None], dtype)

    def free(self) -> None:
        """Drop what was derived; it is made again where it is needed again."""
        for name in ("offsets", "rows", "text_rows", "dropout_hashes"):
            self.__dict__.pop(name, None)

    def _view(self, fold: tuple[np.ndarray, ...]) -> PaddedView:
        return PaddedView(self.texts, *map(self._move, fold))

    def _move(self, array: np.ndarray) -> Tensor:
        return torch.from_numpy(array).to(self.texts.device)


@dataclass(frozen=True, eq=False)
class PaddedView:
    """How the t tokens of a packed batch are gathered into r rows of width w.

    text_ids: [t], the text of a token. token_at_slot: [r, w], the token in a slot; arbitrary where
    the slot is empty. text_at_slot: [r, w], its text; -1 where empty. slot_of_token: [t], flat.
    """

    text_ids: Tensor
    token_at_slot: Tensor
    text_at_slot: Tensor
    slot_of_token: Tensor

    @property
    def mask(self) -> Tensor:
        """[r, 1, w, w] bool: slots of the same text see each other."""
        return (self.text_at_slot[:, :, None] == self.text_at_slot[:, None])[:, None]

    def bias(self, dtype: torch.dtype) -> Tensor:
        """Return `mask` as numbers to add to scores: 0 or minus infinity."""
        if dtype not in self._biases:
            self._biases[dtype] = _to_bias(self.mask, dtype)
        return self._biases[dtype]

    @cached_property
    def _biases(self) -> dict[torch.dtype, Tensor]:
        return {}

    def mask_for_queries(self, reads: Tensor) -> Tensor:
        """Return which tokens the tokens `reads` [n] see: [1, 1, n, t] bool."""
        return (self.text_ids[reads][:, None] == self.text_ids)[None, None]

    def gather(self, packed: Tensor) -> Tensor:
        """Return tokens [t, ...] in their slots: [r, w, ...]."""
        if packed.requires_grad and torch.is_grad_enabled():
            gathered: Tensor = _Gather.apply(packed, self)  # type: ignore[no-untyped-call]
            return gathered
        return packed[self.token_at_slot]

    def scatter(self, rows: Tensor) -> Tensor:
        """Return what stands in the slots [r, w, ...] of tokens: [t, ...]."""
        return rows.flatten(0, 1)[self.slot_of_token]


def _to_bias(mask: Tensor, dtype: torch.dtype) -> Tensor:
    zeros = torch.zeros(mask.shape, dtype=dtype, device=mask.device)
    return zeros.masked_fill_(~mask, float("-inf"))


class _Gather(torch.autograd.Function):
    """`PaddedView.gather`, whose gradient is a gather too: every token has one slot."""

    @staticmethod
    def forward(ctx: Any, packed: Tensor, view: PaddedView) -> Tensor:
        ctx.view = view
        return packed[view.token_at_slot]

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        return ctx.view.scatter(gradient), None


def pad_into_rows(lengths: Sequence[int]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Lay texts of `lengths` into rows as wide as the longest: grid, owners, places.

    Attention on a padded [rows, width] view costs rows * width^2: rows no wider than the longest
    text keep it near that of attention text by text, and several short texts share a row (a mask
    keeps each to itself), so that one long text among short ones does not pad all of them. First
    fit, the longest first.
    """
    width = max(lengths)
    rows = fit_into_rows(lengths, width)
    slots: list[tuple[int, int, int]] = []  # text, row, column
    for row, texts in enumerate(rows):
        columns = np.cumsum([0, *(lengths[text] for text in texts)]).tolist()
        slots += [(text, row, column) for text, column in zip(texts, columns, strict=False)]
    return _fill_slots(lengths, (len(rows), width), slots)


def pad_each(lengths: Sequence[int]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Lay each text of `lengths` into a row of its own: grid, owners, places."""
    shape = len(lengths), max(lengths)
    return _fill_slots(lengths, shape, [(text, text, 0) for text in range(len(lengths))])


def _fill_slots(
    lengths: Sequence[int], shape: tuple[int, int], slots: Sequence[tuple[int, int, int]]
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    starts = np.cumsum((0, *lengths[:-1]))
    grid = np.zeros(shape, dtype=np.int64)
    owners = np.full(shape, -1, dtype=np.int64)
    places = np.empty(sum(lengths), dtype=np.int64)
    for text, row, column in slots:
        start, length = int(starts[text]), lengths[text]
        grid[row, column : column + length] = np.arange(start, start + length)
        owners[row, column : column + length] = text
        first = row * shape[1] + column
        places[start : start + length] = np.arange(first, first + length)
    return grid, owners, places
