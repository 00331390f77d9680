"""The `Shape` of a Transformers configuration: where each family keeps its sizes."""

from typing import Any

from cluster.costmodel.model_shape import Head, Shape
from cluster.errors import BerthaError

FAMILIES = ("bert", "roberta", "distilbert", "electra", "modernbert")


class ShapeError(BerthaError):
    """A configuration whose sizes this does not know how to read; the text says what it knows."""


def shape_of(config: Any, task: str, num_labels: int = 0) -> Shape:
    """The sizes of `config`'s model for `task`: masked-lm, or one that classifies or regresses.

    num_labels: outputs of the classifier; regression has one. Raises ShapeError for a family or a
    variant that is not known.
    """
    head: Head = "masked-lm" if task == "masked-lm" else "classification"
    labels = 0 if head == "masked-lm" else max(1, num_labels)
    family = str(config.model_type)
    if family not in FAMILIES:
        raise ShapeError(
            f"a {family} model: its sizes are not known; choose one of {', '.join(FAMILIES)}"
        )
    if family == "modernbert":
        return _modernbert(config, head, labels)
    hidden = int(config.hidden_size)
    return Shape(
        hidden_size=hidden,
        num_layers=int(config.num_hidden_layers),
        num_heads=int(config.num_attention_heads),
        intermediate_size=int(
            config.hidden_dim if family == "distilbert" else config.intermediate_size
        ),
        vocab_size=int(config.vocab_size),
        max_positions=int(config.max_position_embeddings),
        type_vocab_size=0 if family == "distilbert" else int(config.type_vocab_size),
        embedding_size=int(config.embedding_size) if family == "electra" else hidden,
        head=head,
        num_labels=labels,
        cls_only=family != "distilbert",
    )


def _modernbert(config: Any, head: Head, num_labels: int) -> Shape:
    """Rotary positions, a gated feed-forward, and no biases in the published ones."""
    for name in ("attention_bias", "mlp_bias", "norm_bias", "classifier_bias"):
        if getattr(config, name):
            raise ShapeError(f"a modernbert with {name}: only models without it are known")
    hidden = int(config.hidden_size)
    return Shape(
        hidden_size=hidden,
        num_layers=int(config.num_hidden_layers),
        num_heads=int(config.num_attention_heads),
        intermediate_size=int(config.intermediate_size),
        vocab_size=int(config.vocab_size),
        max_positions=0,
        type_vocab_size=0,
        embedding_size=hidden,
        head=head,
        num_labels=num_labels,
        gated=True,
        biases=False,
        pre_norm=True,
        cls_only=False,
    )
