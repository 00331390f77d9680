"""What the Open Inference Protocol calls the answers of each task.

classification, multi-label   label BYTES [n], the likeliest; probabilities FP32 [n, labels], in the
                              order of the labels. With `top_k`: both [n, k], the likeliest first
regression                    value FP32 [n]
embedding                     embedding FP32 [n, width]
masked-lm                     token INT64, token_str BYTES, score FP32 and sequence BYTES, each
                              [n, masks, k], k = `top_k` or 5; all texts hold as many masks
"""

from collections.abc import Sequence
from itertools import chain

import numpy as np

from serving.http.messages import Refusal
from serving.interface import Answer, Filling, ModelInfo, Models, Prediction, Vector
from serving.protocols.labels import best, ranked
from serving.protocols.oip_tensors import InferRequest, Tensor

DEFAULT_TOP_K = 5  # tokens for a mask

Masks = tuple[tuple[Filling, ...], ...]


async def outputs(
    request: InferRequest, texts: Sequence[str], models: Models, model: str | None
) -> tuple[ModelInfo, list[Tensor]]:
    """Which model answered, and every output of its task. Raises Refusal."""
    task = models.find(model).task
    top_k = request.parameters.top_k
    if task == "embedding":
        embedded = await models.embed(model, texts)
        return embedded.model, _of_vectors(embedded.values)
    if task == "masked-lm":
        filled = await models.fill(model, texts, top_k=top_k or DEFAULT_TOP_K)
        return filled.model, _of_fillings(filled.values)
    predicted = await models.predict(model, texts)
    return predicted.model, _of_predictions(predicted, top_k)


def wanted(
    tensors: Sequence[Tensor], request: InferRequest, model: ModelInfo
) -> list[tuple[Tensor, bool]]:
    """The outputs that a request names, by default all, and whether each is wanted in bytes."""
    binary = request.parameters.binary_data_output
    if not request.outputs:
        return [(tensor, binary) for tensor in tensors]
    by_name = {tensor.name: tensor for tensor in tensors}
    found = []
    for output in request.outputs:
        if output.name not in by_name:
            raise Refusal(
                "malformed",
                f"outputs holds {output.name[:60]!r}: this model has {', '.join(by_name)}",
            )
        tensor, how = by_name[output.name], output.parameters
        if how.classification:
            tensor = _classes(tensor, request, how.classification, model)
        found.append((tensor, binary if how.binary_data is None else how.binary_data))
    return found


def _of_predictions(predicted: Answer[Prediction], top_k: int | None) -> list[Tensor]:
    names, predictions = predicted.model.names, predicted.values
    scores = [prediction.scores for prediction in predictions]
    if predicted.model.task == "regression":
        return [Tensor("value", "FP32", (len(scores),), _floats(scores))]
    if top_k is None:
        labels = [names[best(prediction)] for prediction in predictions]
        shape = (len(scores), len(names))
        return [
            Tensor("label", "BYTES", (len(scores),), labels),
            Tensor("probabilities", "FP32", shape, _floats(scores)),
        ]
    rows = [ranked(of_text, names, top_k) for of_text in scores]
    flat = list(chain.from_iterable(rows))
    shape = (len(rows), min(top_k, len(names)))
    return [
        Tensor("label", "BYTES", shape, [each["label"] for each in flat]),
        Tensor("probabilities", "FP32", shape, _floats([each["score"] for each in flat])),
    ]


def _of_vectors(vectors: Sequence[Vector]) -> list[Tensor]:
    rows = np.asarray(vectors, np.float32)
    return [Tensor("embedding", "FP32", rows.shape, rows.ravel())]


def _of_fillings(values: Sequence[Masks]) -> list[Tensor]:
    num_masks = {len(masks) for masks in values}
    if len(num_masks) != 1:
        raise Refusal(
            "malformed",
            f"the texts hold {min(num_masks)} to {max(num_masks)} masks, and a tensor has no "
            "uneven rows; send texts of as many masks at once",
        )
    fillings = [each for masks in values for of_mask in masks for each in of_mask]
    k = len(fillings) // max(1, len(values) * max(num_masks))
    shape = (len(values), max(num_masks), k)
    return [
        Tensor("token", "INT64", shape, np.asarray([each.token for each in fillings], np.int64)),
        Tensor("token_str", "BYTES", shape, [each.token_str for each in fillings]),
        Tensor("score", "FP32", shape, _floats([each.score for each in fillings])),
        Tensor("sequence", "BYTES", shape, [each.sequence for each in fillings]),
    ]


def _classes(tensor: Tensor, request: InferRequest, count: int, model: ModelInfo) -> Tensor:
    """The classification extension: the highest values of a row as "value:index:label"."""
    if tensor.name != "probabilities" or request.parameters.top_k is not None:
        raise Refusal(
            "malformed",
            f"classification of {tensor.name}: only probabilities can be classified, without top_k",
        )
    rows = np.asarray(tensor.values).reshape(tensor.shape)
    texts = [
        f"{row[index]}:{index}:{model.labels[index]}"
        for row in rows
        for index in np.argsort(-row, kind="stable")[:count]
    ]
    return Tensor(tensor.name, "BYTES", (len(rows), min(count, rows.shape[1])), texts)


def _floats(rows: Sequence[float] | Sequence[Sequence[float]]) -> np.ndarray:
    return np.asarray(rows, np.float32).ravel()
