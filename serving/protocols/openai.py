"""OpenAI's `/v1/embeddings` and `/v1/models`, with the options of vLLM and infinity.

`input` is a text, a list of texts, or token ids of the model's own vocabulary, read as they are.
The client asks for base64 by default: little-endian float32. `/v1/models` answers KServe's question
as well, `{"models": [names]}`.

The same calls stand below `/infinity`, `/openai` and, for one model whatever the body names, below
`/openai/{model}`, `/infinity/{model}`, `/tei/{model}` and Azure's `/openai/deployments/{model}`.
"""

import base64
from collections.abc import Iterator, Sequence
from typing import Annotated, Any, ClassVar, Literal

import numpy as np
from pydantic import Field, StrictBool, StrictInt, StrictStr

from serving.http.messages import ErrorKind, HTTPError, Request, Response, Route, WireProtocol
from serving.interface import Limits, ModelInfo, Models, TextInput, Vector
from serving.protocols.embeddings import resize_embedding
from serving.protocols.json_bodies import (
    ClientList,
    JSONBody,
    TextList,
    dump_json,
    json_response,
    json_schema,
    parse_body,
)
from serving.protocols.requests import (
    INPUT_TYPE,
    add_prompt,
    check_texts,
    find_prompt,
    read_as,
    requested_model,
)

OWNER = "bertha"
STATUSES: dict[ErrorKind, int] = {
    "wrong-task": 400,
    "too-long": 400,
    "unreadable": 400,
    "failed": 500,
}
# Of one model each; and of the model that the body names.
MODEL_PREFIXES = ("/openai/{model}", "/infinity/{model}", "/tei/{model}")
PREFIXES = ("", "/openai", "/infinity", *MODEL_PREFIXES)

_CAPABILITIES = {
    "embedding": "embed",
    "classification": "classify",
    "multi-label": "classify",
}
_ERROR_TYPES = {
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    429: "rate_limit_error",
}


TokenIds = ClientList[Annotated[StrictInt, Field(ge=-(2**31), lt=2**31)]]
Inputs = StrictStr | TextList | TokenIds | ClientList[TokenIds]


def list_inputs(inputs: str | list[str] | list[int] | list[list[int]]) -> list[str]:
    """Return the texts of a request, in order; those that are token ids as `TextInput`s."""
    if isinstance(inputs, str):
        return [inputs]
    if inputs and isinstance(inputs[0], int):
        return [TextInput(ids=inputs)]
    return [each if isinstance(each, str) else TextInput(ids=each) for each in inputs]  # type: ignore[arg-type]


class ModelRequest(JSONBody):
    """What the calls of OpenAI, vLLM and infinity have in common."""

    meaningless: ClassVar[dict[str, str]] = {
        "user": "kept by nobody",
        "request_id": "the header x-request-id names a request",
        "priority": "small requests go first, then those that came first",
        "cache_salt": "nothing is shared between requests",
        "timeout": "the header x-request-timeout-seconds says when a client stops waiting",
    }
    refused: ClassVar[dict[str, str]] = {
        "additional_data": "models read texts alone",
        "mm_processor_kwargs": "models read texts alone; leave it out",
        "messages": "models read texts, no chats; send `input`",
        "chat_template": "models read texts, no chats; send `input`",
        "chat_template_kwargs": "models read texts, no chats; send `input`",
        "lora_path": "adapters are not loaded by request; serve them as models",
    }

    model: StrictStr | None = Field(None, description="name, name:version or name@alias")
    truncate_prompt_tokens: StrictInt | None = Field(
        None, ge=-1, description="read so many tokens at most; -1: what the model reads"
    )
    truncation_side: Literal["left", "right"] | None = Field(
        None, description="the end that is cut"
    )
    add_special_tokens: Literal[True] | None = Field(
        None, description="true; to leave special tokens out, send token ids as they are to be read"
    )

    @property
    def max_tokens(self) -> int | None:
        """How many tokens are read at most, if the request says so."""
        asked = self.truncate_prompt_tokens
        return None if asked is None or asked < 0 else asked

    def choose_model(self, http: Request) -> str | None:
        """Return the model of the path, or else of the body: clients cannot leave that out."""
        return requested_model(http) or self.model or None


