"""Hugging Face Inference: one path a model, and the model's task decides what a request means.

`POST /hf/{model}`, and `POST /` for the default model. `huggingface_hub.InferenceClient(model=URL)`
sends to exactly the URL that it is given. text_classification, fill_mask, feature_extraction and
sentence_similarity are answered, each by models of that task.

At `POST /` Text Embeddings Inference would answer a flat list of labels; clients of Hugging Face
need it nested, `[[{label, score}]]`, and they are the ones who ask there.
"""

from typing import Any, ClassVar

from pydantic import Field, StrictBool, StrictInt, StrictStr

from serving.http.messages import HTTPError, Request, Response, Route, WireProtocol
from serving.interface import ModelInfo, Models
from serving.protocols import default_format
from serving.protocols.embeddings import format_embeddings, similarity_scores
from serving.protocols.json_bodies import (
    PLAIN_STATUSES,
    JSONBody,
    TextList,
    error_json,
    json_response,
    json_schema,
    parse_body,
)
from serving.protocols.labels import ScoreFunction, apply_function, rank_answer
from serving.protocols.requests import add_prompt, check_texts, choose_model, read_as
from serving.protocols.tei_bodies import PROMPT, TruncatingBody

MAX_TOP_K = 1000
DEFAULT_TOP_K = 5  # tokens for a mask

_INPUTS = "a text, a list of texts, or {source_sentence, sentences} for sentence similarity"


# Headers of Hugging Face's clients that change nothing here, and why.
MEANINGLESS_HEADERS = {
    "x-wait-for-model": "a request waits for its model as long as it has time",
    "x-use-cache": "each request is computed as it stands",
    "x-load-model": "a model is loaded when it is asked",
    "x-use-gpu": "the endpoint's device computes",
}

_OTHER_TASK = "no model here is for that task; `candidate_labels` and the like belong to others"


class HFParameters(JSONBody):
    """Options of a task; each task reads its own."""

    refused: ClassVar[dict[str, str]] = {
        "aggregation_strategy": _OTHER_TASK,
        "stride": _OTHER_TASK,
        "ignore_labels": _OTHER_TASK,
        "hypothesis_template": _OTHER_TASK,
        "multi_label": _OTHER_TASK,
        "doc_stride": _OTHER_TASK,
        "max_answer_len": _OTHER_TASK,
        "max_question_len": _OTHER_TASK,
        "max_seq_len": _OTHER_TASK,
        "handle_impossible_answer": _OTHER_TASK,
        "align_to_words": _OTHER_TASK,
    }
    meaningless: ClassVar[dict[str, str]] = {
        "return_all_scores": "all are returned unless `top_k` says otherwise",
        "padding": "texts are computed without padding",
        "batch_size": "batches are made of whatever waits",
    }

    function_to_apply: ScoreFunction | None = Field(
        None, description="what makes scores of logits; by default what the model was trained for"
    )
    top_k: StrictInt | None = Field(None, ge=1, le=MAX_TOP_K, description="how many answers")
    targets: TextList | None = Field(None, description="a list of tokens to choose from")
    truncation: StrictBool | None = Field(None, description="cut texts that are too long (default)")
    max_length: StrictInt | None = Field(None, ge=1, description="read so many tokens at most")
    normalize: StrictBool | None = Field(None, description="vectors of length 1 (the default)")
    prompt_name: StrictStr | None = Field(None, description=PROMPT)
    candidate_labels: Any = Field(None, description="zero-shot classification: refused")


class HFInferenceRequest(TruncatingBody):
    """The body of a request. The options of feature extraction stand beside the inputs."""

    meaningless: ClassVar[dict[str, str]] = {
        "options": "nothing is cached, and no model has to be waited for",
        "encoding_format": "vectors are lists of numbers here; /v1/embeddings has base64",
    }

    inputs: StrictStr | TextList | dict[str, Any] = Field(description=_INPUTS)
    parameters: HFParameters | None = Field(None, description="options")
    normalize: StrictBool | None = Field(None, description="vectors of length 1 (the default)")
    dimensions: StrictInt | None = Field(
        None, ge=0, description="only the first so many, 0: all of them"
    )
    model: StrictStr | None = Field(
        None, description="name, name:version or name@alias; by default that of the path"
    )
    prompt_name: StrictStr | None = Field(None, description=PROMPT)

    @property
    def prompt(self) -> str | None:
        """The name of the prompt, which stands beside the inputs or among the options."""
        return self.prompt_name or (self.parameters.prompt_name if self.parameters else None)

    @property
    def truncates(self) -> bool:
        """Whether a text that is too long is cut."""
        truncation = self.parameters.truncation if self.parameters else None
        return self.truncate is not False and truncation is not False


