"""KServe V1: `:predict`, `:explain`, and whether a model is ready.

The answer to an instance is the plain one of the model's task. What a model is, at
`/v1/models/{model}`, is told with OpenAI's keys as well; the list of all models is OpenAI's.
"""

from collections.abc import Sequence
from typing import Any

from pydantic import Field, StrictInt, StrictStr

from serving.http.messages import Protocol, Reply, Request, Route
from serving.interface import Models
from serving.protocols import default_format
from serving.protocols.json_bodies import Body, dump, parse, said, schema
from serving.protocols.openai import described
from serving.protocols.paths import model_of
from serving.protocols.texts import checked


class Instance(Body):
    """A text in an object, as Vertex AI sends it."""

    inputs: StrictStr


class PredictRequest(Body):
    """The body of `:predict` and `:explain`."""

    instances: list[StrictStr | Instance] = Field(
        description='a list of texts, or of {"inputs": text}'
    )
    target: StrictStr | StrictInt | None = Field(
        None, description="the label to explain, or its index; by default the likeliest"
    )

    @property
    def texts(self) -> list[str]:
        """The texts in order."""
        return texts_of(self.instances)


def texts_of(instances: Sequence[str | Instance]) -> list[str]:
    """The texts of instances in order."""
    return [each if isinstance(each, str) else each.inputs for each in instances]


async def predict(http: Request, models: Models) -> Reply:
    """The plain answer to each text."""
    request = parse(PredictRequest, http.body)
    texts = checked(request.texts, models.limits, "instances")
    return Reply(dump({"predictions": await default_format.answers(models, model_of(http), texts)}))


async def explain(http: Request, models: Models) -> Reply:
    """Which words spoke for the label of each text."""
    request = parse(PredictRequest, http.body)
    texts = checked(request.texts, models.limits, "instances")
    explained = await default_format.explanations(models, model_of(http), texts, request.target)
    return Reply(dump({"explanations": explained}))


async def model(http: Request, models: Models) -> Reply:
    """A model, and whether it is ready; one that is loaded when first asked is."""
    reference = model_of(http) or ""
    info = models.find(reference)
    ready: dict[str, Any] = {"name": reference, "ready": info.state != "loading"}
    return Reply(dump(ready | described(info, reference)))


PROTOCOL = Protocol(
    "kserve",
    (
        Route(
            "POST",
            "/v1/models/{model}:predict",
            predict,
            "Ask a model",
            body=schema(PredictRequest),
        ),
        Route(
            "POST",
            "/v1/models/{model}:explain",
            explain,
            "Which words spoke for a label",
            body=schema(PredictRequest),
        ),
        Route("GET", "/v1/models/{model}", model, "A model, and whether it is ready"),
    ),
    said,
    {"wrong-task": 400, "failed": 500},
)
