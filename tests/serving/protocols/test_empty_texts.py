"""A text that holds nothing, or nothing once it is cleaned, is refused as empty by every call.

The same texts are no rows of training: the cleaning of the bundle decides, and nothing else.
"""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import pytest

from serving.inference.model_server import ModelServer
from serving.protocols.oip_tensors import HEADER_LENGTH, pack_texts
from serving.registry.registry import Registry
from tests.support.blank_texts import BLANK, MARKUP_ONLY, VISIBLE
from tests.support.model_servers import make_registry, run_scenario
from tests.support.tiny_bundle import write_tiny_bundle

Call = tuple[str, dict[str, Any]]  # a path, and what httpx sends


def tensor(texts: list[str]) -> Any:
    return {"name": "text", "datatype": "BYTES", "shape": [len(texts)], "data": texts}


def binary(text: str) -> dict[str, Any]:
    packed = pack_texts([text])
    size = {"binary_data_size": len(packed)}
    head = json.dumps({"inputs": [tensor([text]) | {"data": None, "parameters": size}]}).encode()
    return {"content": head + packed, "headers": {HEADER_LENGTH: str(len(head))}}


def plain(text: str, kind: str = "text/plain") -> dict[str, Any]:
    return {"content": text.encode(), "headers": {"content-type": kind}}


CALLS: dict[str, Callable[[str], Call]] = {
    "TEI": lambda text: ("/predict", {"json": {"inputs": text}}),
    "TEI, a batch": lambda text: ("/predict", {"json": {"inputs": ["a film", text]}}),
    "TEI, from the right": lambda text: (
        "/predict",
        {"json": {"inputs": text, "truncation_direction": "left"}},
    ),
    "Hugging Face": lambda text: ("/hf/tiny", {"json": {"inputs": text}}),
    "vLLM": lambda text: ("/classify", {"json": {"model": "tiny", "input": text}}),
    "TorchServe": lambda text: ("/predictions/tiny", plain(text)),
    "TorchServe, why": lambda text: ("/explanations/tiny", {"json": {"data": text}}),
    "SageMaker": lambda text: ("/invocations", {"json": {"inputs": text}}),
    "SageMaker, a text": lambda text: ("/invocations", plain(text)),
    "KServe V1": lambda text: ("/v1/models/tiny:predict", {"json": {"instances": [text]}}),
    "KServe V2": lambda text: ("/v2/models/tiny/infer", {"json": {"inputs": [tensor([text])]}}),
    "KServe V2, in bytes": lambda text: ("/v2/models/tiny/infer", binary(text)),
}
EMBEDDING_CALLS: dict[str, Callable[[str], Call]] = {
    "TEI": lambda text: ("/tei/mini/embed", {"json": {"inputs": text}}),
    "TEI, a query": lambda text: ("/tei/mini/rerank", {"json": {"query": text, "texts": ["a"]}}),
    "OpenAI": lambda text: ("/v1/embeddings", {"json": {"model": "mini", "input": ["a", text]}}),
    "Cohere": lambda text: (
        "/v1/rerank",
        {"json": {"model": "mini", "query": "a", "documents": [text]}},
    ),
}


@pytest.fixture(scope="module")
def registry(tmp_path_factory: pytest.TempPathFactory, tiny_bert: Path) -> Registry:
    """A classifier `tiny`, whose cleaning reads markup, and an embedder `mini`, whose keeps it."""
    place = tmp_path_factory.mktemp("empty")
    made = make_registry(place / "registry", write_tiny_bundle(place / "bundle", tiny_bert))
    mini = write_tiny_bundle(place / "mini", tiny_bert, "embedding")
    made.deploy("mini", made.register(mini, "mini"))
    made.make_default("tiny")
    return made


def answers(
    registry: Registry, calls: dict[str, Callable[[str], Call]], texts: tuple[str, ...]
) -> dict[tuple[str, str], httpx.Response]:
    """The response of each call to each text."""
    found: dict[tuple[str, str], httpx.Response] = {}

    async def scenario(client: httpx.AsyncClient, _: ModelServer) -> None:
        for name, call in calls.items():
            for text in texts:
                path, sent = call(text)
                found[name, text] = await client.post(path, **sent)

    run_scenario(registry, scenario)
    return found


def test_what_the_cleaning_leaves_nothing_of_is_refused_as_empty(registry: Registry) -> None:
    for (name, text), response in answers(registry, CALLS, BLANK + MARKUP_ONLY).items():
        assert response.status_code == 400, (name, text, response.text)
        assert "is empty" in response.text and "leave it out" in response.text, (name, text)
        if name == "TEI, a batch":
            assert "text 2 " in response.json()["error"]
            assert response.json()["error_type"] == "Empty"


def test_the_cleaning_of_the_bundle_decides(registry: Registry) -> None:
    for (name, text), response in answers(registry, EMBEDDING_CALLS, BLANK).items():
        assert response.status_code == 400, (name, text, response.text)
        assert "is empty" in response.text, (name, text)
    for (name, text), response in answers(registry, EMBEDDING_CALLS, MARKUP_ONLY).items():
        assert response.status_code == 200, (name, text, response.text)


def test_what_somebody_sees_is_answered(registry: Registry) -> None:
    for (name, text), response in answers(registry, CALLS, VISIBLE).items():
        assert response.status_code == 200, (name, text, response.text)