async def infer(http: Request, models: Models) -> Response:
    """Answer by the task of the model."""
    request = parse_body(HFInferenceRequest, http.body)
    model = choose_model(http, request.model)
    info = models.get_info(model)
    task = info.task
    if isinstance(request.inputs, dict):
        return json_response(await _sentence_similarity(request, info, models, model))
    is_single = isinstance(request.inputs, str)
    texts = [request.inputs] if isinstance(request.inputs, str) else request.inputs
    check_texts(texts, models.limits, "inputs")
    options = request.parameters or HFParameters()
    if options.candidate_labels is not None:
        raise HTTPError("wrong-task", f"zero-shot classification: this model is for {task}")
    check_options(options, task)
    prompted = add_prompt(texts, request.prompt, info)
    read = read_as(prompted, request.side, options.max_length)
    if task == "embedding":
        embedded = await models.embed(model, read, truncate=request.truncates)
        normalize = request.normalize is not False and options.normalize is not False
        vectors = format_embeddings(embedded.values, normalize, request.dimensions)
        return json_response(vectors)  # a list of vectors even for one text
    if task == "masked-lm":
        top_k = options.top_k or DEFAULT_TOP_K
        filled = await models.fill_mask(model, read, top_k=top_k, targets=options.targets)
        masks = [default_format.format_masks(of_text) for of_text in filled.values]
        return json_response(masks[0] if is_single else masks)
    predicted = await models.predict(model, read, truncate=request.truncates)
    labels = [
        rank_answer(
            prediction,
            predicted.model,
            apply_function(prediction, options.function_to_apply),
            options.top_k,
        )
        for prediction in predicted.values
    ]
    return json_response(labels)


def check_options(options: HFParameters, task: str) -> None:
    """Raise HTTPError for an option of another task than the model's."""
    tasks = {
        "function_to_apply": ("classification", "multi-label", "regression"),
        "top_k": ("classification", "multi-label", "regression", "masked-lm"),
        "targets": ("masked-lm",),
        "normalize": ("embedding",),
    }
    for name, of in tasks.items():
        if getattr(options, name) is not None and task not in of:
            raise HTTPError(
                "malformed", f"{name} is for {' and '.join(of)}, and this model for {task}"
            )


async def _sentence_similarity(
    request: HFInferenceRequest, info: ModelInfo, models: Models, model: str | None
) -> list[float]:
    """Answer inputs that are an object: sentence similarity is the only such task."""
    assert isinstance(request.inputs, dict)
    source, sentences = request.inputs.get("source_sentence"), request.inputs.get("sentences")
    if info.task != "embedding":
        raise HTTPError(
            "wrong-task", f"inputs is an object, but this model is for {info.task}; send texts"
        )
    are_texts = isinstance(sentences, list) and all(isinstance(each, str) for each in sentences)
    if not isinstance(source, str) or not isinstance(sentences, list) or not are_texts:
        raise HTTPError(
            "malformed",
            'inputs: expected {"source_sentence": a text, "sentences": a list of texts}',
        )
    text, *others = add_prompt([source, *sentences], request.prompt, info)
    return await similarity_scores(models, model, text, others, request.truncates, request.side)


_BODY = json_schema(HFInferenceRequest)

PROTOCOL = WireProtocol(
    "hf",
    (
        Route("POST", "/hf/{model}", infer, "Ask a model", body_schema=_BODY),
        Route("POST", "/", infer, "Ask the default model", body_schema=_BODY),
    ),
    error_json,
    PLAIN_STATUSES,
)
