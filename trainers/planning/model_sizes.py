"""Sizes of a recipe's model without loading it: no torch, no tokenizer, no download.

A `random` model's stand in the recipe, a directory's in its config.json, those of well-known models
in cluster/hardware/tables/models.csv.
"""

from __future__ import annotations

import difflib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from cluster.costmodel.model_shape import ModelShape
from cluster.errors import BerthaError
from cluster.hardware.catalog import read_table
from trainers.config.recipe import Recipe

BERT_VOCABULARY = 30522  # where a `random` model's tokenizer is not trained or loaded yet
SIZES = (
    "hidden_size",
    "num_layers",
    "num_heads",
    "intermediate_size",
    "vocab_size",
    "max_positions",
    "type_vocab_size",
    "embedding_size",
)


class ModelSizesError(BerthaError):
    """A model of unknown sizes; the text says how to give them."""


def known_shape(recipe: Recipe) -> ModelShape:
    """Return the shape of the recipe's model. Raises ModelSizesError for an unknown name."""
    model = recipe.model
    if model.name == "random":
        row = _sizes_of_random(recipe)
    elif (Path(model.name) / "config.json").is_file():
        row = _sizes_in_config(Path(model.name) / "config.json")
    else:
        row = _sizes_in_table(model.name)
    sizes: dict[str, Any] = {name: int(row[name]) for name in SIZES}
    if model.layers is not None:  # a student may keep only some of its teacher's layers
        sizes["num_layers"] = len(model.layers)
    cls_only = row.get("cls_only", "yes") == "yes"
    if recipe.task == "masked-lm":
        return ModelShape(**sizes, head="masked-lm", cls_only=cls_only)
    labels = max(1, len(recipe.data.labels or ("no", "yes")))
    return ModelShape(**sizes, head="classification", num_labels=labels, cls_only=cls_only)


def _sizes_of_random(recipe: Recipe) -> Mapping[str, Any]:
    model = recipe.model
    return {
        "hidden_size": model.hidden_size,
        "num_layers": model.num_hidden_layers,
        "num_heads": model.num_attention_heads,
        "intermediate_size": model.intermediate_size,
        "vocab_size": model.vocabulary_size or BERT_VOCABULARY,
        "max_positions": max(512, recipe.batch.max_length),
        "type_vocab_size": 2,
        "embedding_size": model.hidden_size,
    }


def _sizes_in_config(path: Path) -> Mapping[str, Any]:
    """Read a Transformers config.json; DistilBERT has names of its own."""
    config = json.loads(path.read_text())
    family = config.get("model_type")
    if family not in ("bert", "roberta", "electra", "distilbert"):
        raise ModelSizesError(
            f"{path}: a {family} model; known are bert, roberta, electra, distilbert"
        )
    hidden = config.get("hidden_size", config.get("dim"))
    return {
        "hidden_size": hidden,
        "num_layers": config.get("num_hidden_layers", config.get("n_layers")),
        "num_heads": config.get("num_attention_heads", config.get("n_heads")),
        "intermediate_size": config.get("intermediate_size", config.get("hidden_dim")),
        "vocab_size": config["vocab_size"],
        "max_positions": config["max_position_embeddings"],
        "type_vocab_size": 0 if family == "distilbert" else config.get("type_vocab_size", 2),
        "embedding_size": config.get("embedding_size", hidden) if family == "electra" else hidden,
        "cls_only": "no" if family == "distilbert" else "yes",
    }


def _sizes_in_table(name: str) -> Mapping[str, Any]:
    rows = {row["name"]: row for row in read_table("models")}
    short = {known.rpartition("/")[2]: known for known in rows}
    row = rows.get(name) or rows.get(short.get(name.rpartition("/")[2], ""))
    if row is None:
        close = difflib.get_close_matches(name, [*rows, *short], n=1, cutoff=0.5)
        suggestion = f"; did you mean {close[0]}?" if close else ""
        raise ModelSizesError(
            f"model.name = {name!r}: its sizes are not known{suggestion}; give a directory with a "
            "config.json, or model.name=random with the sizes"
        )
    return row
