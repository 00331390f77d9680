"""Real clients, unmodified, over real sockets: all of them hear the same answers."""

import hashlib
import json
import urllib.error
import urllib.request
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import openai
import pytest
import tritonclient.http as triton
from huggingface_hub import InferenceClient
from huggingface_hub.errors import HfHubHTTPError
from tritonclient.utils import InferenceServerException

from serving import protocols
from serving.http.asgi import App
from serving.http.keys import ApiKey, ApiKeys
from tests.support.fake_models import TASKS, FakeModels
from tests.support.served import ROUNDING, TEXTS, Served, ranked, same, serve_engines, serve_fakes
from tests.support.servers import serve_app


@pytest.fixture(scope="module", params=["made up", pytest.param("engines", marks=pytest.mark.slow)])
def served(
    request: pytest.FixtureRequest, tiny_bert: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Served]:
    """An endpoint of models that are made up, and one of real engines, as it is deployed."""
    if request.param == "engines":
        yield from serve_engines(tiny_bert, tmp_path_factory.mktemp("models"))
    else:
        yield from serve_fakes()


@pytest.fixture(autouse=True)
def online(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its client refuses to ask even this machine while the hub is offline."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)


@pytest.fixture
def client(served: Served) -> Iterator[triton.InferenceServerClient]:
    with triton.InferenceServerClient(served.address) as found:
        yield found


def tensor(texts: Sequence[str], binary: bool) -> triton.InferInput:
    found = triton.InferInput("text", [len(texts)], "BYTES")
    found.set_data_from_numpy(np.array([t.encode() for t in texts], object), binary_data=binary)
    return found


@pytest.mark.parametrize("binary_in", [True, False])
@pytest.mark.parametrize("binary_out", [True, False, None])
@pytest.mark.parametrize("compression", [None, "gzip", "deflate"])
def test_tritonclient(
    served: Served,
    client: triton.InferenceServerClient,
    binary_in: bool,
    binary_out: bool | None,
    compression: str | None,
) -> None:
    names = ("probabilities", "label")
    outputs = [triton.InferRequestedOutput(name, binary_data=bool(binary_out)) for name in names]
    result = client.infer(
        "sentiment",
        [tensor(TEXTS, binary_in)],
        outputs=None if binary_out is None else outputs,
        request_id="7",
        request_compression_algorithm=compression,
        response_compression_algorithm=compression,
    )
    expected = np.array([each.scores for each in served.predict("sentiment", TEXTS)], np.float32)
    np.testing.assert_allclose(result.as_numpy("probabilities"), expected, atol=ROUNDING)
    likeliest = [served.labels("sentiment")[row.argmax()] for row in expected]
    said = [each.decode() if isinstance(each, bytes) else each for each in result.as_numpy("label")]
    assert said == likeliest
    assert result.get_response()["id"] == "7"


def test_tritonclients_classes(served: Served, client: triton.InferenceServerClient) -> None:
    output = triton.InferRequestedOutput("probabilities", binary_data=True, class_count=2)
    result = client.infer("sentiment", [tensor(TEXTS, True)], outputs=[output])
    for row, text in zip(result.as_numpy("probabilities"), TEXTS, strict=True):
        found = [each.decode().split(":") for each in row]
        classes = [{"score": float(value), "label": label} for value, _, label in found]
        same(classes, ranked(served, "sentiment", text))


def test_tritonclients_vectors(served: Served, client: triton.InferenceServerClient) -> None:
    result = client.infer("mini", [tensor(TEXTS, True)])
    np.testing.assert_allclose(result.as_numpy("embedding"), served.embed(TEXTS), atol=ROUNDING)


def test_tritonclients_questions(client: triton.InferenceServerClient) -> None:
    assert client.is_server_live()
    assert client.is_server_ready()
    assert client.is_model_ready("sentiment")
    assert client.is_model_ready("sentiment", "1")
    assert not client.is_model_ready("nobody")
    assert client.get_server_metadata()["name"] == "bertha"
    assert client.get_model_metadata("sentiment")["inputs"][0]["datatype"] == "BYTES"
    assert client.get_model_config("sentiment")["name"] == "sentiment"
    assert client.get_inference_statistics("sentiment")["model_stats"][0]["inference_count"] > 0
    assert len(client.get_inference_statistics()["model_stats"]) >= len(TASKS)
    assert {each["name"] for each in client.get_model_repository_index()} == set(TASKS)


def test_tritonclient_loads_with_a_key_that_manages(client: triton.InferenceServerClient) -> None:
    with pytest.raises(InferenceServerException, match="management is closed"):
        client.load_model("mini")
    digest = hashlib.sha256(b"secret").hexdigest()
    keys = ApiKeys([ApiKey(name="operator", sha256=digest, scopes=("management",))])
    models = FakeModels()
    bearer = {"Authorization": "Bearer secret"}
    with (
        serve_app(App(protocols.ALL, models, keys=keys)) as address,
        triton.InferenceServerClient(address) as operator,
    ):
        operator.load_model("mini", headers=bearer)
        operator.unload_model("mini", headers=bearer)
        with pytest.raises(InferenceServerException, match="'operator' is not for inference"):
            operator.infer("mini", [tensor(TEXTS, True)], headers=bearer)
        with pytest.raises(InferenceServerException, match="give a valid key"):
            operator.load_model("mini")
    assert models.managed is not None
    assert models.managed.calls == [("load", "mini"), ("unload", "mini")]


def test_tritonclient_hears_why_not(client: triton.InferenceServerClient) -> None:
    with pytest.raises(InferenceServerException, match="nobody"):
        client.infer("nobody", [tensor(TEXTS, True)])
    with pytest.raises(InferenceServerException, match=r"at most (32|2048);"):
        client.infer("sentiment", [tensor(["a"] * 2049, True)])


def test_hugging_face_labels(served: Served) -> None:
    for path in ("", "/hf/sentiment", "/hf/sentiment:2", "/hf/sentiment@best"):
        hub = InferenceClient(model=served.url(path), token="none")
        same(hub.text_classification(TEXTS[0]), ranked(served, "sentiment", TEXTS[0]))
        (best,) = hub.text_classification(TEXTS[1], top_k=1, function_to_apply="softmax")
        assert best["label"] == ranked(served, "sentiment", TEXTS[1])[0][0]


def test_hugging_face_tasks(served: Served) -> None:
    filler = InferenceClient(model=served.url("/hf/filler"), token="none")
    first, second = filler.fill_mask("a [MASK] plot", top_k=2)
    assert first["sequence"] == f"a {first['token_str']} plot"
    assert first["score"] > second["score"]
    (film,) = filler.fill_mask("a [MASK]", targets=["film"])
    assert film["token_str"] == "film"
    with pytest.raises(HfHubHTTPError, match="text 1 holds no"):
        filler.fill_mask("a film")
    mini = InferenceClient(model=served.url("/hf/mini"), token="none")
    vectors = served.embed(TEXTS)
    np.testing.assert_allclose(mini.feature_extraction(TEXTS[0]), vectors[:1], atol=ROUNDING)
    found = mini.feature_extraction(TEXTS, normalize=True, truncate=True)
    np.testing.assert_allclose(found, vectors, atol=ROUNDING)
    near = mini.sentence_similarity(TEXTS[0], other_sentences=TEXTS[1:])
    assert near == pytest.approx((vectors[1:] @ vectors[0]).tolist(), abs=ROUNDING)


def test_hugging_face_hears_why_not(served: Served) -> None:
    hub = InferenceClient(model=served.url("/hf/mini"), token="none")
    with pytest.raises(HfHubHTTPError, match="source_sentence"):
        hub.question_answering(question="a", context="b")
    health = InferenceClient(model=served.url(), provider="hf-inference", token="none")
    assert health.health_check()


def test_openai(served: Served) -> None:
    with openai.OpenAI(base_url=served.url("/v1"), api_key="none", max_retries=0) as api:
        found = api.embeddings.create(model="mini", input=TEXTS)
        vectors = [each.embedding for each in found.data]
        np.testing.assert_allclose(vectors, served.embed(TEXTS), atol=ROUNDING)
        floats = api.embeddings.create(model="mini", input=TEXTS[0], encoding_format="float")
        np.testing.assert_allclose(floats.data[0].embedding, served.embed(TEXTS)[0], atol=ROUNDING)
        short = api.embeddings.create(model="mini", input=TEXTS[0], dimensions=3)
        assert np.linalg.norm(short.data[0].embedding) == pytest.approx(1)
        assert found.usage.total_tokens > 0
        ids = [model.id for model in api.models.list()]
        assert ids[0] == "sentiment" and "sentiment:1" in ids
        assert api.models.retrieve("mini").id == "mini"
        with pytest.raises(openai.NotFoundError, match="nobody"):
            api.embeddings.create(model="nobody", input="a")
        with pytest.raises(openai.BadRequestError, match="check_embedding_ctx_length=False"):
            api.embeddings.create(model="mini", input=[1, 10**6])
        assert len(api.embeddings.create(model="mini", input=[[1, 2], [3]]).data) == 2
        with pytest.raises(openai.NotFoundError, match="nobody"):
            api.models.retrieve("nobody")
    with openai.AzureOpenAI(
        azure_endpoint=served.url(), api_key="none", api_version="2024-02-01", max_retries=0
    ) as azure:
        found = azure.embeddings.create(model="mini", input=TEXTS)
        vectors = [each.embedding for each in found.data]
        np.testing.assert_allclose(vectors, served.embed(TEXTS), atol=ROUNDING)


@pytest.mark.parametrize("name", ["sentiment", "topics", "stars"])
def test_every_protocol_gives_one_answer(served: Served, name: str) -> None:
    expected = [ranked(served, name, text) for text in TEXTS]
    one, labels = expected[0], served.labels(name)
    same(served.post(f"/tei/{name}/predict", {"inputs": TEXTS[0]}), one)
    (nested,) = served.post(f"/hf/{name}", {"inputs": TEXTS[0]})
    same(nested, one)
    (infinity,) = served.post(
        "/classify", {"model": name, "input": [TEXTS[0]]}, x_api_style="infinity"
    )["data"]
    same(infinity, one)
    (vllm,) = served.post("/classify", {"model": name, "input": TEXTS[0]})["data"]
    assert dict(zip(labels, vllm["probs"], strict=True)) == pytest.approx(dict(one), abs=ROUNDING)
    plain = served.post(f"/predictions/{name}", TEXTS[0].encode(), content_type="text/plain")
    batch = served.post(f"/predictions/{name}", TEXTS)
    kserve = served.post(f"/v1/models/{name}:predict", {"instances": TEXTS})["predictions"]
    for found, pairs in [(plain, one), *zip(batch, expected, strict=True)]:
        assert found == pytest.approx(pairs[0][1] if name == "stars" else dict(pairs), abs=ROUNDING)
    assert kserve == batch


def test_the_default_model_gives_one_answer(served: Served) -> None:
    expected = ranked(served, "sentiment", TEXTS[0])
    same(served.post("/predict", {"inputs": TEXTS[0]}), expected)
    same(served.post("/", {"inputs": TEXTS[0]})[0], expected)
    same(served.post("/invocations", {"inputs": TEXTS[0]}), expected)
    same(served.post("/invocations", TEXTS[0].encode(), content_type="text/plain"), expected)
    (vertex,) = served.post("/invocations", {"instances": [TEXTS[0]]})["predictions"]
    same(vertex, expected)


def test_forms_and_batches_with_httpx(served: Served) -> None:
    expected = [ranked(served, "sentiment", text) for text in TEXTS]
    with httpx.Client(base_url=served.url(), trust_env=False) as http:
        form = http.post("/predictions/sentiment", data={"data": TEXTS[0]}).json()
        file = http.post("/predictions/sentiment", files={"data": TEXTS[0].encode()}).json()
        put = http.put("/predictions/sentiment/2", content=TEXTS[0].encode()).json()
        for found in (form, file, put):
            assert found == pytest.approx(dict(expected[0]), abs=ROUNDING)
        answers = http.post("/predict", json={"inputs": TEXTS}).json()
        for found, pairs in zip(answers, expected, strict=True):
            same(found, pairs)
        assert http.get("/ping").json() == {"status": "Healthy"}
        assert http.get("/health").content == b""
        assert http.get("/v1/models").json()["models"][0] == "sentiment"
        assert http.options("/").json()["openapi"] == "3.1.0"


@pytest.mark.parametrize(
    ("path", "body", "status", "key"),
    [
        ("/predict", {"inputs": 1}, 400, "error_type"),
        ("/hf/nobody", {"inputs": "a"}, 404, "error"),
        ("/v2/models/nobody/infer", {"inputs": []}, 400, "error"),
        ("/v1/embeddings", {"model": "nobody", "input": "a"}, 404, "error"),
        ("/predictions/nobody", "a", 404, "type"),
        ("/v1/models/nobody:predict", {"instances": ["a"]}, 404, "error"),
        ("/invocations", {}, 400, "error"),
        ("/classify", {"input": []}, 400, "error"),
    ],
)
def test_no_is_said_in_each_protocols_words(
    served: Served, path: str, body: Any, status: int, key: str
) -> None:
    with pytest.raises(urllib.error.HTTPError) as raised:
        served.post(path, body)
    with raised.value as refused:
        assert refused.code == status
        assert key in json.load(refused)