class TextsRequest(ModelRequest):
    """What calls about one list of texts have in common."""

    input: Inputs = Field(
        description="a text, a list of texts, or token ids of the model's vocabulary: a list for "
        "one text, a list of lists for several"
    )

    def read_texts(self, limits: Limits) -> Sequence[str]:
        """Return the texts, in order. Raises HTTPError."""
        texts = check_texts(list_inputs(self.input), limits, "input")
        return read_as(texts, self.truncation_side, self.max_tokens)


_TRUNCATION = "cut texts that are too long (the default), or refuse them (false)"


class EmbeddingsRequest(TextsRequest):
    """The body of `/v1/embeddings`."""

    refused: ClassVar[dict[str, str]] = ModelRequest.refused | {
        "late_chunking": "texts are embedded one by one; send them joined for one vector",
        "return_multivector": "a text has one vector here; /embed_all has those of its tokens",
    }

    encoding_format: Literal["float", "base64"] = Field("float", description="of the vectors")
    dimensions: StrictInt | None = Field(
        None, ge=0, description="only the first so many, 0: all of them"
    )
    normalize: StrictBool | None = Field(None, description="vectors of length 1 (the default)")
    use_activation: StrictBool | None = Field(None, description="vLLM: another name for normalize")
    embed_dtype: Literal["float32"] | None = Field(None, description='"float32"')
    endianness: Literal["native", "little"] | None = Field(None, description='"little" or "native"')
    modality: Literal["text"] | None = Field(None, description='"text"')
    input_type: StrictStr | None = Field(None, description=f"Voyage, NIM: {INPUT_TYPE}")
    task: StrictStr | None = Field(None, description=f"Jina: {INPUT_TYPE}")
    truncation: StrictBool | None = Field(None, description=f"Voyage: {_TRUNCATION}")
    truncate: StrictBool | Literal["NONE", "START", "END"] | None = Field(
        None, description=f"Jina, NIM: {_TRUNCATION}; NONE, or the end that is cut"
    )
    output_dimension: StrictInt | None = Field(
        None, ge=0, description="Voyage: another name for dimensions"
    )
    output_dtype: Literal["float"] | None = Field(None, description='Voyage: "float"')
    embedding_type: Literal["float", "base64"] | None = Field(
        None, description="Jina: another name for encoding_format"
    )
    normalized: StrictBool | None = Field(None, description="Jina: another name for normalize")

    @property
    def truncates(self) -> bool:
        """Whether a text that is too long is cut."""
        return self.truncation is not False and self.truncate not in (False, "NONE")

    def read_prompted(self, limits: Limits, model: ModelInfo) -> Sequence[str]:
        """Return the texts, in order, behind the prompt for their use. Raises HTTPError."""
        texts = check_texts(list_inputs(self.input), limits, "input")
        prompt = find_prompt(self.input_type or self.task, model)
        side = "left" if self.truncate == "START" else self.truncation_side
        return read_as(add_prompt(texts, prompt, model), side, self.max_tokens)


async def create_embeddings(http: Request, models: Models) -> Response:
    """Embed texts."""
    request = parse_body(EmbeddingsRequest, http.body)
    model = request.choose_model(http)
    texts = request.read_prompted(models.limits, models.get_info(model))
    embedded = await models.embed(model, texts, truncate=request.truncates)
    normalize = False not in (request.normalize, request.normalized, request.use_activation)
    dimensions = request.dimensions or request.output_dimension
    vectors = [resize_embedding(vector, normalize, dimensions) for vector in embedded.values]
    encoding = request.embedding_type or request.encoding_format
    data = [
        {
            "object": "embedding",
            "embedding": _encode_vector(vector, encoding),
            "index": index,
        }
        for index, vector in enumerate(vectors)
    ]
    return json_response(
        {
            "object": "list",
            "data": data,
            "model": embedded.model.name,
            "usage": token_usage(embedded.num_tokens),
        }
    )


