"""Masked language modelling: choose the tokens of a sequence to predict, and what repositions them.

The recipe of BERT (Devlin et al. 2019, arXiv 1810.04805, 3.1 and appendix A): a fixed share of the
tokens of each sequence is predicted; of these, 80% become [MASK], 10% a random token and 10% stay.
Every choice is a hash of (seed, epoch, row, position), so it is the same in any batch, on any rank
and after any interruption, and another in every epoch.
"""

from dataclasses import dataclass

import numpy as np

from trainers.config.sections import MaskingConfig
from trainers.data.microbatch import sample_keys, splitmix

MASK_SHARE, RANDOM_SHARE = 0.8, 0.1  # of the tokens to predict; the rest stays
_SITE = np.uint64(0x6D61736B696E6721)  # makes these hashes independent of those of dropout
_STEP = np.uint64(0x9E3779B97F4A7C15)
_LAST = np.uint64(2**64 - 1)


@dataclass(frozen=True)
class MaskingVocabulary:
    """The properties of a tokenizer's ids that masking needs.

    special: `[size]` bool, ids that are never hidden and never drawn. continuation: `[size]` bool,
    pieces that continue a word, as `##ing` does.
    """

    size: int
    mask_id: int
    special: np.ndarray
    continuation: np.ndarray


@dataclass(frozen=True)
class MaskedBatch:
    """A masked batch of texts end to end.

    ids: `[t]` after masking. positions: `[n]` int64 places of the tokens to predict, ascending.
    targets: `[n]` int64, the ids that stood there.
    """

    ids: np.ndarray
    positions: np.ndarray
    targets: np.ndarray


def mask_tokens(
    ids: np.ndarray,
    lengths: np.ndarray,
    rows: np.ndarray,
    epoch: int,
    seed: int,
    masking: MaskingConfig,
    vocabulary: MaskingVocabulary,
) -> MaskedBatch:
    """Mask tokens of texts end to end, ids `[t]`.

    lengths: `[b]` tokens of each text. rows: `[b]` the sample that each text is. Of m tokens that
    are not special, max(1, round(share * m)) are predicted: those of the smallest hashes. With
    whole_words, words come in the order of their hashes until the next would exceed that number;
    the first is taken whatever its length.
    """
    texts = np.repeat(np.arange(len(lengths)), lengths)
    places = np.arange(len(ids)) - (np.cumsum(lengths) - lengths)[texts]
    hashes = _token_hashes(texts, places, sample_keys(seed, epoch, rows))
    chosen = _choose_tokens(ids, texts, places, hashes, masking, vocabulary)
    positions = np.flatnonzero(chosen)
    targets = ids[positions].astype(np.int64)
    masked = ids.copy()
    masked[positions] = _replace_tokens(targets, hashes[positions], vocabulary)
    return MaskedBatch(masked, positions, targets)


def _token_hashes(texts: np.ndarray, places: np.ndarray, keys: np.ndarray) -> np.ndarray:
    """Hash each token `[t]` uint64 by its text's key and its place in the text."""
    with np.errstate(over="ignore"):
        text_keys = splitmix(keys.view(np.uint64) ^ _SITE)
        hashes: np.ndarray = splitmix(text_keys[texts] + places.astype(np.uint64) * _STEP)
        return hashes


def _choose_tokens(
    ids: np.ndarray,
    texts: np.ndarray,
    places: np.ndarray,
    hashes: np.ndarray,
    masking: MaskingConfig,
    vocabulary: MaskingVocabulary,
) -> np.ndarray:
    """Choose the tokens to predict, `[t]` bool; without whole_words each is its own word."""
    maskable: np.ndarray = ~vocabulary.special[ids]
    num_maskable = np.bincount(texts[maskable], minlength=int(texts.max(initial=-1)) + 1)
    wanted = np.maximum(1, np.rint(masking.share * num_maskable)).astype(np.int64)[texts]
    if not masking.whole_words:
        each: np.ndarray = maskable & (_rank_by_hash(maskable, hashes, texts, places) < wanted)
        return each
    follows = np.zeros_like(maskable)
    follows[1:] = maskable[:-1] & (places[1:] > 0)
    starts = maskable & ~(vocabulary.continuation[ids] & follows)
    first = np.flatnonzero(starts)  # the first token of every word
    word = np.maximum(np.cumsum(starts) - 1, 0)  # which of them each token belongs to
    if not len(first):
        return maskable
    # Tokens of a word take the hash of its first one, so that a stable sort keeps them together.
    ranks = _rank_by_hash(maskable, hashes[first][word], texts, places)
    lengths = np.bincount(word[maskable], minlength=len(first))
    begin = ranks[first]
    fits = (begin == 0) | (begin + lengths <= wanted[first])
    taken: np.ndarray = maskable & fits[word]
    return taken


def _rank_by_hash(
    maskable: np.ndarray, hashes: np.ndarray, texts: np.ndarray, places: np.ndarray
) -> np.ndarray:
    """Rank the maskable tokens of each text by hash, `[t]` int64 from 0, ties in order."""
    order = np.lexsort((np.where(maskable, hashes, _LAST), texts))
    ranks: np.ndarray = np.empty_like(places)
    ranks[order] = places  # sorted by text first, tokens of a text stay in its span
    return ranks


def _replace_tokens(
    targets: np.ndarray, hashes: np.ndarray, vocabulary: MaskingVocabulary
) -> np.ndarray:
    """Return the ids `[n]` that replace the tokens to predict."""
    draws = splitmix(hashes)
    lots = (draws >> np.uint64(11)) * 2.0**-53  # in [0, 1)
    ordinary = np.flatnonzero(~vocabulary.special)
    others = ordinary[(splitmix(draws) % np.uint64(len(ordinary))).astype(np.int64)]
    return np.select(
        [lots < MASK_SHARE, lots < MASK_SHARE + RANDOM_SHARE], [vocabulary.mask_id, others], targets
    )
