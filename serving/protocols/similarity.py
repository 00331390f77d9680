"""How near texts are to a text: cosines of their vectors, by an embedding model."""

from collections.abc import Sequence

from serving.http.messages import Refusal
from serving.interface import Models
from serving.protocols.texts import checked
from serving.protocols.vectors import cosine


async def cosines(
    models: Models, model: str | None, text: str, others: Sequence[str], truncate: bool | None
) -> list[float]:
    """The cosine of `text` and each of `others`, in order. Raises Refusal.

    All are embedded as one request, so that one version of the model answers; the text counts.
    """
    if not others:
        raise Refusal("empty", "there is nothing to compare with; give at least one text")
    texts = checked([text, *others], models.limits, "the text and those to compare")
    embedded = await models.embed(model, texts, truncate=truncate is not False)
    first, *rest = embedded.values
    return [cosine(first, vector) for vector in rest]
