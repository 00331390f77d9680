"""The card of a bundle, `bundle.json`: what the model does, how good it is, where it came from.

Reading a card verifies the SHA-256 of every file of the bundle. Loads no torch.
"""

import json
from pathlib import Path
from typing import Any

from pydantic import Field

from cluster.errors import BerthaError
from cluster.settings import Settings, SettingsError, validated
from trainers.recipe import Task
from trainers.sealed import flaw

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
    unlisted = {"config.json", "model.safetensors"} - set(card.files)
    if unlisted:
        raise BundleError(f"{directory}: {CARD} lists no {min(unlisted)}; it vouches for nothing")
    damage = flaw(directory, card.files)
    if damage is not None:
        raise BundleError(f"{directory}: {damage}; train again, or fetch the bundle again")
    return card
