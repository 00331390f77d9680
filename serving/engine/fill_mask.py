"""Turn the logits of a masked language model into the words it would put in.

As in Transformers, scores are of the whole vocabulary whatever the targets, and a target that is no
token of it stands for the first of its tokens. Unlike there, the sequence keeps the text's case.
"""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from serving.interface import MaskPrediction

SequenceWriter = Callable[[int, str], str]  # a token and its word to the text with it


def predict_masks(
    tokenizer: Any,
    text: str,
    row: np.ndarray,
    logits: np.ndarray,
    top_k: int,
    targets: Sequence[str] | None,
) -> tuple[tuple[MaskPrediction, ...], ...]:
    """Return for each mask of `text` the likeliest tokens, or `targets` by likelihood.

    text: as it was encoded to the ids `row`. logits: [num_masks, vocabulary].
    """
    allowed = np.arange(logits.shape[1]) if targets is None else _target_ids(tokenizer, targets)
    positions = np.flatnonzero(row == tokenizer.mask_token_id)
    pieces = text.split(tokenizer.mask_token)
    predictions = []
    for index, of_mask in enumerate(logits):
        if len(pieces) == len(positions) + 1:
            write = _text_writer(tokenizer.mask_token, pieces, index)
        else:  # the text was cut: only the ids hold what was left of it
            write = _row_writer(tokenizer, row, int(positions[index]))
        predictions.append(_top_tokens(tokenizer, of_mask, allowed, top_k, write))
    return tuple(predictions)


def _top_tokens(
    tokenizer: Any, logits: np.ndarray, allowed: np.ndarray, top_k: int, write: SequenceWriter
) -> tuple[MaskPrediction, ...]:
    """Return the `top_k` likeliest of the tokens `allowed`, the likeliest first."""
    probabilities = np.exp(logits - logits.max())
    probabilities /= probabilities.sum()
    best = allowed[np.argsort(-probabilities[allowed], kind="stable")[:top_k]]
    predictions = []
    for token in best.tolist():
        word: str = tokenizer.decode([token])
        predictions.append(
            MaskPrediction(float(probabilities[token]), token, word, write(token, word))
        )
    return tuple(predictions)


def _text_writer(mask: str, pieces: Sequence[str], index: int) -> SequenceWriter:
    """Put a token in the place of mask `index` of the text whose `pieces` the masks divide."""
    before, after = mask.join(pieces[: index + 1]), mask.join(pieces[index + 1 :])

    def write(token: int, word: str) -> str:
        if word.startswith("##"):  # continues the word before it
            return before.rstrip() + word[2:] + after
        spaced = not before or before[-1].isspace()
        return before + (word.lstrip() if spaced else word) + after

    return write


def _row_writer(tokenizer: Any, row: np.ndarray, position: int) -> SequenceWriter:
    """Put a token into the ids `row` and decode them."""

    def write(token: int, word: str) -> str:
        filled = row.copy()
        filled[position] = token
        special = {tokenizer.cls_token_id, tokenizer.sep_token_id}
        sequence: str = tokenizer.decode([each for each in filled.tolist() if each not in special])
        return sequence

    return write


def _target_ids(tokenizer: Any, targets: Sequence[str]) -> np.ndarray:
    """Return the token of each target, each once; none for a target without tokens."""
    vocabulary = tokenizer.get_vocab()
    tokens: list[int] = []
    for target in targets:
        ids = [vocabulary[target]] if target in vocabulary else []
        ids = ids or tokenizer(target, add_special_tokens=False, verbose=False)["input_ids"]
        tokens += ids[:1]
    return np.array(list(dict.fromkeys(tokens)), dtype=np.int64)
