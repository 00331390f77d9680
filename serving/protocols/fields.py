"""Every field that clients of a protocol send, and what is done with it; tests send each of them.

A field is done (as its description says), refused by name with the way out, or means nothing here
for the reason given. A key that stands in no table is ignored, and the answer's header
`x-bertha-ignored` names it; so it does `accept` where the answer has another media type.
"""

from collections.abc import Iterator
from typing import NamedTuple

from serving.protocols.cohere.embed import (
    CohereDetokenizeRequest,
    CohereEmbedRequest,
    CohereTokenizeRequest,
)
from serving.protocols.hf import MEANINGLESS_HEADERS as HUB_HEADERS
from serving.protocols.hf import HFInferenceRequest, HFParameters
from serving.protocols.json_bodies import JSONBody
from serving.protocols.kserve import KServePredictRequest
from serving.protocols.oip import LoadRequest, RepositoryIndexRequest
from serving.protocols.oip_tensors import (
    InferParameters,
    InputParameters,
    InputTensor,
    OIPInferRequest,
    OutputParameters,
    RequestedOutput,
)
from serving.protocols.openai import EmbeddingsRequest
from serving.protocols.own.explain import ExplainRequest
from serving.protocols.own.feedback import FeedbackRequest
from serving.protocols.rerank import RerankRequest, ScoreRequest
from serving.protocols.sagemaker.bodies import InvocationBody, JSONLine, SplitFrame
from serving.protocols.sagemaker.invocations import MEANINGLESS_HEADERS, TARGET_MODEL
from serving.protocols.tei_bodies import (
    SimilarityInputs,
    SimilarityParameters,
    TEIEmbedRequest,
    TEIPredictRequest,
    TEIRerankRequest,
    TEISimilarityRequest,
)
from serving.protocols.tokens.bodies import DecodeRequest, DetokenizeRequest, TokenizeRequest
from serving.protocols.torchserve import TorchServeObject
from serving.protocols.torchserve_management import MEANINGLESS_QUERY
from serving.protocols.vllm import ClassifyRequest


class BodyFields(NamedTuple):
    """The fields of one object. place: where it stands in the body, "" for the body itself."""

    title: str
    place: str
    body: type[JSONBody]


BODIES = (
    BodyFields("Text Embeddings Inference: /predict", "", TEIPredictRequest),
    BodyFields("Text Embeddings Inference: /embed", "", TEIEmbedRequest),
    BodyFields("Text Embeddings Inference: /rerank", "", TEIRerankRequest),
    BodyFields("Text Embeddings Inference: /similarity", "", TEISimilarityRequest),
    BodyFields("Text Embeddings Inference: /similarity", "inputs", SimilarityInputs),
    BodyFields("Text Embeddings Inference: /similarity", "parameters", SimilarityParameters),
    BodyFields("Text Embeddings Inference and vLLM: /tokenize", "", TokenizeRequest),
    BodyFields("Text Embeddings Inference: /decode", "", DecodeRequest),
    BodyFields("vLLM: /detokenize", "", DetokenizeRequest),
    BodyFields("OpenAI, vLLM, infinity, Voyage, Jina: /v1/embeddings", "", EmbeddingsRequest),
    BodyFields("vLLM, infinity: /classify", "", ClassifyRequest),
    BodyFields("Cohere, Jina, Voyage, infinity, vLLM: /v1/rerank", "", RerankRequest),
    BodyFields("vLLM: /v1/score", "", ScoreRequest),
    BodyFields("Cohere: /v2/embed", "", CohereEmbedRequest),
    BodyFields("Cohere: /v1/tokenize", "", CohereTokenizeRequest),
    BodyFields("Cohere: /v1/detokenize", "", CohereDetokenizeRequest),
    BodyFields("Hugging Face: /hf/{model}", "", HFInferenceRequest),
    BodyFields("Hugging Face: /hf/{model}", "parameters", HFParameters),
    BodyFields("SageMaker, MLflow: /invocations", "", InvocationBody),
    BodyFields("SageMaker, MLflow: /invocations", "dataframe_split", SplitFrame),
    BodyFields("SageMaker, MLflow: /invocations", "a line of JSON Lines", JSONLine),
    BodyFields("KServe V1: /v1/models/{model}:predict", "", KServePredictRequest),
    BodyFields("KServe V2: /v2/models/{model}/infer", "", OIPInferRequest),
    BodyFields("KServe V2: /v2/models/{model}/infer", "parameters", InferParameters),
    BodyFields("KServe V2: /v2/models/{model}/infer", "inputs[0]", InputTensor),
    BodyFields("KServe V2: /v2/models/{model}/infer", "inputs[0].parameters", InputParameters),
    BodyFields("KServe V2: /v2/models/{model}/infer", "outputs[0]", RequestedOutput),
    BodyFields("KServe V2: /v2/models/{model}/infer", "outputs[0].parameters", OutputParameters),
    BodyFields("KServe V2: /v2/repository/index", "", RepositoryIndexRequest),
    BodyFields("KServe V2: /v2/repository/models/{model}/load", "parameters", LoadRequest),
    BodyFields("TorchServe: /predictions/{model}", "", TorchServeObject),
    BodyFields("Bertha: /explain", "", ExplainRequest),
    BodyFields("Bertha: /feedback", "", FeedbackRequest),
)


def list_fields(body: type[JSONBody]) -> Iterator[tuple[str, str, str]]:
    """Yield each field of a body: its name, "done", "refused" or "no effect", and the details."""
    for name, field in body.model_fields.items():
        yield name, "done", field.description or ""
    for name, why in body.refused.items():
        yield name, "refused", why
    for name, why in body.meaningless.items():
        yield name, "no effect", why


def to_markdown() -> str:
    """Return the tables as a page."""
    lines: list[str] = []
    title = ""
    for fields in BODIES:
        if fields.title != title:
            lines += [f"## {fields.title}", ""]
            title = fields.title
        if fields.place:
            lines += [f"`{fields.place}`:", ""]
        lines += _table(list_fields(fields.body))
    lines += ["## SageMaker: headers", ""]
    headers = [(name, "no effect", why) for name, why in MEANINGLESS_HEADERS.items()]
    named = (TARGET_MODEL, "done", "the model that answers; `.tar.gz` and the like are left off")
    accepted = ("accept", "done", "application/json, application/jsonlines or text/csv")
    lines += _table(iter([named, accepted, *headers]))
    lines += ["## Hugging Face: headers", ""]
    lines += _table((name, "no effect", why) for name, why in HUB_HEADERS.items())
    lines += ["## TorchServe: query of POST /manage/models", ""]
    lines += _table((name, "no effect", why) for name, why in MEANINGLESS_QUERY.items())
    return "\n".join(lines)


def _table(rows: Iterator[tuple[str, str, str]]) -> list[str]:
    head = ["| Field | | |", "|---|---|---|"]
    cells = [
        f"| `{name}` | {what} | {why.replace('|', chr(92) + '|')} |" for name, what, why in rows
    ]
    return [*head, *cells, ""]
