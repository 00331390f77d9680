"""What a trained model is on disk: the whole interface from training to serving.

A bundle is a directory with `config.json`, `model.safetensors` and the tokenizer, which
Transformers' `from_pretrained` loads unchanged, and its card, `bundle.json`.
"""

import json
from pathlib import Path

from trainers.card import CARD, Card
from trainers.encoding import Encoder
from trainers.encoding import load_encoder as encoder_from
from trainers.model import Model
from trainers.model import load as model_from
from trainers.sealed import digests, written_aside


def write(directory: Path, model: Model, encoder: Encoder, card: Card) -> Card:
    """Write a bundle to `directory`, which appears only when it is whole; the card as written."""
    with written_aside(directory) as aside:
        model.save(aside)
        encoder.save(aside)
        sealed = card.model_copy(update={"files": digests(aside)})
        (aside / CARD).write_text(json.dumps(sealed.model_dump(mode="json"), indent=2) + "\n")
    return sealed


def load_encoder(directory: Path, card: Card) -> Encoder:
    """The encoder that the bundle's model was trained with."""
    is_linear = card.recipe["model"]["name"] == "linear"
    return encoder_from("linear" if is_linear else str(directory), card.cleaning, card.max_length)


def load_model(directory: Path, card: Card) -> Model:
    """The bundle's model in evaluation mode."""
    return model_from(directory)
