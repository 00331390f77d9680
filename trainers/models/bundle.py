"""What a trained model is on disk: the whole interface from training to serving.

A bundle is a directory with `config.json`, `model.safetensors` and the tokenizer, which
Transformers' `from_pretrained` loads unchanged, and its card, `bundle.json`. Weights pass through
one tensor at a time, so that writing a bundle takes no more memory than its largest tensor.
"""

import copy
import json
from collections.abc import Iterable, Iterator
from pathlib import Path

from torch import Tensor

from trainers.data.tokenizer import Encoder
from trainers.data.tokenizer import load_encoder as encoder_from
from trainers.models.bert import TextModel
from trainers.models.build import LinearModel, Model
from trainers.models.build import load as model_from
from trainers.models.card import CARD, Card
from trainers.models.config import quiet
from trainers.storage import safetensors
from trainers.storage.atomic import digests, written_aside


def write(
    directory: Path,
    model: Model,
    tensors: Iterable[tuple[str, Tensor]],
    encoder: Encoder,
    card: Card,
) -> Card:
    """Write a bundle to `directory`, which appears only when it is whole; the card as written.

    model: its kind, configuration and shapes; may be on the meta device. tensors: the weights, by
    name in the whole model: of `Checkpoint.tensors`, or of a model's `state_dict`.
    """
    with written_aside(directory) as aside:
        if isinstance(model, TextModel):
            _write_text_model(aside, model, tensors)
        else:
            linear = LinearModel(model.linear.in_features, model.linear.out_features)
            linear.load_state_dict(dict(tensors))
            linear.save(aside)
        encoder.save(aside)
        sealed = card.model_copy(update={"files": digests(aside)})
        (aside / CARD).write_text(json.dumps(sealed.model_dump(mode="json"), indent=2) + "\n")
    return sealed


def _write_text_model(
    directory: Path, model: TextModel, tensors: Iterable[tuple[str, Tensor]]
) -> None:
    """Write `config.json` and `model.safetensors` as Transformers' `save_pretrained` does.

    Of tied parameters only the source is written.
    """
    get = model.net.get_parameter
    tied = {name for name, source in model.tied.items() if get(name) is get(source)}
    like = {name: tensor for name, tensor in _named(model.state_dict().items()) if name not in tied}
    weights = ((name, tensor) for name, tensor in _named(tensors) if name not in tied)
    safetensors.write(directory / "model.safetensors", like, weights)
    config = copy.deepcopy(model.config)
    config.architectures = [type(model.net).__name__]
    config.dtype = str(next(iter(like.values())).dtype).removeprefix("torch.")
    with quiet():
        config.save_pretrained(directory)


def _named(tensors: Iterable[tuple[str, Tensor]]) -> Iterator[tuple[str, Tensor]]:
    """`tensors` by their names in Transformers."""
    return ((name.removeprefix("net."), tensor) for name, tensor in tensors)


def load_encoder(directory: Path, card: Card) -> Encoder:
    """The encoder that the bundle's model was trained with."""
    is_linear = card.recipe["model"]["name"] == "linear"
    return encoder_from("linear" if is_linear else str(directory), card.cleaning, card.max_length)


def load_model(directory: Path, card: Card) -> Model:
    """The bundle's model in evaluation mode."""
    return model_from(directory)
