"""The sizes of a recipe's model: of a `random` one, of a directory's config.json, of a known name.

Known names stand in cluster/hardware/tables/models.csv. Knows no data and no hardware.
"""

from __future__ import annotations

import difflib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from cluster.costmodel.model_shape import Head, Shape
from cluster.errors import BerthaError
from cluster.hardware.catalog import table
from cluster.planning.recipe_reader import Sketch
from cluster.settings import SettingsError

VOCABULARY = 30522  # of BERT, where a `random` model's tokenizer is not at hand
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


class SizesError(BerthaError):
    """A model whose sizes are not known; the text says what to give."""


def shape_of(sketch: Sketch) -> Shape:
    """The sizes of the recipe's model: of a `random` one, a directory's, or a known name's."""
    head: Head = "masked-lm" if sketch.task == "masked-lm" else "classification"
    labels = 0 if head == "masked-lm" else max(1, len(sketch.data.labels or (0, 0)))
    model = sketch.model
    if model.name == "random":
        sizes = (model.hidden_size, model.num_hidden_layers, model.num_attention_heads)
        if None in sizes or model.intermediate_size is None:
            raise SettingsError("a `random` model needs hidden_size, num_hidden_layers, ... of it")
        row = _random(sketch)
    elif (Path(model.name) / "config.json").is_file():
        row = _of_config(Path(model.name) / "config.json")
    else:
        row = _of_name(model.name)
    hidden, layers, heads, wide, words, places, types, embedding = (int(row[n]) for n in SIZES)
    cls_only = str(row.get("cls_only", "yes")) == "yes"
    layers = len(model.layers or range(layers))  # a student may keep some of them
    return Shape(
        hidden, layers, heads, wide, words, places, types, embedding, head, labels,
        cls_only=cls_only,
    )  # fmt: skip


def _random(sketch: Sketch) -> Mapping[str, Any]:
    model = sketch.model
    return {
        "hidden_size": model.hidden_size,
        "num_layers": model.num_hidden_layers,
        "num_heads": model.num_attention_heads,
        "intermediate_size": model.intermediate_size,
        "vocab_size": model.vocabulary_size or VOCABULARY,
        "max_positions": max(512, sketch.batch.max_length),
        "type_vocab_size": 2,
        "embedding_size": model.hidden_size,
    }


def _of_config(path: Path) -> Mapping[str, Any]:
    """Of a directory's config.json; DistilBERT has its own names."""
    config = json.loads(path.read_text())
    family = config.get("model_type")
    if family not in ("bert", "roberta", "electra", "distilbert"):
        raise SizesError(f"{path}: a {family} model; known are bert, roberta, electra, distilbert")
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


def _of_name(name: str) -> Mapping[str, Any]:
    rows = {row["name"]: row for row in table("models")}
    short = {known.rpartition("/")[2]: known for known in rows}
    found = rows.get(name) or rows.get(short.get(name.rpartition("/")[2], ""))
    if found is None:
        close = difflib.get_close_matches(name, [*rows, *short], n=1, cutoff=0.5)
        meant = f"; did you mean {close[0]}?" if close else ""
        raise SizesError(
            f"model.name = {name!r}: its sizes are not known{meant}; give a directory with a "
            "config.json, or model.name=random with the sizes"
        )
    return found
