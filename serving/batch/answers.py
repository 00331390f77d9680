"""The columns that a model adds to a table, and what stands in them."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pyarrow

from cluster.errors import BerthaError
from serving.interface import Prediction
from serving.protocols.labels import choose_labels
from trainers.models.card import ModelCard

LABEL, SCORE, PROBABILITY, EMBEDDING = "label", "score", "probability_", "embedding"
PREFIX = "answer_"  # that is suggested where a name is taken


class AnswerError(BerthaError):
    """A model or a table that files of answers are not made of; the message says the way out."""


@dataclass(frozen=True)
class AnswerColumns:
    """What a model says of a text, as the cells of a row.

    classification: label, and a probability of each label. multi-label: the same, its labels joined
    by `separator` in a flat format, else a list. regression: score. embedding: its vector, as JSON
    in a flat format, else a list. A text that holds nothing has empty cells.

    is_flat: of CSV and TSV. prefix: before each name. separator: between labels.
    """

    task: str
    labels: tuple[str, ...]
    thresholds: Mapping[str, float]
    is_flat: bool
    prefix: str = ""
    separator: str = "|"

    @classmethod
    def of_card(cls, card: ModelCard, is_flat: bool, prefix: str = "") -> "AnswerColumns":
        """Return the columns of a bundle. Raises AnswerError for a masked language model."""
        if card.task == "masked-lm":
            raise AnswerError(
                "a masked language model fills masks and answers no files; ask it text by text, "
                "as in bertha serve"
            )
        separator = str(card.recipe.get("data", {}).get("label_separator", "|"))
        return cls(card.task, card.labels, card.thresholds, is_flat, prefix, separator)

    def extend_schema(self, schema: pyarrow.Schema, source: str) -> pyarrow.Schema:
        """Return the schema of the table with these columns behind. Raises AnswerError.

        source: the table, named where it has such a column already.
        """
        for field in self._fields():
            if field.name in schema.names:
                raise AnswerError(
                    f"{source}: has a column {field.name!r} already; add --prefix {PREFIX}, and "
                    f"the new one is {PREFIX}{field.name.removeprefix(self.prefix)}"
                )
            schema = schema.append(field)
        return schema

    def format_value(self, value: Any) -> tuple[Any, ...]:
        """Return the cells of a value of `Engine.infer`; empty ones of None."""
        if value is None:
            return (None,) * len(self._fields())
        if not isinstance(value, Prediction):
            return ([_shorten(each) for each in value.tolist()],)
        scores = tuple(map(_shorten, value.scores))
        if self.task == "regression":
            return scores
        chosen = choose_labels(value.scores, self.labels, self.task, self.thresholds)
        return (self._join_labels(chosen), *scores)

    def _join_labels(self, chosen: Sequence[str]) -> str | list[str]:
        is_list = self.task == "multi-label" and not self.is_flat
        return list(chosen) if is_list else self.separator.join(chosen)

    def _fields(self) -> list[pyarrow.Field]:
        text, number = pyarrow.string(), pyarrow.float64()
        if self.task == "embedding":
            names = {EMBEDDING: text if self.is_flat else pyarrow.list_(pyarrow.float32())}
        elif self.task == "regression":
            names = {SCORE: number}
        else:
            is_list = self.task == "multi-label" and not self.is_flat
            names = {LABEL: pyarrow.list_(text) if is_list else text}
            names |= {f"{PROBABILITY}{label}": number for label in self.labels}
        return [pyarrow.field(f"{self.prefix}{name}", each) for name, each in names.items()]


def _shorten(number: float) -> float:
    """Return a float32 without the digits that its widening to 64 bits has added."""
    return float(f"{number:.7g}")
