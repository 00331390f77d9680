"""OpenAI's client, Azure's, and what is built on it: LangChain, llama-index, Haystack."""

import asyncio
from typing import Any

import numpy as np
import openai
import pytest
from haystack import Document
from haystack.components.embedders import OpenAIDocumentEmbedder, OpenAITextEmbedder
from haystack.utils import Secret
from langchain_openai import AzureOpenAIEmbeddings, OpenAIEmbeddings
from llama_index.embeddings.openai_like import OpenAILikeEmbedding
from pydantic import SecretStr

from tests.integration.clients.table import client_call
from tests.support.served import ROUNDING, TEXTS, Served


def same_vectors(found: Any, served: Served, texts: list[str] = TEXTS) -> None:
    np.testing.assert_allclose(np.array(found), served.embed(texts), atol=ROUNDING)


def open_client(served: Served, path: str = "/v1") -> openai.OpenAI:
    return openai.OpenAI(base_url=served.url(path), api_key="none", max_retries=0)


@client_call("openai", "OpenAI.embeddings.create(input=texts)")
def embed_in_base64(served: Served) -> None:
    with open_client(served) as client:
        found = client.embeddings.create(model="mini", input=TEXTS)
        same_vectors([each.embedding for each in found.data], served)
        assert found.usage.total_tokens > 0 and found.model == "mini"


@client_call("openai", 'OpenAI.embeddings.create(encoding_format="float")')
def embed_in_floats(served: Served) -> None:
    with open_client(served) as client:
        found = client.embeddings.create(model="mini", input=TEXTS, encoding_format="float")
        same_vectors([each.embedding for each in found.data], served)


@client_call("openai", "OpenAI.embeddings.create(dimensions=3)")
def embed_shorter(served: Served) -> None:
    with open_client(served) as client:
        (found,) = client.embeddings.create(model="mini", input=TEXTS[0], dimensions=3).data
        first = served.embed(TEXTS[:1])[0][:3]
        np.testing.assert_allclose(found.embedding, first / np.linalg.norm(first), atol=ROUNDING)


@client_call("openai", "OpenAI.embeddings.create(input=token ids of the model)")
def embed_ids(served: Served) -> None:
    tokens = served.post("/tei/mini/tokenize", {"inputs": TEXTS})
    ids = [[token["id"] for token in of_text] for of_text in tokens]
    with open_client(served) as client:
        found = client.embeddings.create(model="mini", input=ids)
        same_vectors([each.embedding for each in found.data], served)


@client_call("openai", "OpenAI.embeddings.create(input=token ids of another tokenizer)")
def embed_foreign_ids(served: Served) -> str:
    with open_client(served) as client, pytest.raises(openai.BadRequestError) as refused:
        client.embeddings.create(model="mini", input=[[1, 99_999]])
    return refused.value.body["message"]  # type: ignore[index,no-any-return]


@client_call("openai", "OpenAI.embeddings.create, below a model's path")
def embed_below_a_model(served: Served) -> None:
    for path in ("/openai/mini/v1", "/tei/mini/v1", "/infinity/mini"):
        with open_client(served, path) as client:
            found = client.embeddings.create(model="text-embedding-3-small", input=TEXTS)
            same_vectors([each.embedding for each in found.data], served)


@client_call("openai", "AsyncOpenAI.embeddings.create, 16 at once")
def embed_at_once(served: Served) -> None:
    async def ask() -> list[Any]:
        async with openai.AsyncOpenAI(base_url=served.url("/v1"), api_key="none") as client:
            asked = (client.embeddings.create(model="mini", input=TEXTS) for _ in range(16))
            return await asyncio.gather(*asked)

    for found in asyncio.run(ask()):
        same_vectors([each.embedding for each in found.data], served)


@client_call("openai", "OpenAI.models.list, .retrieve")
def list_models(served: Served) -> None:
    with open_client(served) as client:
        assert {"sentiment", "sentiment:1", "mini"} <= {each.id for each in client.models.list()}
        assert client.models.retrieve("mini").id == "mini"


@client_call("openai", "OpenAI.models.retrieve of no model")
def retrieve_nothing(served: Served) -> str:
    with open_client(served) as client, pytest.raises(openai.NotFoundError) as refused:
        client.models.retrieve("nobody")
    return refused.value.body["message"]  # type: ignore[index,no-any-return]


@client_call("openai", "AzureOpenAI.embeddings.create")
def embed_by_azure(served: Served) -> None:
    with openai.AzureOpenAI(
        azure_endpoint=served.url(), api_key="none", api_version="2024-02-01", max_retries=0
    ) as client:
        found = client.embeddings.create(model="mini", input=TEXTS)
        same_vectors([each.embedding for each in found.data], served)


@client_call("openai", "OpenAI.chat.completions.create")
def chat(served: Served) -> str:
    with open_client(served) as client, pytest.raises(openai.NotFoundError) as refused:
        client.chat.completions.create(model="mini", messages=[{"role": "user", "content": "a"}])
    return refused.value.body["message"]  # type: ignore[index,no-any-return]


@client_call("langchain-openai", "OpenAIEmbeddings(check_embedding_ctx_length=False)")
def langchain(served: Served) -> None:
    client = OpenAIEmbeddings(
        model="mini",
        base_url=served.url("/v1"),
        api_key=SecretStr("none"),
        check_embedding_ctx_length=False,
    )
    same_vectors(client.embed_documents(TEXTS), served)
    same_vectors([client.embed_query(TEXTS[0])], served, TEXTS[:1])
    same_vectors(asyncio.run(client.aembed_documents(TEXTS)), served)


@client_call("langchain-openai", "AzureOpenAIEmbeddings(check_embedding_ctx_length=False)")
def langchain_by_azure(served: Served) -> None:
    client = AzureOpenAIEmbeddings(
        azure_endpoint=served.url(),
        azure_deployment="mini",
        api_key=SecretStr("none"),
        api_version="2024-02-01",
        check_embedding_ctx_length=False,
    )
    same_vectors(client.embed_documents(TEXTS), served)


@client_call("llama-index-embeddings-openai-like", "OpenAILikeEmbedding")
def llama_index(served: Served) -> None:
    client = OpenAILikeEmbedding(model_name="mini", api_base=served.url("/v1"), api_key="none")
    plain = [" ".join(text.split()) for text in TEXTS]  # it replaces line breaks itself
    same_vectors(client.get_text_embedding_batch(plain), served, plain)
    same_vectors([client.get_query_embedding(plain[0])], served, plain[:1])


@client_call("haystack-ai", "OpenAITextEmbedder, OpenAIDocumentEmbedder")
def haystack(served: Served) -> None:
    key, url = Secret.from_token("none"), served.url("/v1")
    of_text = OpenAITextEmbedder(api_key=key, api_base_url=url, model="mini")
    same_vectors([of_text.run(TEXTS[0])["embedding"]], served, TEXTS[:1])
    of_documents = OpenAIDocumentEmbedder(
        api_key=key, api_base_url=url, model="mini", progress_bar=False
    )
    found = of_documents.run([Document(content=text) for text in TEXTS])["documents"]
    same_vectors([document.embedding for document in found], served)
