"""Bundles, the interface from training to serving: a trained model on disk.

A bundle is a directory with `config.json`, `model.safetensors` and the tokenizer, which
Transformers' `from_pretrained` loads unchanged, its card, `bundle.json`, and the same for people,
`README.md`. Weights are written
one tensor at a time, so a bundle takes no more memory than its largest tensor.
"""

import copy
from collections.abc import Iterable, Iterator
from pathlib import Path

from torch import Tensor

from trainers.data import tokenizer
from trainers.data.cleaning import CLEANINGS
from trainers.data.tokenizer import Encoder
from trainers.models.bert import TextModel
from trainers.models.build import LinearModel, Model
from trainers.models.card import CARD_FILE, BundleError, ModelCard, serialize_card
from trainers.models.config import quiet_transformers
from trainers.models.model_card import run_name, write_readme
from trainers.storage import safetensors
from trainers.storage.atomic import atomic_directory, hash_files
from trainers.untrusted.bounded_json import UntrustedFileError


def write_bundle(
    directory: Path,
    model: Model,
    tensors: Iterable[tuple[str, Tensor]],
    encoder: Encoder,
    card: ModelCard,
) -> ModelCard:
    """Write a bundle to `directory`, atomically; return the card with the files' SHA-256.

    model: gives configuration and shapes; may be on the meta device. tensors: the weights by name,
    as from `Checkpoint.iter_tensors` or a model's `state_dict`.
    """
    with atomic_directory(directory) as aside:
        if isinstance(model, TextModel):
            _write_text_model(aside, model, tensors)
        else:
            linear = LinearModel(model.linear.in_features, model.linear.out_features)
            linear.load_state_dict(dict(tensors))
            linear.save_pretrained(aside)
        encoder.save(aside)
        sealed = card.model_copy(update={"files": hash_files(aside)})
        (aside / CARD_FILE).write_text(serialize_card(sealed))
        write_readme(aside, sealed, run_name(directory))
    return sealed


def _write_text_model(
    directory: Path, model: TextModel, tensors: Iterable[tuple[str, Tensor]]
) -> None:
    """Write `config.json` and `model.safetensors` as Transformers' `save_pretrained` does."""
    get = model.net.get_parameter
    # Of tied parameters only the source is written.
    tied = {name for name, source in model.tied_weights.items() if get(name) is get(source)}
    named = _strip_prefix(model.state_dict().items())
    like = {name: tensor for name, tensor in named if name not in tied}
    weights = ((name, tensor) for name, tensor in _strip_prefix(tensors) if name not in tied)
    safetensors.write_tensors(directory / "model.safetensors", like, weights)
    config = copy.deepcopy(model.config)
    config.architectures = [type(model.net).__name__]
    config.dtype = str(next(iter(like.values())).dtype).removeprefix("torch.")
    with quiet_transformers():
        config.save_pretrained(directory)


def _strip_prefix(tensors: Iterable[tuple[str, Tensor]]) -> Iterator[tuple[str, Tensor]]:
    return ((name.removeprefix("net."), tensor) for name, tensor in tensors)


def load_encoder(directory: Path, card: ModelCard) -> Encoder:
    """Load the encoder that the bundle's model was trained with. Raises BundleError."""
    if card.cleaning not in CLEANINGS:
        raise BundleError(
            f"{directory}: {CARD_FILE}: cleaning = {card.cleaning[:80]!r}: there is "
            f"{', '.join(CLEANINGS)}; fetch the bundle again, or update this software"
        )
    is_linear = card.recipe["model"]["name"] == "linear"
    source = "linear" if is_linear else str(directory)
    try:
        return tokenizer.load_encoder(source, card.cleaning, card.max_length, card.windows)
    except UntrustedFileError as error:
        raise BundleError(str(error)) from None