def _encode_vector(vector: Vector, encoding: Literal["float", "base64"]) -> str | list[float]:
    if encoding == "base64":
        return base64.b64encode(np.asarray(vector, "<f4").tobytes()).decode("ascii")
    numbers: list[float] = vector.tolist()
    return numbers


def token_usage(num_tokens: Sequence[int]) -> dict[str, int]:
    """Return the number of computed tokens as `usage` has it."""
    total = sum(num_tokens)
    return {"prompt_tokens": total, "total_tokens": total}


async def list_models(http: Request, models: Models) -> Response:
    """List every model by its name, then every version by name:version.

    `models`, KServe's key, holds the bare names.
    """
    infos = models.list_models()
    names: dict[str, Any] = {}
    for info in infos:
        names.setdefault(info.name, describe_model(info, info.name, _owner(http)))
    versions = [describe_model(info, f"{info.name}:{info.version}", _owner(http)) for info in infos]
    data = [*names.values(), *versions]
    return json_response({"object": "list", "data": data, "models": [*names]})


async def get_model(http: Request, models: Models) -> Response:
    """Describe a model, for OpenAI and KServe; one that is loaded on first use counts as ready."""
    reference = requested_model(http) or ""
    info = models.get_info(reference)
    asked = http.path_params.get("asked", reference)
    found = models.get_info(asked)
    if (found.name, found.version) != (info.name, info.version):
        raise HTTPError("no-model", f"{asked[:60]}: this path is of {reference[:60]} alone")
    status = {"name": asked, "ready": info.state != "loading"}
    return json_response(status | describe_model(info, asked, _owner(http)))


async def list_one_model(http: Request, models: Models) -> Response:
    """List the one model of the path."""
    reference = requested_model(http) or ""
    info = models.get_info(reference)
    data = [describe_model(info, reference, _owner(http))]
    return json_response({"object": "list", "data": data, "models": [reference]})


def _owner(http: Request) -> str:
    """Return who owns the models; infinity's client reads no other name than its own."""
    is_infinity = http.path.startswith("/infinity") or http.path == "/models"
    return "infinity" if is_infinity else OWNER


def describe_model(info: ModelInfo, reference: str, owner: str = OWNER) -> dict[str, Any]:
    """Describe one model by a reference that it answers to."""
    known = {"id": reference, "object": "model", "created": int(info.created), "owned_by": owner}
    capability = _CAPABILITIES.get(info.task, info.task)  # as infinity names it
    of_infinity = {"capabilities": [capability], "backend": info.engine, "stats": {}}
    return known | of_infinity | {"max_model_len": info.max_length}


def error_body(error: HTTPError, status: int) -> bytes:
    """Return the JSON of an error."""
    default = "server_error" if status >= 500 else "invalid_request_error"
    body = {
        "message": error.message,
        "type": _ERROR_TYPES.get(status, default),
        "param": None,
        "code": error.kind.replace("-", "_"),
    }
    return dump_json({"error": body})


def _routes(prefix: str) -> Iterator[Route]:
    """Yield the calls below a prefix, with the version of the API in the path and without it."""
    body = json_schema(EmbeddingsRequest)
    listing = list_one_model if "{model}" in prefix else list_models
    for version in ("/v1", ""):
        path = f"{prefix}{version}"
        yield Route(
            "POST",
            f"{path}/embeddings",
            create_embeddings,
            "The vectors of texts",
            body_schema=body,
        )
        yield Route("GET", f"{path}/models", listing, "The models")
        own = f"{path}/models/{{asked}}" if "{model}" in prefix else f"{path}/models/{{model}}"
        yield Route("GET", own, get_model, "A model")


PROTOCOL = WireProtocol(
    "openai",
    (
        *(route for prefix in PREFIXES for route in _routes(prefix)),
        Route(
            "POST",
            "/openai/deployments/{model}/embeddings",
            create_embeddings,
            "The vectors of texts, as Azure has it",
            body_schema=json_schema(EmbeddingsRequest),
        ),
    ),
    error_body,
    STATUSES,
)
