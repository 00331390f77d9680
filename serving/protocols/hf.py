"""Hugging Face Inference: one address a model, and the model's task says what is meant.

`POST /hf/{model}`, and `POST /` for the default model. `huggingface_hub.InferenceClient(model=URL)`
sends to exactly the URL that it is given. text_classification, fill_mask, feature_extraction and
sentence_similarity are answered, each by models of that task.

At `POST /` Text Embeddings Inference would answer a flat list of labels; clients of Hugging Face
need it nested, `[[{label, score}]]`, and they are the ones who ask there.
"""

from collections.abc import Sequence
from typing import Any, TypeGuard

from pydantic import Field, StrictBool, StrictInt, StrictStr

from serving.http.messages import Protocol, Refusal, Reply, Request, Route
from serving.interface import Models, Prediction, Vector
from serving.protocols import default_format
from serving.protocols.json_bodies import Body, dump, parse, said, schema
from serving.protocols.labels import Function, applied, ranked
from serving.protocols.paths import model_of
from serving.protocols.similarity import cosines
from serving.protocols.tei_bodies import Direction
from serving.protocols.texts import checked
from serving.protocols.vectors import shaped

MAX_TOP_K = 1000
DEFAULT_TOP_K = 5  # tokens for a mask

_INPUTS = "a text, a list of texts, or {source_sentence, sentences} for sentence similarity"


class Parameters(Body):
    """Options of a task; each task reads its own."""

    function_to_apply: Function | None = Field(
        None, description="what makes scores of logits; by default what the model was trained for"
    )
    top_k: StrictInt | None = Field(None, ge=1, le=MAX_TOP_K, description="how many answers")
    targets: list[StrictStr] | None = Field(None, description="a list of tokens to choose from")
    truncation: StrictBool | None = Field(None, description="cut texts that are too long (default)")
    candidate_labels: Any = None  # zero-shot classification


class InferenceRequest(Body):
    """The body of a request. The options of feature extraction stand beside the inputs."""

    inputs: StrictStr | list[StrictStr] | dict[str, Any] = Field(description=_INPUTS)
    parameters: Parameters | None = Field(None, description="options")
    normalize: StrictBool | None = Field(None, description="vectors of length 1 (the default)")
    truncate: StrictBool | None = Field(None, description="cut texts that are too long (default)")
    truncation_direction: Direction = Field("Right", description="the end that is cut")
    prompt_name: None = Field(None, description="these models know no prompts")
    dimensions: StrictInt | None = Field(None, ge=1, description="only the first so many")

    @property
    def single(self) -> bool:
        """Whether one text was asked about."""
        return isinstance(self.inputs, str)

    @property
    def cut(self) -> bool:
        """Whether a text that is too long is cut."""
        truncation = self.parameters.truncation if self.parameters else None
        return self.truncate is not False and truncation is not False


async def infer(http: Request, models: Models) -> Reply:
    """The answer, as the model's task has it."""
    request = parse(InferenceRequest, http.body)
    model = model_of(http)
    task = models.find(model).task
    if isinstance(request.inputs, dict):
        return Reply(dump(await _similarities(request.inputs, request, task, models, model)))
    texts = [request.inputs] if isinstance(request.inputs, str) else request.inputs
    checked(texts, models.limits, "inputs")
    options = request.parameters or Parameters()
    if options.candidate_labels is not None:
        raise Refusal("wrong-task", f"zero-shot classification: this model is for {task}")
    if task == "embedding":
        embedded = await models.embed(model, texts, truncate=request.cut)
        return Reply(dump(vectors(request, embedded.values)))
    if task == "masked-lm":
        top_k = options.top_k or DEFAULT_TOP_K
        fillings = await models.fill(model, texts, top_k=top_k, targets=options.targets)
        found = [default_format.filled(masks) for masks in fillings.values]
        return Reply(dump(found[0] if request.single else found))
    predicted = await models.predict(model, texts, truncate=request.cut)
    return Reply(dump(labels(options, predicted.values, predicted.model.labels)))


def vectors(request: InferenceRequest, values: Sequence[Vector]) -> list[list[float]]:
    """The vectors as the request wants them, a list of them even for one text."""
    normalize = request.normalize is not False
    return [shaped(vector, normalize, request.dimensions).tolist() for vector in values]


def labels(
    options: Parameters, predictions: Sequence[Prediction], names: Sequence[str]
) -> list[list[dict[str, Any]]]:
    """Labels by falling score, a list of them a text."""
    return [
        ranked(applied(prediction, options.function_to_apply), names, options.top_k)
        for prediction in predictions
    ]


async def _similarities(
    inputs: dict[str, Any], request: InferenceRequest, task: str, models: Models, model: str | None
) -> list[float]:
    """Sentence similarity; any other object is of a task that no model here has."""
    source, sentences = inputs.get("source_sentence"), inputs.get("sentences")
    if task != "embedding":
        raise Refusal(
            "wrong-task", f"inputs is an object, but this model is for {task}; send texts"
        )
    if not isinstance(source, str) or not isinstance(sentences, list) or not _are_texts(sentences):
        raise Refusal(
            "malformed",
            'inputs: expected {"source_sentence": a text, "sentences": a list of texts}',
        )
    return await cosines(models, model, source, sentences, request.cut)


def _are_texts(values: Sequence[Any]) -> TypeGuard[Sequence[str]]:
    return all(isinstance(each, str) for each in values)


PROTOCOL = Protocol(
    "hf",
    (
        Route("POST", "/hf/{model}", infer, "Ask a model", body=schema(InferenceRequest)),
        Route("POST", "/", infer, "Ask the default model", body=schema(InferenceRequest)),
    ),
    said,
    {"wrong-task": 400, "failed": 500},
)
