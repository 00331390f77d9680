"""The sizes of a model, read from its Transformers configuration."""

from typing import Any

from cluster.costmodel.model_shape import Head, ModelShape
from cluster.errors import BerthaError

MODEL_TYPES = ("bert", "roberta", "distilbert", "electra", "modernbert")


class ShapeError(BerthaError):
    """A configuration of an unsupported kind; the message lists the supported ones."""


def shape_from_config(config: Any, task: str, num_labels: int = 0) -> ModelShape:
    """Return the sizes of `config`'s model with the head for `task`.

    num_labels: outputs of the classifier; regression has one. Raises ShapeError for an unsupported
    family or variant.
    """
    head: Head = "masked-lm" if task == "masked-lm" else "classification"
    family = str(config.model_type)
    if family not in MODEL_TYPES:
        raise ShapeError(
            f"a {family} model: its sizes are not known; choose one of {', '.join(MODEL_TYPES)}"
        )
    hidden = int(config.hidden_size)
    common: dict[str, Any] = {
        "hidden_size": hidden,
        "num_layers": int(config.num_hidden_layers),
        "num_heads": int(config.num_attention_heads),
        "vocab_size": int(config.vocab_size),
        "embedding_size": int(config.embedding_size) if family == "electra" else hidden,
        "head": head,
        "num_labels": 0 if head == "masked-lm" else max(1, num_labels),
    }
    if family == "modernbert":  # rotary positions, a gated feed-forward, no biases
        for name in ("attention_bias", "mlp_bias", "norm_bias", "classifier_bias"):
            if getattr(config, name):
                raise ShapeError(f"a modernbert with {name}: only models without it are known")
        return ModelShape(
            **common,
            intermediate_size=int(config.intermediate_size),
            max_positions=0,
            type_vocab_size=0,
            gated=True,
            biases=False,
            pre_norm=True,
            cls_only=False,
        )
    distilbert = family == "distilbert"
    return ModelShape(
        **common,
        intermediate_size=int(config.hidden_dim if distilbert else config.intermediate_size),
        max_positions=int(config.max_position_embeddings),
        type_vocab_size=0 if distilbert else int(config.type_vocab_size),
        cls_only=not distilbert,
    )
