"""Vectors: their length, how many of their dimensions, how near two of them are. Pure."""

import numpy as np

from serving.http.messages import Refusal
from serving.interface import Vector


def shaped(vector: Vector, normalize: bool = True, dimensions: int | None = None) -> Vector:
    """The first `dimensions` of a vector, of length 1 where asked.

    Cutting a vector changes its length, so that one that was normalised is normalised again.
    Raises Refusal where there are not so many dimensions.
    """
    if dimensions is not None:
        if dimensions > len(vector):
            raise Refusal(
                "malformed",
                f"dimensions = {dimensions}: this model's vectors have {len(vector)}",
            )
        vector = vector[:dimensions]
    if not normalize:
        return vector
    length = float(np.linalg.norm(vector))
    if length == 0 or abs(length - 1) < 1e-6:  # what is of length 1 keeps every bit
        return vector
    return vector / np.float32(length)


def cosine(a: Vector, b: Vector) -> float:
    """The cosine of the angle between two vectors; 0 where one has no direction."""
    lengths = float(np.linalg.norm(a)) * float(np.linalg.norm(b))
    return float(np.dot(a, b)) / lengths if lengths > 0 else 0.0
