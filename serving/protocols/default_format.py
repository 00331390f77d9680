"""Result of each text by the model's task, for protocols that leave the format open.

classification, multi-label   {label: probability}, the answer first, then by falling probability
regression                    the number
embedding                     the vector, a list of numbers
masked-lm                     [{score, token, token_str, sequence}]; several masks: a list of such

TorchServe's stock text handler and KServe's runtime answer like this.
"""

from collections.abc import Callable, Sequence
from dataclasses import asdict
from typing import Any

from serving.http.messages import HTTPError
from serving.interface import Explanation, MaskPrediction, ModelInfo, Models, Prediction
from serving.protocols.json_bodies import truncate_repr
from serving.protocols.labels import rank_answer


def score_labels(prediction: Prediction, model: ModelInfo) -> Any:
    """Return the labels with their probabilities, or the number of a regression."""
    if model.task == "regression":
        return prediction.scores[0]
    return {each["label"]: each["score"] for each in rank_answer(prediction, model)}


async def answer_texts(
    models: Models,
    model: str | None,
    texts: Sequence[str],
    format_prediction: Callable[[Prediction, ModelInfo], Any] = score_labels,
    truncate: bool = True,
    top_k: int | None = None,
    targets: Sequence[str] | None = None,
) -> list[Any]:
    """Return the result of each text. Raises HTTPError.

    top_k, targets: of the tokens for a mask.
    """
    task = models.get_info(model).task
    if task == "embedding":
        embedded = await models.embed(model, texts, truncate=truncate)
        return [vector.tolist() for vector in embedded.values]
    if task == "masked-lm":
        filled = await models.fill_mask(model, texts, top_k=top_k or 5, targets=targets)
        return [format_masks(masks) for masks in filled.values]
    predicted = await models.predict(model, texts, truncate=truncate)
    return [format_prediction(prediction, predicted.model) for prediction in predicted.values]


def format_masks(masks: Sequence[Sequence[MaskPrediction]]) -> list[Any]:
    """Return the likeliest tokens of the one mask of a text, or a list of them for each mask."""
    tokens = [[asdict(prediction) for prediction in predictions] for predictions in masks]
    return tokens[0] if len(tokens) == 1 else tokens


async def explain_texts(
    models: Models, model: str | None, texts: Sequence[str], target: str | int | None
) -> list[dict[str, Any]]:
    """Attribute a label to the words of each text. Raises HTTPError.

    target: a label's name or index; default: the label that is the answer to each text.
    """
    label = _resolve_label(models.get_info(model), target)
    result = await models.explain(model, texts, label=label)
    return [
        _format_explanation(explanation, text, result.model)
        for explanation, text in zip(result.values, texts, strict=True)
    ]


def _format_explanation(explanation: Explanation, text: str, model: ModelInfo) -> dict[str, Any]:
    """Format `words` and `importances` as TorchServe's text handler does, with their offsets."""
    words = explanation.attributions
    return {
        "label": model.output_names[explanation.label],
        "score": explanation.prediction.scores[explanation.label],
        "words": [text[word.start : word.end] for word in words],
        "importances": [word.weight for word in words],
        "offsets": [[word.start, word.end] for word in words],
    }


def _resolve_label(model: ModelInfo, target: str | int | None) -> str | None:
    """Return the name of the label to explain. target: a name, an index, or its digits."""
    if target is None or target in model.labels:
        return None if target is None else str(target)
    if isinstance(target, str):
        is_index = target.isascii() and target.isdecimal() and len(target) < 6
        index = int(target) if is_index else -1
    else:
        index = target
    if model.labels and not 0 <= index < len(model.labels):
        raise HTTPError(
            "malformed",
            f"target = {truncate_repr(target)}: expected one of {', '.join(model.labels)}, "
            "or its index",
        )
    return model.labels[index] if model.labels else None
