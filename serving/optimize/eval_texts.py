"""Texts that engines are measured on: held out by the bundle's recipe, or of a file.

Texts to calibrate with come from the training split, texts to judge by from the held-out splits, as
the training run drew them.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from cluster.errors import BerthaError
from trainers.config import recipe
from trainers.config.data_section import DataConfig
from trainers.config.sections import MaskingConfig
from trainers.data import readers, sources
from trainers.data.corpus import gather_corpus
from trainers.data.files import DataError, open_text
from trainers.data.masking import mask_tokens
from trainers.data.ragged import RaggedArray, ragged_from_rows
from trainers.data.splits import TRAIN, assign_splits, spread_indices, text_hash
from trainers.data.tokenizer import Encoder, TextEncoder
from trainers.models.card import ModelCard

MAX_HELD_OUT = 2000
MAX_CALIBRATION = 300
MAX_MASKED = 64  # texts of a masked language model, whose logits are a vocabulary for each mask
SHARE = 0.75  # of the texts of a file, judged by; the rest calibrates

# Texts to calibrate with, texts to judge by, the targets of these, and where they come from.
TextSplit = tuple[Sequence[str], list[str], np.ndarray | None, str]


class TextsError(BerthaError):
    """No texts to measure engines on; the message names the reason and both ways out."""


@dataclass(frozen=True)
class EvalRows:
    """Encoded texts. targets: of `held_out`, in the shape the task's losses take, or None.

    origin: where they come from, for a person.
    """

    calibration: RaggedArray
    held_out: RaggedArray
    targets: np.ndarray | None
    origin: str


def load_eval_rows(card: ModelCard, encoder: Encoder, texts: Path | None = None) -> EvalRows:
    """Load rows for the engines of a bundle: of the file `texts`, else of the card's recipe.

    Raises TextsError.
    """
    calibration, held_out, targets, origin = (
        _texts_from_recipe(card, encoder) if texts is None else _texts_from_file(texts, encoder)
    )
    if not held_out or not calibration:
        raise TextsError(f"{origin}: too few texts to calibrate with and to judge by; give more")
    kept = spread_indices(len(calibration), MAX_CALIBRATION)
    calibration = [calibration[int(row)] for row in kept]
    kept = spread_indices(len(held_out), MAX_MASKED if card.task == "masked-lm" else MAX_HELD_OUT)
    held_out = [held_out[row] for row in kept]
    targets = None if targets is None else targets[kept]
    calibration_rows, rows = encoder.encode(calibration)[0], encoder.encode(held_out)[0]
    if card.task == "masked-lm":
        calibration_rows, _ = _mask_samples(calibration_rows, encoder)
        rows, targets = _mask_samples(rows, encoder)
    return EvalRows(calibration_rows, rows, targets, origin)


def _texts_from_recipe(card: ModelCard, encoder: Encoder) -> TextSplit:
    """Read and clean the texts of the recipe's sources."""
    ways_out = (
        "engines are measured on texts that were not trained on: make the recipe's data readable "
        "here, or give a file with --texts (a text a line, or a table with a column `text`)"
    )
    if "data" not in card.recipe:
        raise TextsError(f"the bundle was not trained here and names no data; {ways_out}")
    try:
        trained = recipe.parse_recipe(card.recipe, "the recipe in bundle.json")
        corpus = gather_corpus(trained, encoder.clean)
    except BerthaError as error:
        raise TextsError(f"{error}; {ways_out}") from None
    held_out = [*corpus.splits["validation"].texts, *corpus.splits["test"].texts]
    targets = np.concatenate([corpus.build_targets("validation"), corpus.build_targets("test")])
    if not held_out:
        raise TextsError(f"the recipe holds no rows out; {ways_out}")
    return corpus.splits["train"].texts, held_out, targets, f"{trained.data.source}, held out"


def _texts_from_file(path: Path, encoder: Encoder) -> TextSplit:
    """Read and clean the texts of a file, split by a hash of each text."""
    try:
        texts = _read_texts(path)
    except DataError as error:
        raise TextsError(str(error)) from None
    cleaned = list(dict.fromkeys(filter(None, map(encoder.clean, texts))))
    sides = assign_splits([text_hash(text) for text in cleaned], SHARE, 0.0)
    calibration = [text for text, side in zip(cleaned, sides, strict=True) if side == TRAIN]
    held_out = [text for text, side in zip(cleaned, sides, strict=True) if side != TRAIN]
    return calibration, held_out, None, str(path)


def _read_texts(path: Path) -> list[str]:
    """Return a table's column `text`, or the lines of any other file."""
    if readers.table_format(str(path)) is not None:
        return sources.read_source(str(path), DataConfig(source=str(path)), labelled=False).texts
    with open_text(str(path), newline="\n") as lines:
        return [line.rstrip("\r\n") for line in lines]


def _mask_samples(samples: RaggedArray, encoder: Encoder) -> tuple[RaggedArray, np.ndarray | None]:
    """Hide tokens behind masks; also return the hidden tokens, in order.

    None instead of tokens if the texts hold masks themselves, whose tokens nobody knows.
    """
    assert isinstance(encoder, TextEncoder)
    vocabulary = encoder.masking_vocabulary()
    rows, targets = [], []
    for row in range(len(samples)):
        hidden = samples.take([row])
        lengths, rows_of = np.array([len(hidden)]), np.array([row])
        masked = mask_tokens(hidden, lengths, rows_of, 0, 0, MaskingConfig(), vocabulary)
        hidden[masked.positions] = vocabulary.mask_id
        rows.append(hidden)
        targets.append(masked.targets)
    has_masks = (samples.values == vocabulary.mask_id).any()
    return ragged_from_rows(rows, np.int32), None if has_masks else np.concatenate(targets)
