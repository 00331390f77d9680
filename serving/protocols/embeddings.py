"""Embeddings: their length, their dimensions, and the cosine similarity of two texts."""

from collections.abc import Sequence

import numpy as np

from serving.http.messages import HTTPError
from serving.interface import Models, Vector
from serving.protocols.json_bodies import truncate_repr
from serving.protocols.requests import check_texts


def format_embeddings(
    vectors: Sequence[Vector], normalize: bool | None, dimensions: int | None
) -> list[list[float]]:
    """Return the vectors as lists of numbers; `normalize` None means the default, True."""
    return [resize_embedding(each, normalize is not False, dimensions).tolist() for each in vectors]


def resize_embedding(
    vector: Vector, normalize: bool = True, dimensions: int | None = None
) -> Vector:
    """Return the first `dimensions` of a vector, scaled to length 1 if `normalize`.

    Raises HTTPError if the vector has fewer dimensions.
    """
    if dimensions is not None:
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
    models: Models, model: str | None, text: str, others: Sequence[str], truncate: bool | None
) -> list[float]:
    """Return the cosine similarity of `text` and each of `others`, in order. Raises HTTPError.

    All are embedded as one request, so that one version of the model embeds them all; `text`
    counts towards the limit of texts.
    """
    if not others:
        raise HTTPError("empty", "there is nothing to compare with; give at least one text")
    texts = check_texts([text, *others], models.limits, "the text and those to compare")
    embedded = await models.embed(model, texts, truncate=truncate is not False)
    first, *rest = embedded.values
    return [cosine_similarity(first, vector) for vector in rest]


def cosine_similarity(a: Vector, b: Vector) -> float:
    """Return the cosine of the angle between two vectors; 0 if one of them is zero."""
    lengths = float(np.linalg.norm(a)) * float(np.linalg.norm(b))
    return float(np.dot(a, b)) / lengths if lengths > 0 else 0.0
