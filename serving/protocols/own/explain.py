"""Our own call for explanations: `POST /explain`, `/explain/{model}`, `/explain/{model}/{version}`.

{"inputs": "A warm film."}        {"inputs": ["A warm film.", "Dull."], "label": "positive"}

Each word has its weight for the label, its text and its place in what was sent:
{"model": "reviews", "version": "3", "explanations": [{"label": "positive", "score": 0.98,
"words": [{"text": "warm", "start": 2, "end": 6, "weight": 1.3}]}]}
"""

from typing import Any, ClassVar

from pydantic import Field, StrictStr

from serving.http.messages import HTTPError, Request, Response, Route, WireProtocol
from serving.interface import Explanation, ModelInfo, Models
from serving.protocols.json_bodies import (
    JSONBody,
    TextList,
    error_json,
    json_response,
    json_schema,
    parse_body,
    truncate_repr,
)
from serving.protocols.requests import check_texts, choose_model


class ExplainRequest(JSONBody):
    """The body of `/explain`."""

    refused: ClassVar[dict[str, str]] = {
        "target": "here a label is named by `label`; `target` is of /explanations/{model}",
        "parameters": "this call has no parameters; `label` stands beside `inputs`",
    }

    inputs: StrictStr | TextList = Field(description="a text or a list of texts")
    label: StrictStr | None = Field(
        None, description="the label to explain; by default the answer to each text"
    )
    model: StrictStr | None = Field(
        None, description="that is asked, where the path does not name it"
    )


async def explain(http: Request, models: Models) -> Response:
    """Attribute a label to the words of each text."""
    body = parse_body(ExplainRequest, http.body)
    inputs = [body.inputs] if isinstance(body.inputs, str) else body.inputs
    texts = check_texts(inputs, models.limits, "inputs")
    model = choose_model(http, body.model)
    labels = models.get_info(model).labels
    if body.label is not None and labels and body.label not in labels:
        raise HTTPError(
            "malformed", f"label = {truncate_repr(body.label)}: expected one of {', '.join(labels)}"
        )
    result = await models.explain(model, texts, label=body.label)
    explanations = [
        _format_explanation(explanation, text, result.model)
        for explanation, text in zip(result.values, texts, strict=True)
    ]
    about = {"model": result.model.name, "version": result.model.version}
    return json_response({**about, "explanations": explanations})


def _format_explanation(explanation: Explanation, text: str, model: ModelInfo) -> dict[str, Any]:
    words = [
        {"text": text[each.start : each.end], "start": each.start, "end": each.end}
        | {"weight": each.weight}
        for each in explanation.attributions
    ]
    score = explanation.prediction.scores[explanation.label]
    return {"label": model.output_names[explanation.label], "score": score, "words": words}


PROTOCOL = WireProtocol(
    "explain",
    tuple(
        Route(
            "POST",
            f"/explain{path}",
            explain,
            "Which words spoke for a label",
            body_schema=json_schema(ExplainRequest),
        )
        for path in ("", "/{model}", "/{model}/{version}")
    ),
    error_json,
)
