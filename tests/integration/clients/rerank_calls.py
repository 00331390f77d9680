"""Cohere's, Voyage's, Jina's, infinity's and vLLM's calls."""

from typing import Any

import cohere
import httpx
import numpy as np
import pytest
import voyageai

from tests.integration.clients.openai_calls import same_vectors
from tests.integration.clients.table import client_call
from tests.support.served import ROUNDING, TEXTS, Served, ranked, same


def nearest(served: Served) -> list[tuple[int, float]]:
    """The other texts by their nearness to the first: place and score."""
    first, *others = served.embed(TEXTS)
    scores = [(place, float(first @ other)) for place, other in enumerate(others)]
    return sorted(scores, key=lambda pair: -pair[1])


def same_ranking(found: list[tuple[int, float]], served: Served) -> None:
    expected = nearest(served)[: len(found)]
    assert [place for place, _ in found] == [place for place, _ in expected]
    scores = [score for _, score in expected]
    assert [score for _, score in found] == pytest.approx(scores, abs=ROUNDING)


@client_call("cohere", "ClientV2.rerank")
def cohere_rerank(served: Served) -> None:
    client = cohere.ClientV2(api_key="none", base_url=served.url())
    found = client.rerank(model="mini", query=TEXTS[0], documents=TEXTS[1:])
    same_ranking([(each.index, each.relevance_score) for each in found.results], served)
    best = client.rerank(model="mini", query=TEXTS[0], documents=TEXTS[1:], top_n=1)
    assert len(best.results) == 1


@client_call("cohere", "Client.rerank(return_documents=True)")
def cohere_rerank_documents(served: Served) -> None:
    client = cohere.Client(api_key="none", base_url=served.url())
    found = client.rerank(model="mini", query=TEXTS[0], documents=TEXTS[1:], return_documents=True)
    for each in found.results:
        assert each.document is not None and each.document.text == TEXTS[1:][each.index]


@client_call("cohere", "ClientV2.embed")
def cohere_embed(served: Served) -> None:
    client = cohere.ClientV2(api_key="none", base_url=served.url())
    found = client.embed(
        model="mini", texts=TEXTS, input_type="classification", embedding_types=["float"]
    )
    same_vectors(found.embeddings.float_, served)


@client_call("cohere", 'ClientV2.embed(input_type="search_query"), with a prompt')
def cohere_embed_query(served: Served) -> None:
    client = cohere.ClientV2(api_key="none", base_url=served.url())
    found = client.embed(
        model="mini", texts=["a film"], input_type="search_query", embedding_types=["float"]
    )
    same_vectors(found.embeddings.float_, served, [f"{served.prompts['query']}a film"])


@client_call("cohere", 'ClientV2.embed(embedding_types=["int8"])')
def cohere_embed_in_bytes(served: Served) -> str:
    client = cohere.ClientV2(api_key="none", base_url=served.url())
    with pytest.raises(cohere.BadRequestError) as refused:
        client.embed(model="mini", texts=TEXTS, input_type="search_query", embedding_types=["int8"])
    return str(refused.value.body["message"])  # type: ignore[index]


@client_call("cohere", "Client.embed")
def cohere_embed_v1(served: Served) -> None:
    client = cohere.Client(api_key="none", base_url=served.url())
    found = client.embed(model="mini", texts=TEXTS, input_type="clustering")
    same_vectors(found.embeddings, served)


@client_call("cohere", "Client.tokenize, .detokenize(offline=False)")
def cohere_tokens(served: Served) -> None:
    client = cohere.Client(api_key="none", base_url=served.url())
    tokens = client.tokenize(text="a warm film", model="mini", offline=False).tokens
    assert client.detokenize(tokens=tokens, model="mini", offline=False).text == "a warm film"


@client_call("voyageai", "Client.embed")
def voyage_embed(served: Served) -> None:
    client = voyageai.Client(api_key="none", base_url=served.url("/v1"))
    same_vectors(client.embed(TEXTS, model="mini").embeddings, served)
    found = client.embed(["a film"], model="mini", input_type="query").embeddings
    same_vectors(found, served, [f"{served.prompts['query']}a film"])


