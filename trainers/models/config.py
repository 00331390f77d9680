"""The shape of a recipe's BERT: its configuration and its size. Allocates nothing."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from transformers import AutoConfig, BertConfig, PreTrainedConfig
from transformers.utils import logging

from cluster.errors import BerthaError
from trainers.config.recipe import SIZES, Recipe, Task
from trainers.data.packages import resolve_model
from trainers.data.tokenizer import Encoder, TextEncoder, load_encoder
from trainers.models.families import FAMILIES

PROBLEM_TYPES: dict[Task, str] = {
    "classification": "single_label_classification",
    "multi-label": "multi_label_classification",
    "regression": "regression",
}


class ModelError(BerthaError):
    """A model that cannot be had or used; the text says the way out."""


def config_of(
    recipe: Recipe, labels: tuple[str, ...], encoder: Encoder | None = None
) -> PreTrainedConfig:
    """The configuration of the recipe's BERT. encoder: of a fresh model, for its vocabulary.

    Raises ModelError when it cannot be had or used.
    """
    if recipe.model.name == "random":
        settings = _head(recipe, labels) | _dropouts(recipe, "bert")
        return _fresh_config(recipe, settings, encoder)
    config = whole_config_of(recipe, labels)
    if recipe.model.layers is not None:
        config.num_hidden_layers = len(recipe.model.layers)
    return config


def whole_config_of(recipe: Recipe, labels: tuple[str, ...]) -> PreTrainedConfig:
    """The configuration of the model that the recipe names, with all the layers it has.

    Raises ModelError when it cannot be had or used.
    """
    settings = _head(recipe, labels)
    with from_hub(recipe.model.name) as source:
        config = AutoConfig.from_pretrained(source, trust_remote_code=False, **settings)
    if config.model_type not in FAMILIES:
        raise ModelError(
            f"model.name = {recipe.model.name!r}: a {config.model_type} model; "
            f"this trains models of type {', '.join(FAMILIES)}"
        )
    config.update(_dropouts(recipe, config.model_type))
    longest = config.max_position_embeddings
    if config.model_type == "roberta":
        longest -= config.pad_token_id + 1  # its positions count from there
    if recipe.batch.max_length > longest:
        raise ModelError(
            f"batch.max_length = {recipe.batch.max_length}: {recipe.model.name} has positions for "
            f"{longest} tokens; set batch.max_length={longest}"
        )
    most = config.num_hidden_layers - 1
    if recipe.model.layers is not None and recipe.model.layers[-1] > most:
        raise ModelError(
            f"model.layers = {list(recipe.model.layers)}: {recipe.model.name} has "
            f"{config.num_hidden_layers} layers; name some of 0 to {most}"
        )
    return config


def _head(recipe: Recipe, labels: tuple[str, ...]) -> dict[str, Any]:
    """The settings of what reads the last layer."""
    if recipe.task == "masked-lm":
        return {}
    names = labels or ("value",)
    return {
        "num_labels": len(names),
        "id2label": dict(enumerate(names)),
        "label2id": {name: index for index, name in enumerate(names)},
        "problem_type": PROBLEM_TYPES[recipe.task],
    }


def _dropouts(recipe: Recipe, model_type: str) -> dict[str, float]:
    """The recipe's dropouts, by the names that the family gives them."""
    hidden, attention, classifier = (
        ("dropout", "attention_dropout", "seq_classif_dropout")
        if model_type == "distilbert"
        else ("hidden_dropout_prob", "attention_probs_dropout_prob", "classifier_dropout")
    )
    return {
        hidden: recipe.model.dropout,
        attention: recipe.model.attention_dropout,
        classifier: recipe.model.dropout,
    }


@contextmanager
def quiet() -> Iterator[None]:
    """Transformers without its progress bars and reports."""
    verbosity, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(verbosity)
        if bars:
            logging.enable_progress_bar()


@contextmanager
def from_hub(name: str) -> Iterator[str]:
    """The place to load `name` from, with Transformers quiet and its failures in our words."""
    try:
        with quiet():
            yield resolve_model(name)
    except OSError as error:
        raise ModelError(
            f"model.name = {name!r}: not a directory with a model, and not to be had from the hub "
            f"({str(error).splitlines()[0]}); give a directory, or package:all-minilm-l6-v2"
        ) from None


def _fresh_config(recipe: Recipe, settings: dict[str, Any], encoder: Encoder | None) -> BertConfig:
    encoder = encoder or load_encoder(recipe.model.tokenizer or "", "none", recipe.batch.max_length)
    assert isinstance(encoder, TextEncoder)
    sizes = {size: getattr(recipe.model, size) for size in SIZES}
    return BertConfig(
        vocab_size=encoder.num_tokens,
        max_position_embeddings=max(512, recipe.batch.max_length),
        pad_token_id=encoder.pad,
        **sizes,
        **settings,
    )
