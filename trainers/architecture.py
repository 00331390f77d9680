"""The shape of a recipe's BERT: its configuration and its size. Allocates nothing."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from transformers import AutoConfig, AutoTokenizer, BertConfig
from transformers.utils import logging

from cluster.errors import BerthaError
from trainers.packages import resolve_model
from trainers.recipe import SIZES, Recipe, Task

PROBLEM_TYPES: dict[Task, str] = {
    "classification": "single_label_classification",
    "multi-label": "multi_label_classification",
    "regression": "regression",
}


class ModelError(BerthaError):
    """A model that cannot be had or used; the text says the way out."""


def config_of(recipe: Recipe, labels: tuple[str, ...]) -> BertConfig:
    """The configuration of the recipe's BERT. Raises ModelError when it cannot be had or used."""
    names = labels or ("value",)
    settings = {
        "num_labels": len(names),
        "id2label": dict(enumerate(names)),
        "label2id": {name: index for index, name in enumerate(names)},
        "problem_type": PROBLEM_TYPES[recipe.task],
        "hidden_dropout_prob": recipe.model.dropout,
        "attention_probs_dropout_prob": recipe.model.attention_dropout,
        "classifier_dropout": recipe.model.dropout,
    }
    if recipe.model.name == "random":
        return _fresh_config(recipe, settings)
    with from_hub(recipe.model.name) as source:
        config = AutoConfig.from_pretrained(source, trust_remote_code=False, **settings)
    if config.model_type != "bert":
        raise ModelError(
            f"model.name = {recipe.model.name!r}: a {config.model_type} model; "
            "this trains models of type bert"
        )
    longest = config.max_position_embeddings
    if recipe.batch.max_length > longest:
        raise ModelError(
            f"batch.max_length = {recipe.batch.max_length}: {recipe.model.name} has positions for "
            f"{longest} tokens; set batch.max_length={longest}"
        )
    return config


def num_parameters(config: BertConfig) -> int:
    """Parameters of BertForSequenceClassification: embeddings, layers, pooler, classifier."""
    hidden, wide = config.hidden_size, config.intermediate_size
    tables = config.vocab_size + config.max_position_embeddings + config.type_vocab_size
    embeddings = tables * hidden + 2 * hidden
    attention = 4 * (hidden * hidden + hidden) + 2 * hidden
    feed_forward = hidden * wide + wide + wide * hidden + hidden + 2 * hidden
    pooler = hidden * hidden + hidden
    classifier = (hidden + 1) * config.num_labels
    layers = config.num_hidden_layers * (attention + feed_forward)
    return int(layers + embeddings + pooler + classifier)


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


def _fresh_config(recipe: Recipe, settings: dict[str, Any]) -> BertConfig:
    tokenizer = AutoTokenizer.from_pretrained(
        resolve_model(recipe.model.tokenizer or ""), trust_remote_code=False
    )
    sizes = {size: getattr(recipe.model, size) for size in SIZES}
    return BertConfig(
        vocab_size=len(tokenizer),
        max_position_embeddings=max(512, recipe.batch.max_length),
        pad_token_id=tokenizer.pad_token_id,
        **sizes,
        **settings,
    )
