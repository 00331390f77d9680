"""Embeddings: their length, their dimensions, and the cosine similarity of two texts."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from serving.http.messages import HTTPError
from serving.interface import ModelInfo, Models, TruncationSide, Vector
from serving.protocols.json_bodies import truncate_repr
from serving.protocols.requests import check_texts, read_as


def format_embeddings(
    vectors: Sequence[Vector], normalize: bool | None, dimensions: int | None
) -> list[list[float]]:
    """Return the vectors as lists of numbers; `normalize` None means the default, True."""
    return [resize_embedding(each, normalize is not False, dimensions).tolist() for each in vectors]


def resize_embedding(
    vector: Vector, normalize: bool = True, dimensions: int | None = None
) -> Vector:
    """Return the first `dimensions` of a vector, scaled to length 1 if `normalize`.

    dimensions: None or 0 for all, as infinity's clients say.

    Raises HTTPError if the vector has fewer dimensions.
    """
    if dimensions:
        if dimensions > len(vector):
            given = truncate_repr(dimensions)
            raise HTTPError(
                "malformed", f"dimensions = {given}: this model's vectors have {len(vector)}"
            )
        vector = vector[:dimensions]
    if not normalize:
        return vector
    length = float(np.linalg.norm(vector))
    if length == 0 or abs(length - 1) < 1e-6:  # a vector of length 1 keeps every bit
        return vector
    return vector / np.float32(length)


async def similarity_scores(
    models: Models,
    model: str | None,
    text: str,
    others: Sequence[str],
    truncate: bool | None = None,
    side: TruncationSide | None = None,
) -> list[float]:
    """Return the cosine similarity of `text` and each of `others`, in order. Raises HTTPError."""
    return (await compare_texts(models, model, text, others, truncate, side)).scores


class Comparison(NamedTuple):
    """The cosine similarity of a text and others, by one model, and the tokens that it took."""

    model: ModelInfo
    scores: list[float]
    num_tokens: list[int]


async def compare_texts(
    models: Models,
    model: str | None,
    text: str,
    others: Sequence[str],
    truncate: bool | None = None,
    side: TruncationSide | None = None,
    max_tokens: int | None = None,
) -> Comparison:
    """Compare `text` with each of `others`, in order. Raises HTTPError.

    All are embedded as one request, so that one version of the model embeds them all; `text`
    does not count towards the limit of texts.
    """
    if not others:
        raise HTTPError("empty", "there is nothing to compare with; give at least one text")
    check_texts([text], models.limits, "the text to compare with")
    others = check_texts(others, models.limits, "the texts to compare")
    texts = read_as([text, *others], side, max_tokens)
    embedded = await models.embed(model, texts, truncate=truncate is not False)
    first, *rest = embedded.values
    scores = [cosine_similarity(first, vector) for vector in rest]
    return Comparison(embedded.model, scores, embedded.num_tokens)


def cosine_similarity(a: Vector, b: Vector) -> float:
    """Return the cosine of the angle between two vectors; 0 if one of them is zero."""
    lengths = float(np.linalg.norm(a)) * float(np.linalg.norm(b))
    return float(np.dot(a, b)) / lengths if lengths > 0 else 0.0
