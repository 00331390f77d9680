"""Logits of a masked language model become the words it would put in. Knows no model.

As in Transformers, scores are of the whole vocabulary whatever the targets, and a target that is no
token of it stands for the first of its tokens. Unlike there, the sequence keeps the text's case.
"""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from serving.interface import Filling

Write = Callable[[int, str], str]  # a token and its words, put into the text


def fillings(
    tokenizer: Any,
    text: str,
    row: np.ndarray,
    logits: np.ndarray,
    top_k: int,
    targets: Sequence[str] | None,
) -> tuple[tuple[Filling, ...], ...]:
    """For each mask of `text`, in order, the likeliest tokens, or `targets` by likelihood.

    text: as it was encoded to the ids `row`. logits: [num_masks, vocabulary].
    """
    allowed = np.arange(logits.shape[1]) if targets is None else _ids(tokenizer, targets)
    places = np.flatnonzero(row == tokenizer.mask_token_id)
    pieces = text.split(tokenizer.mask_token)
    found = []
    for index, of_mask in enumerate(logits):
        if len(pieces) == len(places) + 1:
            write = _into_text(tokenizer.mask_token, pieces, index)
        else:  # the text was cut, and what was left of it is in the row alone
            write = _into_row(tokenizer, row, int(places[index]))
        found.append(_best(tokenizer, of_mask, allowed, top_k, write))
    return tuple(found)


def _best(
    tokenizer: Any, logits: np.ndarray, allowed: np.ndarray, top_k: int, write: Write
) -> tuple[Filling, ...]:
    """The `top_k` likeliest of the tokens `allowed`, the likeliest first."""
    shares = np.exp(logits - logits.max())
    shares /= shares.sum()
    best = allowed[np.argsort(-shares[allowed], kind="stable")[:top_k]]
    found = []
    for token in best.tolist():
        words: str = tokenizer.decode([token])
        found.append(Filling(float(shares[token]), token, words, write(token, words)))
    return tuple(found)


def _into_text(mask: str, pieces: Sequence[str], index: int) -> Write:
    """Puts a token in the place of mask `index` of the text whose `pieces` the masks divide."""
    before, after = mask.join(pieces[: index + 1]), mask.join(pieces[index + 1 :])

    def write(token: int, words: str) -> str:
        if words.startswith("##"):  # continues the word before it
            return before.rstrip() + words[2:] + after
        spaced = not before or before[-1].isspace()
        return before + (words.lstrip() if spaced else words) + after

    return write


def _into_row(tokenizer: Any, row: np.ndarray, place: int) -> Write:
    """Puts a token into the ids `row` and words them."""

    def write(token: int, words: str) -> str:
        filled = row.copy()
        filled[place] = token
        special = {tokenizer.cls_token_id, tokenizer.sep_token_id}
        sequence: str = tokenizer.decode([each for each in filled.tolist() if each not in special])
        return sequence

    return write


def _ids(tokenizer: Any, targets: Sequence[str]) -> np.ndarray:
    """The token of each target, each once; none for a target that has no token."""
    vocabulary = tokenizer.get_vocab()
    found: list[int] = []
    for target in targets:
        ids = [vocabulary[target]] if target in vocabulary else []
        ids = ids or tokenizer(target, add_special_tokens=False, verbose=False)["input_ids"]
        found += ids[:1]
    return np.array(list(dict.fromkeys(found)), dtype=np.int64)
