"""The card of a bundle, `bundle.json`: what the model does, how good it is, where it came from.

Reading a card verifies the SHA-256 of every file of the bundle but those of its engines, which are
verified when they are loaded. Loads no torch.
"""

import json
from pathlib import Path
from typing import Any, Literal

from pydantic import Field

from cluster.errors import BerthaError
from cluster.settings import Settings, SettingsError, validated
from trainers.config.recipe import Task
from trainers.storage.atomic import flaw

FORMAT = 1
CARD = "bundle.json"
BATCH_TOKENS = 256  # computed at once by an engine that was not measured


class BundleError(BerthaError):
    """A directory that is no bundle, or not the one that was written; the text names the file."""


class Built(Settings):
    """An engine that was made from a bundle, and what it was measured to do on held-out texts.

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
    batch_tokens: int = Field(BATCH_TOKENS, description="tokens computed at once, as was fastest")
    num_bytes: int = Field(0, description="of memory")
    load_seconds: float = Field(0.0, description="until the first answer")
    trials: tuple[dict[str, Any], ...] = Field((), description="what was tried, in order")
    environment: dict[str, Any] = Field({}, description="versions and hardware it was measured on")


class Card(Settings):
    """The contents of `bundle.json`."""

    format: int = Field(FORMAT, description="version of this layout")
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
    engines: tuple[Built, ...] = Field((), description="made from this bundle, each measured")

    def batch_tokens(self, engine: str) -> int:
        """Tokens that an engine computes at once."""
        measured = (each.batch_tokens for each in self.engines if each.name == engine)
        return next(measured, BATCH_TOKENS)


def read(directory: Path) -> Card:
    """The card of a bundle whose files are all as they were written.

    Raises BundleError naming the first file that is missing, altered or unreadable.
    """
    if not directory.is_dir():
        raise BundleError(f"{directory}: no such directory; a training run leaves RUN/bundle")
    try:
        data = (directory / CARD).read_bytes()
    except OSError:
        raise BundleError(f"{directory}: no {CARD}; this is not a bundle") from None
    card = parsed(data, str(directory / CARD))
    unlisted = {"config.json", "model.safetensors"} - set(card.files)
    if unlisted:
        raise BundleError(f"{directory}: {CARD} lists no {min(unlisted)}; it vouches for nothing")
    damage = flaw(directory, card.files)
    if damage is not None:
        raise BundleError(f"{directory}: {damage}; train again, or fetch the bundle again")
    return card


def parsed(data: bytes, where: str) -> Card:
    """The card that `data` is. Raises BundleError that names `where` it was found."""
    try:
        settings = json.loads(data)
    except ValueError as error:
        raise BundleError(f"{where} is not JSON: {error}") from None
    if not isinstance(settings, dict) or settings.get("format") != FORMAT:
        raise BundleError(f"{where} is not of format {FORMAT}, the one this code reads")
    try:
        return validated(Card, settings, where)
    except SettingsError as error:
        raise BundleError(str(error)) from None


def written(card: Card) -> str:
    """A card as the text of `bundle.json`."""
    return json.dumps(card.model_dump(mode="json"), indent=2) + "\n"
