"""Output tensors of the Open Inference Protocol for each task.

classification, multi-label   label BYTES [n], the answer; probabilities FP32 [n, labels], in the
                              order of the labels. With `top_k`: both [n, k], the answer first, then
                              by falling probability
multi-label                   and chosen BOOL, whether each label of `probabilities` is of the
                              answer; `label` is the likeliest of those, else of all
regression                    value FP32 [n]
embedding                     embedding FP32 [n, width]
masked-lm                     token INT64, token_str BYTES, score FP32 and sequence BYTES, each
                              [n, masks, k], k = `top_k` or 5; all texts hold as many masks
"""

from collections.abc import Sequence
from itertools import chain

import numpy as np

from serving.http.messages import HTTPError
from serving.interface import InferenceResult, MaskPrediction, ModelInfo, Models, Prediction
from serving.protocols.labels import answer_index, is_answer, rank_answer
from serving.protocols.oip_tensors import OIPInferRequest, OutputTensor

DEFAULT_TOP_K = 5  # tokens for a mask

Masks = tuple[tuple[MaskPrediction, ...], ...]


async def compute_outputs(
    request: OIPInferRequest, texts: Sequence[str], models: Models, model: str | None
) -> tuple[ModelInfo, list[OutputTensor]]:
    """Return the model that answered, and every output of its task. Raises HTTPError."""
    task = models.get_info(model).task
    top_k = request.parameters.top_k
    if task == "embedding":
        embedded = await models.embed(model, texts)
        vectors = np.asarray(embedded.values, np.float32)
        return embedded.model, [OutputTensor("embedding", "FP32", vectors.shape, vectors.ravel())]
    if task == "masked-lm":
        filled = await models.fill_mask(model, texts, top_k=top_k or DEFAULT_TOP_K)
        return filled.model, _mask_tensors(filled.values)
    predicted = await models.predict(model, texts)
    return predicted.model, _prediction_tensors(predicted, top_k)


def select_outputs(
    tensors: Sequence[OutputTensor], request: OIPInferRequest, model: ModelInfo
) -> list[tuple[OutputTensor, bool]]:
    """Return the requested outputs, by default all, and whether each is wanted in bytes."""
    binary = request.parameters.binary_data_output
    if not request.outputs:
        return [(tensor, binary) for tensor in tensors]
    by_name = {tensor.name: tensor for tensor in tensors}
    selected = []
    for output in request.outputs:
        if output.name not in by_name:
            raise HTTPError(
                "malformed",
                f"outputs holds {output.name[:60]!r}: this model has {', '.join(by_name)}",
            )
        tensor, options = by_name[output.name], output.parameters
        if options.classification:
            tensor = _classify_rows(tensor, request, options.classification, model)
        selected.append((tensor, binary if options.binary_data is None else options.binary_data))
    return selected


def _prediction_tensors(
    predicted: InferenceResult[Prediction], top_k: int | None
) -> list[OutputTensor]:
    names, predictions = predicted.model.output_names, predicted.values
    scores = [prediction.scores for prediction in predictions]
    if predicted.model.task == "regression":
        return [OutputTensor("value", "FP32", (len(scores),), _to_float32(scores))]
    model = predicted.model
    answers = [is_answer(prediction, model) for prediction in predictions]
    if top_k is None:
        labels = [names[answer_index(prediction, model)] for prediction in predictions]
        shape = (len(scores), len(names))
        tensors = [
            OutputTensor("label", "BYTES", (len(scores),), labels),
            OutputTensor("probabilities", "FP32", shape, _to_float32(scores)),
        ]
        flags = answers
    else:
        rows = [rank_answer(prediction, model, top_k=top_k) for prediction in predictions]
        flat = list(chain.from_iterable(rows))
        shape = (len(rows), min(top_k, len(names)))
        values = _to_float32([each["score"] for each in flat])
        tensors = [
            OutputTensor("label", "BYTES", shape, [each["label"] for each in flat]),
            OutputTensor("probabilities", "FP32", shape, values),
        ]
        flags = [sorted(of_text, reverse=True)[:top_k] for of_text in answers]
    if model.task == "multi-label":
        tensors.append(OutputTensor("chosen", "BOOL", shape, np.asarray(flags, bool).ravel()))
    return tensors


def _mask_tensors(values: Sequence[Masks]) -> list[OutputTensor]:
    num_masks = {len(masks) for masks in values}
    if len(num_masks) != 1:
        raise HTTPError(
            "malformed",
            f"the texts hold {min(num_masks)} to {max(num_masks)} masks, and a tensor has no "
            "uneven rows; send texts of as many masks at once",
        )
    tokens = [each for masks in values for of_mask in masks for each in of_mask]
    top_k = len(tokens) // max(1, len(values) * max(num_masks))
    shape = (len(values), max(num_masks), top_k)
    ids = np.asarray([each.token for each in tokens], np.int64)
    return [
        OutputTensor("token", "INT64", shape, ids),
        OutputTensor("token_str", "BYTES", shape, [each.token_str for each in tokens]),
        OutputTensor("score", "FP32", shape, _to_float32([each.score for each in tokens])),
        OutputTensor("sequence", "BYTES", shape, [each.sequence for each in tokens]),
    ]


def _classify_rows(
    tensor: OutputTensor, request: OIPInferRequest, count: int, model: ModelInfo
) -> OutputTensor:
    """Apply the classification extension: the highest values of a row as "value:index:label"."""
    if tensor.name != "probabilities" or request.parameters.top_k is not None:
        raise HTTPError(
            "malformed",
            f"classification of {tensor.name}: only probabilities can be classified, without top_k",
        )
    rows = np.asarray(tensor.values).reshape(tensor.shape)
    texts = [
        f"{row[index]}:{index}:{model.labels[index]}"
        for row in rows
        for index in np.argsort(-row, kind="stable")[:count]
    ]
    return OutputTensor(tensor.name, "BYTES", (len(rows), min(count, rows.shape[1])), texts)


def _to_float32(rows: Sequence[float] | Sequence[Sequence[float]]) -> np.ndarray:
    return np.asarray(rows, np.float32).ravel()