@client_call("voyageai", "Client.rerank")
def voyage_rerank(served: Served) -> None:
    client = voyageai.Client(api_key="none", base_url=served.url("/v1"))
    for top_k in (None, 1):
        found = client.rerank(TEXTS[0], TEXTS[1:], model="mini", top_k=top_k).results
        assert len(found) == (top_k or 2)
        same_ranking([(each.index, each.relevance_score) for each in found], served)


def ask(served: Served, path: str, body: dict[str, Any]) -> Any:
    with httpx.Client(base_url=served.url(), trust_env=False) as client:
        return client.post(path, json=body).raise_for_status().json()


@client_call("Jina (HTTP)", "/v1/embeddings, /v1/rerank")
def jina(served: Served) -> None:
    body = {"model": "mini", "input": TEXTS, "task": "text-matching", "normalized": True}
    data = ask(served, "/v1/embeddings", body | {"embedding_type": "float"})["data"]
    same_vectors([each["embedding"] for each in data], served)
    asked = {"model": "mini", "query": TEXTS[0], "documents": TEXTS[1:], "top_n": 2}
    results = ask(served, "/v1/rerank", asked)["results"]
    same_ranking([(each["index"], each["relevance_score"]) for each in results], served)


@client_call("infinity (HTTP)", "/infinity/embeddings, /rerank, /models, /health")
def infinity(served: Served) -> None:
    body = {"model": "mini", "input": TEXTS, "dimensions": 0, "modality": "text"}
    data = ask(served, "/infinity/embeddings", body)["data"]
    same_vectors([each["embedding"] for each in data], served)
    asked = {"model": "mini", "query": TEXTS[0], "documents": TEXTS[1:], "return_documents": True}
    results = ask(served, "/infinity/rerank", asked)["results"]
    same_ranking([(each["index"], each["relevance_score"]) for each in results], served)
    assert [each["document"] for each in results] == [TEXTS[1:][e["index"]] for e in results]
    with httpx.Client(base_url=served.url("/infinity"), trust_env=False) as client:
        assert client.get("/models").json()["data"][0]["capabilities"]
        assert client.get("/health").json()["unix"] > 0


@client_call("infinity (HTTP)", "/infinity/classify")
def infinity_classify(served: Served) -> None:
    found = ask(served, "/infinity/classify", {"model": "sentiment", "input": TEXTS})["data"]
    for text, of_text in zip(TEXTS, found, strict=True):
        same(of_text, ranked(served, "sentiment", text))


@client_call("vLLM (HTTP)", "/classify, /score, /rerank")
def vllm(served: Served) -> None:
    for text, found in zip(
        TEXTS, ask(served, "/classify", {"model": "sentiment", "input": TEXTS})["data"], strict=True
    ):
        probabilities = dict(ranked(served, "sentiment", text))
        expected = [probabilities[label] for label in served.labels("sentiment")]
        assert found["probs"] == pytest.approx(expected, abs=ROUNDING)
    asked = {"model": "mini", "text_1": TEXTS[0], "text_2": TEXTS[1:]}
    scores = [each["score"] for each in ask(served, "/score", asked)["data"]]
    vectors = served.embed(TEXTS)
    np.testing.assert_allclose(scores, vectors[1:] @ vectors[0], atol=ROUNDING)
    body = {"model": "mini", "query": TEXTS[0], "documents": TEXTS[1:]}
    results = ask(served, "/rerank", body)["results"]
    same_ranking([(each["index"], each["relevance_score"]) for each in results], served)


@client_call("vLLM (HTTP)", "/tokenize, /detokenize, /version")
def vllm_tokens(served: Served) -> None:
    found = ask(served, "/tokenize", {"model": "mini", "prompt": "a warm film"})
    assert found["count"] == len(found["tokens"])
    ids = found["tokens"][1:-1]
    assert ask(served, "/detokenize", {"model": "mini", "tokens": ids})["prompt"] == "a warm film"
    with httpx.Client(base_url=served.url(), trust_env=False) as client:
        assert client.get("/version").json()["version"]
