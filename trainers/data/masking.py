"""Masked language modelling: which tokens of a sequence are hidden, and what stands in their place.

The recipe of BERT (Devlin et al. 2019, arXiv 1810.04805, 3.1 and appendix A): a fixed share of the
tokens of each sequence is to be guessed; of these, 80% become [MASK], 10% a random token and 10%
stay. Every choice is a hash of (seed, epoch, row, position), so it is the same in any batch, on any
rank and after any interruption, and another in every epoch. Knows no tokenizer and no model.
"""

from dataclasses import dataclass

import numpy as np

from trainers.config.recipe import Masking
from trainers.models.dropout import sample_keys, splitmix

AS_MASK, AS_RANDOM = 0.8, 0.1  # of the tokens to be guessed; the rest stays
_SITE = np.uint64(0x6D61736B696E6721)  # keeps these numbers apart from those of dropout
_STEP = np.uint64(0x9E3779B97F4A7C15)
_LAST = np.uint64(2**64 - 1)


@dataclass(frozen=True)
class Vocabulary:
    """What masking must know of a tokenizer's ids.

    special: `[size]` bool, ids that are never hidden and never drawn. continuation: `[size]` bool,
    pieces that continue a word, as `##ing` does.
    """

    size: int
    mask_id: int
    special: np.ndarray
    continuation: np.ndarray


@dataclass(frozen=True)
class Masked:
    """A batch to guess. ids: `[b, s]` after masking. positions: `[n]` int64 indices into the
    flattened batch, ascending. targets: `[n]` int64, the ids that stood there.
    """

    ids: np.ndarray
    positions: np.ndarray
    targets: np.ndarray


def mask_tokens(
    ids: np.ndarray,
    present: np.ndarray,
    rows: np.ndarray,
    epoch: int,
    seed: int,
    masking: Masking,
    vocabulary: Vocabulary,
) -> Masked:
    """Hide tokens of a batch of ids `[b, s]`.

    present: `[b, s]` bool, true where a token is and not padding. rows: `[b]` the sample that each
    row holds. Of m tokens that are not special, max(1, round(share * m)) are to be guessed: those
    of the smallest hashes. With whole_words, words come in the order of their hashes until the next
    would exceed that number; the first is taken whatever its length.
    """
    maskable = present & ~vocabulary.special[ids]
    hashes = _hashes(present, sample_keys(seed, epoch, rows))
    chosen = _chosen(ids, maskable, hashes, masking, vocabulary)
    positions = np.flatnonzero(chosen)
    targets = ids.reshape(-1)[positions].astype(np.int64)
    masked = ids.copy()
    masked.reshape(-1)[positions] = _shown(targets, hashes.reshape(-1)[positions], vocabulary)
    return Masked(masked, positions, targets)


def _hashes(present: np.ndarray, keys: np.ndarray) -> np.ndarray:
    """A number `[b, s]` uint64 for each token, counted from the first present of its row."""
    places = (np.cumsum(present, axis=1) - 1).astype(np.uint64)
    with np.errstate(over="ignore"):
        of_rows = splitmix(keys.view(np.uint64) ^ _SITE)
        hashes: np.ndarray = splitmix(of_rows[:, None] + places * _STEP)
        return hashes


def _chosen(
    ids: np.ndarray,
    maskable: np.ndarray,
    hashes: np.ndarray,
    masking: Masking,
    vocabulary: Vocabulary,
) -> np.ndarray:
    """Which tokens are to be guessed, `[b, s]` bool. Without whole_words, each is its own word."""
    num_maskable = maskable.sum(axis=1)
    wanted = np.maximum(1, np.rint(masking.share * num_maskable)).astype(np.int64)[:, None]
    if not masking.whole_words:
        each: np.ndarray = maskable & (_ranks(maskable, hashes) < wanted)
        return each
    follows = np.zeros_like(maskable)
    follows[:, 1:] = maskable[:, :-1]
    starts = maskable & ~(vocabulary.continuation[ids] & follows)
    first = np.flatnonzero(starts)  # the first token of every word
    word = np.cumsum(starts).reshape(starts.shape) - 1  # which of them each token belongs to
    if not len(first):
        return maskable
    ranks = _ranks(maskable, hashes.reshape(-1)[first][np.maximum(word, 0)])
    lengths = np.bincount(word[maskable], minlength=len(first))
    begin = ranks.reshape(-1)[first]
    fits = (begin == 0) | (begin + lengths <= np.broadcast_to(wanted, ids.shape).flat[first])
    taken: np.ndarray = maskable & fits[np.maximum(word, 0)]
    return taken


def _ranks(maskable: np.ndarray, hashes: np.ndarray) -> np.ndarray:
    """The place `[b, s]` int64 of each maskable token in its row by hash, from 0, ties in order."""
    order = np.argsort(np.where(maskable, hashes, _LAST), axis=1, kind="stable")
    ranks: np.ndarray = np.empty_like(order)
    np.put_along_axis(ranks, order, np.arange(order.shape[1])[None, :], axis=1)
    return ranks


def _shown(targets: np.ndarray, hashes: np.ndarray, vocabulary: Vocabulary) -> np.ndarray:
    """What stands in the place of tokens `[n]` that are to be guessed."""
    draws = splitmix(hashes)
    lots = (draws >> np.uint64(11)) * 2.0**-53  # in [0, 1)
    ordinary = np.flatnonzero(~vocabulary.special)
    others = ordinary[(splitmix(draws) % np.uint64(len(ordinary))).astype(np.int64)]
    return np.select(
        [lots < AS_MASK, lots < AS_MASK + AS_RANDOM], [vocabulary.mask_id, others], targets
    )
