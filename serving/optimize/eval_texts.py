"""The texts that engines are measured on: those the bundle's recipe held out, or of a file.

Texts to calibrate with come from the training side, texts to judge by from the held-out sides, as
the training run drew them. Knows no engine.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from cluster.errors import BerthaError
from trainers.config import recipe
from trainers.config.sections import Data, Masking
from trainers.data import readers, sources
from trainers.data.corpus import gather
from trainers.data.files import DataError, text_of
from trainers.data.masking import mask_tokens
from trainers.data.ragged import ragged
from trainers.data.splits import TRAIN, assign, digest, spread
from trainers.data.tokenizer import Encoder, Samples, TextEncoder
from trainers.models.card import Card

MAX_HELD_OUT = 2000
MAX_CALIBRATION = 300
MAX_MASKED = 64  # texts of a masked language model, whose logits are a vocabulary for each mask
SHARE = 0.75  # of the texts of a file, judged by; the rest calibrates


class TextsError(BerthaError):
    """No texts to measure engines on; the text says why, and both ways to have some."""


@dataclass(frozen=True)
class Rows:
    """Encoded texts. targets: of `held_out`, in the shape the task's losses take, or None.

    origin: where they come from, for a person.
    """

    calibration: Samples
    held_out: Samples
    targets: np.ndarray | None
    origin: str


def rows_of(card: Card, encoder: Encoder, texts: Path | None = None) -> Rows:
    """Rows for the engines of a bundle: of the file `texts`, else of the recipe in the card.

    Raises TextsError.
    """
    calibration, held_out, targets, origin = (
        _of_recipe(card, encoder) if texts is None else _of_file(texts, encoder)
    )
    if not held_out or not calibration:
        raise TextsError(f"{origin}: too few texts to calibrate with and to judge by; give more")
    calibration = _spread(calibration, MAX_CALIBRATION)
    kept = spread(len(held_out), MAX_MASKED if card.task == "masked-lm" else MAX_HELD_OUT)
    held_out = [held_out[row] for row in kept]
    targets = None if targets is None else targets[kept]
    calibrating, judging = encoder.encode(calibration)[0], encoder.encode(held_out)[0]
    if card.task == "masked-lm":
        calibrating, _ = _masked(calibrating, encoder)
        judging, targets = _masked(judging, encoder)
    return Rows(calibrating, judging, targets, origin)


Found = tuple[list[str], list[str], np.ndarray | None, str]


def _of_recipe(card: Card, encoder: Encoder) -> Found:
    """The texts of the sources of the recipe in the card, cleaned."""
    ways_out = (
        "engines are measured on texts that were not trained on: make the recipe's data readable "
        "here, or give a file with --texts (a text a line, or a table with a column `text`)"
    )
    if "data" not in card.recipe:
        raise TextsError(f"the bundle was not trained here and names no data; {ways_out}")
    try:
        made = recipe.parse(card.recipe, "the recipe in bundle.json")
        corpus = gather(made, encoder.clean)
    except BerthaError as error:
        raise TextsError(f"{error}; {ways_out}") from None
    sides = [corpus.sides["validation"], corpus.sides["test"]]
    targets = np.concatenate([corpus.targets["validation"], corpus.targets["test"]])
    held_out = [text for side in sides for text in side.texts]
    if not held_out:
        raise TextsError(f"the recipe holds no rows out; {ways_out}")
    return corpus.sides["train"].texts, held_out, targets, f"{made.data.source}, held out"


def _of_file(path: Path, encoder: Encoder) -> Found:
    """The texts of a file, cleaned, divided by what they say."""
    try:
        raw = _texts(path)
    except DataError as error:
        raise TextsError(str(error)) from None
    cleaned = list(dict.fromkeys(filter(None, map(encoder.clean, raw))))
    sides = assign([digest(text) for text in cleaned], SHARE, 0.0)
    calibration = [text for text, side in zip(cleaned, sides, strict=True) if side == TRAIN]
    held_out = [text for text, side in zip(cleaned, sides, strict=True) if side != TRAIN]
    return calibration, held_out, None, str(path)


def _texts(path: Path) -> list[str]:
    """The texts of a table's column `text`, or the lines of any other file."""
    if readers.format_of(str(path)) is not None:
        return sources.read(str(path), Data(source=str(path)), labelled=False).texts
    with text_of(str(path), newline="\n") as lines:
        return [line.rstrip("\r\n") for line in lines]


def _spread(texts: Sequence[str], count: int) -> list[str]:
    return [texts[row] for row in spread(len(texts), count)]


def _masked(samples: Samples, encoder: Encoder) -> tuple[Samples, np.ndarray | None]:
    """The samples with tokens hidden behind masks, and what stood there, in order.

    Nobody knows what stands behind masks that the texts hold themselves: None where there are any.
    """
    assert isinstance(encoder, TextEncoder)
    vocabulary = encoder.vocabulary()
    rows, targets = [], []
    for row in range(len(samples)):
        ids, present = samples.collate([row], encoder.pad)
        masked = mask_tokens(ids, present, np.array([row]), 0, 0, Masking(), vocabulary)
        hidden = ids[0]
        hidden[masked.positions] = vocabulary.mask_id
        rows.append(hidden)
        targets.append(masked.targets)
    known = not (samples.values == vocabulary.mask_id).any()
    return ragged(rows, np.int32), np.concatenate(targets) if known else None
