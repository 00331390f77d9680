"""Our own call for right answers: `POST /feedback`, kept for the next training run.

{"model": "reviews", "text": "Not bad at all.", "label": "positive"}
{"request_id": "4f0c…", "index": 0, "label": "positive"}      of a request that was answered
"""

from pydantic import ConfigDict, Field, StrictFloat, StrictInt, StrictStr

from serving.http.messages import HTTPError, Request, Response, Route, WireProtocol
from serving.interface import Feedback, FeedbackTaking, Models
from serving.protocols.json_bodies import (
    JSONBody,
    TextList,
    error_json,
    json_response,
    json_schema,
    parse_body,
)
from serving.protocols.requests import check_texts


class FeedbackRequest(JSONBody):
    """The body of `/feedback`."""

    model_config = ConfigDict(
        json_schema_extra={"examples": [{"text": "A warm film.", "label": "positive"}]}
    )

    label: StrictStr | TextList | StrictInt | StrictFloat = Field(
        description="the right label; a list of them for multi-label, a number for a regression"
    )
    text: StrictStr | None = Field(None, description="that was asked, as it was sent")
    model: StrictStr | None = Field(None, description="that answered; by default the default one")
    request_id: StrictStr | None = Field(
        None, description="instead of text: x-request-id of the answer"
    )
    index: StrictInt = Field(0, description="of the text among those of that request")


async def keep_feedback(http: Request, models: Models) -> Response:
    """Keep the right answer to one text."""
    body = parse_body(FeedbackRequest, http.body)
    if (body.text is None) == (not body.request_id):
        raise HTTPError("malformed", "give either text, or request_id of an answer that came")
    if body.text is not None:
        check_texts([body.text], models.limits, "text")
    elif body.model is not None:
        raise HTTPError("malformed", "model: request_id says which one answered; leave it out")
    label = tuple(body.label) if isinstance(body.label, list) else body.label
    if not isinstance(models, FeedbackTaking):
        raise HTTPError("forbidden", "feedback is not taken here")
    feedback = Feedback(label, body.text or "", body.model, body.request_id or "", body.index)
    info = await models.keep_feedback(feedback)
    return json_response({"kept": True, "model": info.name, "version": info.version})


PROTOCOL = WireProtocol(
    "feedback",
    (
        Route(
            "POST",
            "/feedback",
            keep_feedback,
            "The right answer to a text, for the next training run",
            body_schema=json_schema(FeedbackRequest),
        ),
    ),
    error_json,
)
