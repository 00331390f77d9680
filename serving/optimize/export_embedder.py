"""An encoder becomes a bundle that answers embeddings; nothing is trained.

write("package:all-minilm-l6-v2", Path("runs/embedder/bundle"))
"""

from pathlib import Path
from typing import Any, Literal

from serving.engine import networks
from trainers.data.tokenizer import load_encoder
from trainers.models.card import CARD, Card, written
from trainers.models.config import ModelError, quiet
from trainers.storage.atomic import digests, written_aside
from trainers.tracking import provenance

Pooling = Literal["mean", "cls"]
MAX_LENGTH = 256  # as the small sentence encoders were trained


def write(
    model_directory: Path | str,
    out: Path,
    pooling: Pooling = "mean",
    max_length: int = MAX_LENGTH,
    cleaning: str = "none",
) -> Card:
    """Write the bundle `out` of an encoder: a directory, a hub name or `package:NAME`.

    pooling: "mean" over the tokens, or "cls"; the vector's length is made 1 either way. cleaning:
    "none", so that a text has the vector that other servers of the encoder give it. Raises
    ModelError or EncodingError where there is no such encoder, or it reads no such length.
    """
    source = str(model_directory)
    model = networks.encoder_of(source)
    longest = _longest(model.config)
    if max_length > longest:
        raise ModelError(
            f"max_length {max_length}: {source} has positions for {longest} tokens; give "
            f"{longest} or fewer"
        )
    encoder = load_encoder(source, cleaning, max_length)
    card = Card(
        task="embedding",
        labels=(),
        cleaning=cleaning,
        max_length=max_length,
        pooling=pooling,
        metrics={},
        recipe={"model": {"name": source}},
        data_fingerprint="",
        revision=provenance.revision(),
        environment=provenance.environment(),
    )
    with written_aside(out) as aside:
        with quiet():
            model.save_pretrained(aside)
        encoder.save(aside)
        sealed = card.model_copy(update={"files": digests(aside)})
        (aside / CARD).write_text(written(sealed), encoding="utf-8")
    return sealed


def _longest(config: Any) -> int:
    """Tokens that a model has positions for."""
    longest: int = config.max_position_embeddings
    if config.model_type == "roberta":
        longest -= config.pad_token_id + 1  # its positions count from there
    return longest
