"""What a trained model is on disk: the whole interface from training to serving.

A bundle is a directory with `config.json`, `model.safetensors` and the tokenizer, which
Transformers' `from_pretrained` loads unchanged, and `bundle.json`, the card: task, labels,
cleaning, metrics, where it came from, and the SHA-256 of every file.
"""

import json
from pathlib import Path
from typing import Any

from pydantic import Field

from cluster.errors import BerthaError
from cluster.settings import Settings, SettingsError, validated
from trainers.encoding import Encoder
from trainers.encoding import load_encoder as encoder_from
from trainers.model import Model
from trainers.model import load as model_from
from trainers.recipe import Task
from trainers.sealed import digests, flaw, written_aside

FORMAT = 1
CARD = "bundle.json"


class BundleError(BerthaError):
    """A directory that is no bundle, or not the one that was written; the text names the file."""


class Card(Settings):
    """The contents of `bundle.json`."""

    format: int = Field(FORMAT, description="version of this layout")
    task: Task
    labels: tuple[str, ...] = Field(description="class names in logit order; () for regression")
    cleaning: str = Field(description="name of the cleaning applied before the tokenizer")
    max_length: int = Field(description="tokens at which a text is cut")
    metrics: dict[str, Any] = Field(description="on the test rows, none of them trained on")
    recipe: dict[str, Any]
    data_fingerprint: str
    revision: str
    environment: dict[str, Any]
    files: dict[str, str] = Field({}, description="SHA-256 by file name")


def write(directory: Path, model: Model, encoder: Encoder, card: Card) -> Card:
    """Write a bundle to `directory`, which appears only when it is whole; the card as written."""
    with written_aside(directory) as aside:
        model.save(aside)
        encoder.save(aside)
        sealed = card.model_copy(update={"files": digests(aside)})
        (aside / CARD).write_text(json.dumps(sealed.model_dump(mode="json"), indent=2) + "\n")
    return sealed


def read(directory: Path) -> Card:
    """The card of a bundle whose files are all as they were written.

    Raises BundleError naming the first file that is missing, altered or unreadable.
    """
    if not directory.is_dir():
        raise BundleError(f"{directory}: no such directory; a training run leaves RUN/bundle")
    try:
        settings = json.loads((directory / CARD).read_text(encoding="utf-8"))
    except OSError:
        raise BundleError(f"{directory}: no {CARD}; this is not a bundle") from None
    except ValueError as error:
        raise BundleError(f"{directory}: {CARD} is not JSON: {error}") from None
    if not isinstance(settings, dict) or settings.get("format") != FORMAT:
        raise BundleError(f"{directory}: {CARD} is not of format {FORMAT}, the one this code reads")
    try:
        card = validated(Card, settings, str(directory / CARD))
    except SettingsError as error:
        raise BundleError(str(error)) from None
    damage = flaw(directory, card.files)
    if damage is not None:
        raise BundleError(f"{directory}: {damage}; train again, or fetch the bundle again")
    return card


def load_encoder(directory: Path, card: Card) -> Encoder:
    """The encoder that the bundle's model was trained with."""
    is_linear = card.recipe["model"]["name"] == "linear"
    return encoder_from("linear" if is_linear else str(directory), card.cleaning, card.max_length)


def load_model(directory: Path, card: Card) -> Model:
    """The bundle's model in evaluation mode."""
    return model_from(directory)
