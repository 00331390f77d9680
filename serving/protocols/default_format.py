"""The plain answer to each text, whatever the model's task, where a protocol leaves it open.

classification, multi-label   {label: probability}, the likeliest first
regression                    the number
embedding                     the vector, a list of numbers
masked-lm                     [{score, token, token_str, sequence}]; several masks: a list of such

TorchServe's stock text handler and KServe's runtime answer like this.
"""

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from serving.http.messages import Refusal
from serving.interface import Explanation, Filling, ModelInfo, Models, Prediction
from serving.protocols.json_bodies import shown
from serving.protocols.labels import ranked


async def answers(models: Models, model: str | None, texts: Sequence[str]) -> list[Any]:
    """The plain answer to each text. Raises Refusal."""
    task = models.find(model).task
    if task == "embedding":
        return [vector.tolist() for vector in (await models.embed(model, texts)).values]
    if task == "masked-lm":
        return [filled(masks) for masks in (await models.fill(model, texts)).values]
    answer = await models.predict(model, texts)
    return [scored(prediction, answer.model) for prediction in answer.values]


def scored(prediction: Prediction, model: ModelInfo) -> Any:
    """Labels with their probabilities, or the number of a regression."""
    if model.task == "regression":
        return prediction.scores[0]
    return {each["label"]: each["score"] for each in ranked(prediction.scores, model.labels)}


def filled(masks: Sequence[Sequence[Filling]]) -> list[Any]:
    """The likeliest tokens for the mask of a text, or for each of its masks."""
    tokens = [[asdict(filling) for filling in fillings] for fillings in masks]
    return tokens[0] if len(tokens) == 1 else tokens


async def explanations(
    models: Models, model: str | None, texts: Sequence[str], target: str | int | None
) -> list[dict[str, Any]]:
    """Which words spoke for a label: the target, by name or index, else the likeliest.

    Raises Refusal.
    """
    label = _label(models.find(model), target)
    answer = await models.explain(model, texts, label=label)
    return [
        explained(explanation, text, answer.model)
        for explanation, text in zip(answer.values, texts, strict=True)
    ]


def explained(explanation: Explanation, text: str, model: ModelInfo) -> dict[str, Any]:
    """`words` and `importances` as TorchServe's text handler has them, and where the words are."""
    pieces = explanation.attributions
    return {
        "label": model.names[explanation.label],
        "score": explanation.prediction.scores[explanation.label],
        "words": [text[piece.start : piece.end] for piece in pieces],
        "importances": [piece.weight for piece in pieces],
        "offsets": [[piece.start, piece.end] for piece in pieces],
    }


def _label(model: ModelInfo, target: str | int | None) -> str | None:
    """The name of the label to explain."""
    if target is None or target in model.labels:
        return None if target is None else str(target)
    index = _index(target)
    if model.labels and not 0 <= index < len(model.labels):
        raise Refusal(
            "malformed",
            f"target = {shown(target)}: expected one of {', '.join(model.labels)}, or its index",
        )
    return model.labels[index] if model.labels else None


def _index(target: str | int) -> int:
    """The index that a client gave as a number or its digits; -1 where it is none."""
    if isinstance(target, str):
        return int(target) if target.isascii() and target.isdecimal() and len(target) < 6 else -1
    return target
