"""SageMaker's `POST /invocations`, which MLflow has too; its `GET /ping` is TorchServe's.

boto3 with `endpoint_url` asks `/endpoints/NAME/invocations`, where NAME is a model unless
the header or the body names another. `bodies` lists what may be sent. A body that
is JSON of one of its shapes is that, whatever its content type says. `Accept` chooses JSON, JSON
Lines or CSV. The default model answers, or the one that `model` or `X-Amzn-SageMaker-Target-Model`
names: labels by falling score, vectors, or the tokens for masks.
"""

import csv
import io
from collections.abc import Sequence
from typing import Any

from serving.http.messages import JSON, HTTPError, Request, Response, Route, WireProtocol
from serving.interface import ModelInfo, Models, Prediction
from serving.protocols import default_format
from serving.protocols.forms import media_type
from serving.protocols.hf import check_options
from serving.protocols.json_bodies import (
    PLAIN_STATUSES,
    dump_json,
    json_response,
    json_schema,
)
from serving.protocols.labels import apply_function, rank_answer
from serving.protocols.requests import add_prompt, check_texts, read_as, requested_model
from serving.protocols.sagemaker.bodies import (
    CSV,
    JSON_LINES,
    JSON_LINES_TYPES,
    TEXT,
    InvocationBody,
    SageMakerRequest,
    parse_request,
)

TARGET_MODEL = "x-amzn-sagemaker-target-model"
# Headers of SageMaker that change nothing here, and why.
MEANINGLESS_HEADERS = {
    "x-amzn-sagemaker-target-variant": "SageMaker has chosen the endpoint by it",
    "x-amzn-sagemaker-target-container-hostname": "SageMaker has chosen the container by it",
    "x-amzn-sagemaker-inference-id": "it is SageMaker's own, for its records",
    "x-amzn-sagemaker-custom-attributes": "nobody reads them here",
    "x-amzn-sagemaker-enable-explanations": "`:explain` and /explanations explain answers",
}
_ARCHIVES = (".tar.gz", ".tgz", ".zip", ".mar")


async def invoke(http: Request, models: Models) -> Response:
    """Answer with the model that the request names, or the default one."""
    accepted = _accepted_type(http)
    request = parse_request(http)
    texts = check_texts(request.texts, models.limits, "the request")
    model, options = _named_model(http, request), request.parameters
    info = models.get_info(model)
    check_options(options, info.task)
    texts = add_prompt(texts, request.prompt, info)

    def rank(prediction: Prediction, model: ModelInfo) -> list[dict[str, Any]]:
        scores = apply_function(
            prediction, "none" if request.raw_scores else options.function_to_apply
        )
        return rank_answer(prediction, model, scores, options.top_k)

    answers = await default_format.answer_texts(
        models,
        model,
        read_as(texts, request.side, options.max_length),
        rank,
        request.truncate,
        options.top_k,
        options.targets,
    )
    if accepted == CSV:
        return Response(_format_csv(answers), media_type=f"{CSV}; charset=utf-8")
    if accepted == JSON_LINES:
        lines = b"\n".join(map(dump_json, answers)) + b"\n"
        return Response(lines, media_type=JSON_LINES)
    answer: Any = answers[0] if request.single else answers
    return json_response(answer if request.key is None else {request.key: answer})


def _named_model(http: Request, request: SageMakerRequest) -> str | None:
    """Return the model that the header or the body names, or else the endpoint of the path.

    Raises HTTPError if header and body differ.
    """
    target = http.headers.get(TARGET_MODEL, "").lstrip("/")
    for suffix in _ARCHIVES:
        target = target.removesuffix(suffix)
    if target and request.model and target != request.model:
        raise HTTPError(
            "malformed",
            f"model = {request.model[:60]!r}, but {TARGET_MODEL} names {target[:60]!r}",
        )
    return target or request.model or requested_model(http)


def _accepted_type(http: Request) -> str:
    """Return the media type of the answer. Raises HTTPError where none will do.

    JSON Lines are answered with JSON Lines unless the client asks otherwise.
    """
    sent = media_type(http.headers.get("content-type", ""))
    given = http.headers.get("accept", "")
    kinds = [media_type(each) for each in given.split(",") if each.strip()]
    for kind in kinds:
        if kind in (JSON, CSV):
            return kind
        if kind in JSON_LINES_TYPES:
            return JSON_LINES
        if kind in ("*/*", "application/*"):
            return JSON_LINES if sent in JSON_LINES_TYPES else JSON
    if kinds:
        raise HTTPError(
            "malformed", f"accept = {given[:80]!r}: expected {JSON}, {JSON_LINES} or {CSV}"
        )
    return JSON_LINES if sent in JSON_LINES_TYPES else JSON


def _format_csv(answers: Sequence[Any]) -> bytes:
    """Return a row a text: label and score in turn, numbers, or the tokens of a mask."""
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    for answer in answers:
        writer.writerow(_cells(answer))
    return out.getvalue().encode(errors="replace")


def _cells(answer: Any) -> Sequence[Any]:
    if not isinstance(answer, list):
        return [answer]
    cells: list[Any] = []
    for each in answer:
        if isinstance(each, dict):
            cells += [each.get("label", each.get("token_str")), each["score"]]
        elif isinstance(each, list):  # the tokens of one mask of several
            cells += _cells(each)
        else:
            cells.append(each)
    return cells


def error_body(error: HTTPError, _: int) -> bytes:
    """Return the JSON of an error: `error` for MLflow, `message` and `code` for boto3."""
    return dump_json({"error": error.message, "message": error.message, "code": error.kind})


PROTOCOL = WireProtocol(
    "sagemaker",
    (
        Route(
            "POST",
            "/invocations",
            invoke,
            "Ask the default model",
            body_schema=json_schema(InvocationBody),
            media_types=(JSON, JSON_LINES, TEXT, CSV),
        ),
        Route(
            "POST",
            "/endpoints/{model}/invocations",
            invoke,
            "Ask a model, as an endpoint of that name",
            body_schema=json_schema(InvocationBody),
            media_types=(JSON, JSON_LINES, TEXT, CSV),
        ),
    ),
    error_body,
    PLAIN_STATUSES,
)
