"""Hugging Face's client, and clients of Text Embeddings Inference."""

from typing import Any

import httpx
import numpy as np
import pytest
from haystack import Document
from haystack_integrations.components.embedders.huggingface_api import HuggingFaceAPITextEmbedder
from haystack_integrations.components.rankers.huggingface_api import HuggingFaceTEIRanker
from huggingface_hub import AsyncInferenceClient, InferenceClient
from huggingface_hub.errors import HfHubHTTPError
from llama_index.embeddings.text_embeddings_inference import TextEmbeddingsInference

from serving import protocols
from serving.http.asgi import App
from tests.integration.clients.openai_calls import same_vectors
from tests.integration.clients.table import client_call
from tests.support.fake_models import FakeModels, fake_vector
from tests.support.served import ROUNDING, TEXTS, Served, ranked, same
from tests.support.servers import serve_app


def open_client(served: Served, path: str) -> InferenceClient:
    return InferenceClient(model=served.url(path), token="none")


@client_call("huggingface-hub", "InferenceClient.text_classification")
def classify(served: Served) -> None:
    for path in ("", "/hf/sentiment", "/hf/sentiment:2", "/hf/sentiment@best"):
        found = open_client(served, path).text_classification(TEXTS[0])
        same(found, ranked(served, "sentiment", TEXTS[0]))
    (best,) = open_client(served, "/hf/topics").text_classification(
        TEXTS[1], top_k=1, function_to_apply="sigmoid"
    )
    assert best["label"] == ranked(served, "topics", TEXTS[1])[0][0]


@client_call("huggingface-hub", "InferenceClient.feature_extraction")
def embed(served: Served) -> None:
    client = open_client(served, "/hf/mini")
    same_vectors(client.feature_extraction(TEXTS[0]), served, TEXTS[:1])
    found = client.feature_extraction(
        TEXTS, normalize=True, truncate=True, truncation_direction="right"
    )
    same_vectors(found, served)


@client_call("huggingface-hub", 'InferenceClient.feature_extraction(prompt_name="query")')
def embed_with_a_prompt(served: Served) -> None:
    found = open_client(served, "/hf/mini").feature_extraction("a film", prompt_name="query")
    same_vectors(found, served, [f"{served.prompts['query']}a film"])


@client_call("huggingface-hub", "InferenceClient.sentence_similarity")
def compare(served: Served) -> None:
    found = open_client(served, "/hf/mini").sentence_similarity(TEXTS[0], other_sentences=TEXTS[1:])
    vectors = served.embed(TEXTS)
    assert found == pytest.approx((vectors[1:] @ vectors[0]).tolist(), abs=ROUNDING)


@client_call("huggingface-hub", "InferenceClient.fill_mask")
def fill_mask(served: Served) -> None:
    client = open_client(served, "/hf/filler")
    first, second = client.fill_mask("a [MASK] plot", top_k=2)
    assert first["sequence"] == f"a {first['token_str']} plot"
    assert first["score"] > second["score"]
    (film,) = client.fill_mask("a [MASK]", targets=["film"])
    assert film["token_str"] == "film"


@client_call("huggingface-hub", "AsyncInferenceClient.text_classification")
def classify_asynchronously(served: Served) -> None:
    import asyncio

    async def ask() -> Any:
        client = AsyncInferenceClient(model=served.url("/hf/sentiment"), token="none")
        return await client.text_classification(TEXTS[0])

    same(asyncio.run(ask()), ranked(served, "sentiment", TEXTS[0]))


@client_call("huggingface-hub", "InferenceClient.health_check")
def check_health(served: Served) -> None:
    client = InferenceClient(model=served.url(), provider="hf-inference", token="none")
    assert client.health_check()


def refused(found: Any) -> str:
    """What the server says, without what the client says around it."""
    return str(found.value.response.json()["error"])


@client_call("huggingface-hub", "InferenceClient.question_answering")
def answer_questions(served: Served) -> str:
    with pytest.raises(HfHubHTTPError) as heard:
        open_client(served, "/hf/mini").question_answering(question="a", context="b")
    return refused(heard)


