"""The Transformers configuration of a recipe's BERT."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from huggingface_hub.errors import StrictDataclassError
from safetensors import SafetensorError
from transformers import AutoConfig, BertConfig, PreTrainedConfig
from transformers.utils import logging

from cluster.errors import BerthaError
from trainers.config.recipe import Recipe, Task
from trainers.config.sections import SIZES
from trainers.data.packages import resolve_model
from trainers.data.tokenizer import Encoder, TextEncoder, load_encoder
from trainers.models.families import FAMILIES
from trainers.untrusted.model_files import CONFIG_FILE, check_model_files

PROBLEM_TYPES: dict[Task, str] = {
    "classification": "single_label_classification",
    "multi-label": "multi_label_classification",
    "regression": "regression",
}


LIBRARY_ERRORS = (TypeError, ValueError, KeyError, AttributeError, RuntimeError)


class ModelError(BerthaError):
    """A model that cannot be loaded or used; the message says the way out."""


def build_config(
    recipe: Recipe, labels: tuple[str, ...], encoder: Encoder | None = None
) -> PreTrainedConfig:
    """Build the configuration of the recipe's BERT. encoder: gives a fresh model its vocabulary.

    Raises ModelError when the named model cannot be loaded or does not fit the recipe.
    """
    if recipe.model.name == "random":
        settings = _head_settings(recipe, labels) | _dropout_settings(recipe, "bert")
        return _fresh_config(recipe, settings, encoder)
    config = build_full_config(recipe, labels)
    if recipe.model.layers is not None:
        config.num_hidden_layers = len(recipe.model.layers)
    return config


def build_full_config(recipe: Recipe, labels: tuple[str, ...]) -> PreTrainedConfig:
    """Load the configuration of the model that the recipe names, with all of its layers.

    Raises ModelError when it cannot be loaded or does not fit the recipe.
    """
    settings = _head_settings(recipe, labels)
    with pretrained_source(recipe.model.name) as source:
        _check_family(recipe.model.name, PreTrainedConfig.get_config_dict(source)[0])
        config = AutoConfig.from_pretrained(source, trust_remote_code=False, **settings)
    # Weights are trained in fp32, whatever they were saved in: an update is often less than the
    # spacing of half-precision numbers.
    config.dtype = "float32"
    _check_family(recipe.model.name, {"model_type": config.model_type})
    _check_supported(recipe.model.name, config)
    config.update(_dropout_settings(recipe, config.model_type))
    max_length = config.max_position_embeddings
    if config.model_type == "roberta":
        max_length -= config.pad_token_id + 1  # its positions start behind the pad id
    if recipe.batch.max_length > max_length:
        raise ModelError(
            f"batch.max_length = {recipe.batch.max_length}: {recipe.model.name} has positions for "
            f"{max_length} tokens; set batch.max_length={max_length}"
        )
    last = config.num_hidden_layers - 1
    if recipe.model.layers is not None and recipe.model.layers[-1] > last:
        raise ModelError(
            f"model.layers = {list(recipe.model.layers)}: {recipe.model.name} has "
            f"{config.num_hidden_layers} layers; name some of 0 to {last}"
        )
    _check_frozen(recipe, config.num_hidden_layers)
    return config


def _check_frozen(recipe: Recipe, num_layers: int) -> None:
    """Raise ModelError where `model.freeze` asks for more layers than are trained."""
    frozen, kept = recipe.model.freeze, recipe.model.layers
    num_layers = num_layers if kept is None else len(kept)
    if isinstance(frozen, int) and frozen > num_layers:
        raise ModelError(
            f"model.freeze = {frozen}: {recipe.model.name} has {num_layers} layers here; give at "
            f"most {num_layers}, which is `encoder`"
        )


def _check_family(name: str, config: Mapping[str, Any]) -> None:
    """Raise ModelError where a configuration names a family that is not trained here."""
    family = config.get("model_type")
    if family is not None and family not in FAMILIES:
        raise ModelError(
            f"model.name = {name!r}: a {family} model; this trains models of type "
            f"{', '.join(FAMILIES)}"
        )


def _check_supported(name: str, config: PreTrainedConfig) -> None:
    """Raise ModelError for a variant of a known family that would be computed as if it were none.

    Old files name them; Transformers has dropped some and says nothing.
    """
    absolute = {"position_embedding_type": "absolute"}
    for key, plain in {**absolute, "is_decoder": False, "add_cross_attention": False}.items():
        value = getattr(config, key, plain)
        if value not in (plain, None):
            raise ModelError(
                f"model.name = {name!r}: its config.json has {key} = {value!r}, which is not "
                f"trained here; name a model with {plain!r}"
            )


def _head_settings(recipe: Recipe, labels: tuple[str, ...]) -> dict[str, Any]:
    if recipe.task == "masked-lm":
        return {}
    names = labels or ("value",)
    return {
        "num_labels": len(names),
        "id2label": dict(enumerate(names)),
        "label2id": {name: index for index, name in enumerate(names)},
        "problem_type": PROBLEM_TYPES[recipe.task],
    }


def _dropout_settings(recipe: Recipe, model_type: str) -> dict[str, float]:
    """Return the recipe's dropout rates under the family's names for them."""
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
def quiet_transformers() -> Iterator[None]:
    """Silence the progress bars and reports of Transformers."""
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
def pretrained_source(name: str) -> Iterator[str]:
    """Yield where to load `name` from, a directory once its files are checked; silence reports.

    Turns what a library raises for a model that is absent or broken into a ModelError.
    """
    if "://" in name:
        raise ModelError(
            f"model.name = {name!r}: a model is not read from a URL; download its directory, and "
            "name that"
        )
    source = resolve_model(name)
    if (Path(source) / CONFIG_FILE).exists():
        check_model_files(Path(source))
    try:
        with quiet_transformers():
            yield source
    except BerthaError:
        raise
    except (*LIBRARY_ERRORS, SafetensorError, StrictDataclassError) as error:
        reason = f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"
        raise ModelError(
            f"model.name = {name!r}: its files make no model ({reason}); fetch it again, or name "
            "another one"
        ) from None
    except OSError as error:
        raise ModelError(
            f"model.name = {name!r}: not a directory with a model, and not loadable from the hub "
            f"({str(error).splitlines()[0]}); give a directory, or package:all-minilm-l6-v2"
        ) from None


def _fresh_config(recipe: Recipe, settings: dict[str, Any], encoder: Encoder | None) -> BertConfig:
    encoder = encoder or load_encoder(recipe.model.tokenizer or "", "none", recipe.batch.max_length)
    assert isinstance(encoder, TextEncoder)
    sizes = {size: getattr(recipe.model, size) for size in SIZES}
    return BertConfig(
        vocab_size=encoder.num_tokens,
        max_position_embeddings=max(512, recipe.batch.max_length),
        pad_token_id=encoder.pad_id,
        **sizes,
        **settings,
    )
