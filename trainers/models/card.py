"""The model card of a bundle, `bundle.json`: the task, the metrics and the provenance of a model.

Imports no torch, so that light commands can read cards.
"""

import json
from pathlib import Path
from typing import Any, Literal

from pydantic import Field

from cluster.errors import BerthaError
from cluster.settings import Settings, SettingsError, validate_settings
from trainers.config.recipe import Task
from trainers.storage.atomic import find_corruption

CARD_FORMAT = 1
CARD_FILE = "bundle.json"
DEFAULT_BATCH_TOKENS = 256  # computed at once by an engine that was not measured


class BundleError(BerthaError):
    """A directory that is not a bundle, or a corrupted one; the message names the file."""


class EngineRecord(Settings):
    """An engine built from a bundle, with its measurements on held-out texts.

    Speed and memory are those of one thread of the machine in `environment`.
    """

    name: str = Field(description="as in `onnxruntime int8`")
    chosen: bool = Field(False, description="whether this engine answers unless another is named")
    directory: str = Field("", description="in the bundle; '' for an engine without files")
    files: dict[str, str] = Field({}, description="SHA-256 by file name")
    agreement: float = Field(description="share of the rows answered as torch fp32 answers them")
    max_logit_difference: float = Field(description="from torch fp32, over all rows")
    refused: str = Field("", description="why it may not serve; '' where it may")
    rows: int = Field(description="held-out texts, or masks of a masked language model")
    metrics: dict[str, Any] = Field({}, description="on the held-out rows, where they have labels")
    texts_per_second: dict[str, float] = Field(
        {}, description="texts a CPU-second of one thread, short ones and long ones"
    )
    batch_tokens: int = Field(
        DEFAULT_BATCH_TOKENS, description="tokens computed at once, as was fastest"
    )
    num_bytes: int = Field(0, description="of memory")
    load_seconds: float = Field(0.0, description="until the first answer")
    trials: tuple[dict[str, Any], ...] = Field((), description="what was tried, in order")
    environment: dict[str, Any] = Field({}, description="versions and hardware it was measured on")


class ModelCard(Settings):
    """The contents of `bundle.json`."""

    format: int = Field(CARD_FORMAT, description="version of this layout")
    task: Task | Literal["embedding"]
    labels: tuple[str, ...] = Field(description="class names in logit order; () for regression")
    cleaning: str = Field(description="name of the cleaning applied before the tokenizer")
    max_length: int = Field(description="tokens at which a text is cut")
    pooling: Literal["mean", "cls"] | None = Field(
        None,
        description="what becomes of the hidden states of an embedding, before its length is 1",
    )
    metrics: dict[str, Any] = Field(description="on the test rows, none of them trained on")
    recipe: dict[str, Any]
    data_fingerprint: str
    revision: str
    environment: dict[str, Any]
    files: dict[str, str] = Field({}, description="SHA-256 by file name, without the engines")
    engines: tuple[EngineRecord, ...] = Field(
        (), description="made from this bundle, each measured"
    )

    def batch_tokens(self, engine: str) -> int:
        """Return how many tokens `engine` computes at once."""
        measured = (each.batch_tokens for each in self.engines if each.name == engine)
        return next(measured, DEFAULT_BATCH_TOKENS)


def read_card(directory: Path) -> ModelCard:
    """Read the card of a bundle and verify the SHA-256 of every file it lists.

    Engines are verified when they are loaded. Raises BundleError naming the first file that is
    missing, altered or unreadable.
    """
    if not directory.is_dir():
        raise BundleError(f"{directory}: no such directory; a training run leaves RUN/bundle")
    try:
        data = (directory / CARD_FILE).read_bytes()
    except OSError:
        raise BundleError(f"{directory}: no {CARD_FILE}; this is not a bundle") from None
    card = parse_card(data, str(directory / CARD_FILE))
    unlisted = {"config.json", "model.safetensors"} - set(card.files)
    if unlisted:
        raise BundleError(
            f"{directory}: {CARD_FILE} does not list {min(unlisted)}, so it cannot be verified"
        )
    damage = find_corruption(directory, card.files)
    if damage is not None:
        raise BundleError(f"{directory}: {damage}; train again, or fetch the bundle again")
    return card


def parse_card(data: bytes, where: str) -> ModelCard:
    """Parse the contents of a `bundle.json`. Raises BundleError that names `where` it came from."""
    try:
        settings = json.loads(data)
    except ValueError as error:
        raise BundleError(f"{where} is not JSON: {error}") from None
    if not isinstance(settings, dict) or settings.get("format") != CARD_FORMAT:
        raise BundleError(f"{where} is not of format {CARD_FORMAT}, the one this code reads")
    try:
        return validate_settings(ModelCard, settings, where)
    except SettingsError as error:
        raise BundleError(str(error)) from None


def serialize_card(card: ModelCard) -> str:
    """Return the contents of `bundle.json`."""
    return json.dumps(card.model_dump(mode="json"), indent=2) + "\n"