@client_call("huggingface-hub", "InferenceClient.zero_shot_classification")
def classify_without_training(served: Served) -> str:
    with pytest.raises(HfHubHTTPError) as heard:
        open_client(served, "/hf/sentiment").zero_shot_classification("a", ["b", "c"])
    return refused(heard)


@client_call("llama-index-embeddings-text-embeddings-inference", "TextEmbeddingsInference")
def llama_index(served: Served) -> None:
    client = TextEmbeddingsInference(model_name="mini", base_url=served.url("/tei/mini"))
    same_vectors(client.get_text_embedding_batch(TEXTS), served)


@client_call("huggingface-api-haystack", "HuggingFaceAPITextEmbedder")
def haystack(served: Served) -> None:
    embedder = HuggingFaceAPITextEmbedder(
        api_type="text_embeddings_inference",
        api_params={"url": served.url("/tei/mini")},
        token=None,
    )
    same_vectors([embedder.run(TEXTS[0])["embedding"]], served, TEXTS[:1])


@client_call("huggingface-api-haystack", "HuggingFaceTEIRanker, where an embedder is the default")
def haystack_ranker(_: Served) -> None:
    # It asks the root of the server, whatever path its URL has.
    with serve_app(App(protocols.ALL, FakeModels("mini"))) as address:
        ranker = HuggingFaceTEIRanker(url=f"http://{address}", token=None)
        found = ranker.run(TEXTS[0], [Document(content=text) for text in TEXTS[1:]])["documents"]
    first, *others = map(fake_vector, TEXTS)
    expected = {text: float(first @ other) for text, other in zip(TEXTS[1:], others, strict=True)}
    assert {each.content: each.score for each in found} == pytest.approx(expected, abs=ROUNDING)


def ask_tei(served: Served, path: str, body: dict[str, Any]) -> Any:
    with httpx.Client(base_url=served.url(), trust_env=False) as client:
        return client.post(path, json=body).raise_for_status().json()


@client_call("text-embeddings-inference (HTTP)", "/embed, /embed_all")
def tei_embed(served: Served) -> None:
    same_vectors(ask_tei(served, "/tei/mini/embed", {"inputs": TEXTS}), served)
    all_tokens = ask_tei(served, "/tei/mini/embed_all", {"inputs": TEXTS})
    means = np.array([np.mean(of_text, axis=0) for of_text in all_tokens])
    same_vectors(means / np.linalg.norm(means, axis=1, keepdims=True), served)


@client_call("text-embeddings-inference (HTTP)", "/predict")
def tei_predict(served: Served) -> None:
    for text, found in zip(TEXTS, ask_tei(served, "/predict", {"inputs": TEXTS}), strict=True):
        same(found, ranked(served, "sentiment", text))


@client_call("text-embeddings-inference (HTTP)", "/rerank, /similarity")
def tei_rerank(served: Served) -> None:
    first, *others = served.embed(TEXTS)
    expected = [float(first @ other) for other in others]
    body: dict[str, Any] = {"query": TEXTS[0], "texts": TEXTS[1:], "raw_scores": False}
    found = ask_tei(served, "/tei/mini/rerank", body)
    by_index = {each["index"]: each["score"] for each in found}
    assert [by_index[0], by_index[1]] == pytest.approx(expected, abs=ROUNDING)
    assert found[0]["score"] >= found[1]["score"]
    inputs = {"source_sentence": TEXTS[0], "sentences": TEXTS[1:]}
    near = ask_tei(served, "/tei/mini/similarity", {"inputs": inputs})
    assert near == pytest.approx(expected, abs=ROUNDING)


@client_call("text-embeddings-inference (HTTP)", "/tokenize, /decode")
def tei_tokenize(served: Served) -> None:
    (tokens,) = ask_tei(served, "/tei/mini/tokenize", {"inputs": "a warm film"})
    ids = [token["id"] for token in tokens]
    assert ask_tei(served, "/tei/mini/decode", {"ids": ids}) == ["a warm film"]


@client_call("text-embeddings-inference (HTTP)", "/info, /health")
def tei_info(served: Served) -> None:
    with httpx.Client(base_url=served.url("/tei/mini"), trust_env=False) as client:
        assert "embedding" in client.get("/info").json()["model_type"]
        assert client.get("/health").content == b""
