"""Clients of model servers and platforms: Triton, KServe, TorchServe, SageMaker, MLflow."""

import json
from typing import Any

import boto3
import httpx
import numpy as np
import pandas as pd
import pytest
import tritonclient.http as triton
from botocore.config import Config
from botocore.exceptions import ClientError
from mlflow.pyfunc.scoring_server.client import ScoringServerClient
from tritonclient.utils import InferenceServerException

from tests.integration.clients.table import client_call
from tests.support.served import ROUNDING, TEXTS, Served, ranked, same


def tensor(texts: list[str]) -> triton.InferInput:
    found = triton.InferInput("text", [len(texts)], "BYTES")
    found.set_data_from_numpy(np.array([text.encode() for text in texts], object))
    return found


@client_call("tritonclient[http]", "InferenceServerClient.infer")
def infer(served: Served) -> None:
    expected = np.array([each.scores for each in served.predict("sentiment", TEXTS)])
    with triton.InferenceServerClient(served.address) as client:
        found = client.infer("sentiment", [tensor(TEXTS)]).as_numpy("probabilities")
        np.testing.assert_allclose(found, expected, atol=ROUNDING)
        vectors = client.infer("mini", [tensor(TEXTS)]).as_numpy("embedding")
        np.testing.assert_allclose(vectors, served.embed(TEXTS), atol=ROUNDING)


@client_call("tritonclient[http]", "InferenceServerClient.infer, gzip and deflate both ways")
def infer_compressed(served: Served) -> None:
    expected = np.array([each.scores for each in served.predict("sentiment", TEXTS)])
    with triton.InferenceServerClient(served.address) as client:
        for coding in ("gzip", "deflate"):
            result = client.infer(
                "sentiment",
                [tensor(TEXTS)],
                request_compression_algorithm=coding,
                response_compression_algorithm=coding,
            )
            found = result.as_numpy("probabilities")
            np.testing.assert_allclose(found, expected, atol=ROUNDING)


@client_call("tritonclient[http]", "InferenceServerClient.async_infer, 16 at once")
def infer_at_once(served: Served) -> None:
    expected = np.array([each.scores for each in served.predict("sentiment", TEXTS)])
    with triton.InferenceServerClient(served.address, concurrency=16) as client:
        asked = [client.async_infer("sentiment", [tensor(TEXTS)]) for _ in range(16)]
        for each in asked:
            found = each.get_result().as_numpy("probabilities")
            np.testing.assert_allclose(found, expected, atol=ROUNDING)


@client_call("tritonclient[http]", "get_server_metadata, get_model_metadata, _config, _ready")
def describe(served: Served) -> None:
    with triton.InferenceServerClient(served.address) as client:
        assert client.is_server_live() and client.is_server_ready()
        assert client.is_model_ready("sentiment") and not client.is_model_ready("nobody")
        assert client.get_server_metadata()["name"] == "bertha"
        assert client.get_model_metadata("sentiment")["inputs"][0]["datatype"] == "BYTES"
        assert client.get_model_config("sentiment")["name"] == "sentiment"


@client_call("tritonclient[http]", "get_inference_statistics, get_model_repository_index")
def count(served: Served) -> None:
    with triton.InferenceServerClient(served.address) as client:
        client.infer("sentiment", [tensor(TEXTS)])
        (of_model,) = client.get_inference_statistics("sentiment")["model_stats"]
        assert of_model["inference_count"] > 0
        assert len(client.get_model_repository_index()) > 1


def heard(refused: Any) -> str:
    return str(refused.value.message())


@client_call("tritonclient[http]", "load_model, without keys")
def load(served: Served) -> str:
    with (
        triton.InferenceServerClient(served.address) as client,
        pytest.raises(InferenceServerException) as refused,
    ):
        client.load_model("mini")
    return heard(refused)


@client_call("tritonclient[http]", "register_system_shared_memory")
def share_memory(served: Served) -> str:
    with (
        triton.InferenceServerClient(served.address) as client,
        pytest.raises(InferenceServerException) as refused,
    ):
        client.register_system_shared_memory("a", "/a", 8)
    return heard(refused)


def ask(served: Served, path: str, body: dict[str, Any]) -> Any:
    with httpx.Client(base_url=served.url(), trust_env=False) as client:
        return client.post(path, json=body).raise_for_status().json()


@client_call("KServe (HTTP)", "/v1/models/{model}:predict, GET /")
def kserve(served: Served) -> None:
    found = ask(served, "/v1/models/sentiment:predict", {"instances": TEXTS})["predictions"]
    for text, of_text in zip(TEXTS, found, strict=True):
        expected = dict(ranked(served, "sentiment", text))
        assert of_text == pytest.approx(expected, abs=ROUNDING)
    with httpx.Client(base_url=served.url(), trust_env=False) as client:
        live = client.get("/", headers={"accept": "application/json"})
        assert live.json() == {"status": "alive"}


@client_call("TorchServe (HTTP)", "/predictions/{model}, /predictions/{model}/1.0, /ping")
def torchserve(served: Served) -> None:
    expected = dict(ranked(served, "sentiment", TEXTS[0]))
    with httpx.Client(base_url=served.url(), trust_env=False) as client:
        for path in ("/predictions/sentiment", "/predictions/sentiment/2.0"):
            for sent in (
                client.post(path, content=TEXTS[0].encode()),
                client.post(path, data={"data": TEXTS[0]}),
                client.post(path, files={"data": TEXTS[0].encode()}),
                client.put(path, content=TEXTS[0].encode()),
            ):
                assert sent.json() == pytest.approx(expected, abs=ROUNDING)
        rows = client.post("/predictions/sentiment", json=[{"data": TEXTS[0]}]).json()
        assert rows[0] == pytest.approx(expected, abs=ROUNDING)
        assert client.get("/ping").json() == {"status": "Healthy"}


def open_runtime(served: Served) -> Any:
    return boto3.client(
        "sagemaker-runtime",
        endpoint_url=served.url(),
        region_name="eu-central-1",
        aws_access_key_id="none",
        aws_secret_access_key="none",
        config=Config(retries={"max_attempts": 1}, proxies={}),
    )


@client_call("boto3 (sagemaker-runtime)", "invoke_endpoint(ContentType=JSON)")
def invoke(served: Served) -> None:
    found = open_runtime(served).invoke_endpoint(
        EndpointName="sentiment",
        ContentType="application/json",
        Body=json.dumps({"inputs": TEXTS}),
    )
    for text, of_text in zip(TEXTS, json.load(found["Body"]), strict=True):
        same(of_text, ranked(served, "sentiment", text))


@client_call("boto3 (sagemaker-runtime)", "invoke_endpoint(ContentType=JSON Lines, CSV, text)")
def invoke_other_types(served: Served) -> None:
    runtime, expected = open_runtime(served), ranked(served, "sentiment", TEXTS[0])
    lines = json.dumps({"inputs": TEXTS[0]})
    for kind, body in (
        ("application/jsonlines", lines),
        ("text/csv", f'"{TEXTS[0]}"\n'),
        ("text/plain", TEXTS[0]),
    ):
        asked = {"EndpointName": "sentiment", "ContentType": kind, "Body": body}
        found = json.load(runtime.invoke_endpoint(**asked, Accept="application/json")["Body"])
        same(found[0] if isinstance(found[0], list) else found, expected)
    asked["Accept"] = "text/csv"
    label, score = runtime.invoke_endpoint(**asked)["Body"].read().decode().split(",")[:2]
    assert (label, float(score)) == (expected[0][0], pytest.approx(expected[0][1], abs=ROUNDING))


@client_call("boto3 (sagemaker-runtime)", "invoke_endpoint(TargetModel=...)")
def invoke_target(served: Served) -> None:
    found = open_runtime(served).invoke_endpoint(
        EndpointName="any-name",
        TargetModel="topics.tar.gz",
        ContentType="application/json",
        Body=json.dumps({"inputs": TEXTS[0]}),
    )
    same(json.load(found["Body"]), ranked(served, "topics", TEXTS[0]))


@client_call("boto3 (sagemaker-runtime)", "invoke_endpoint of no endpoint")
def invoke_nothing(served: Served) -> str:
    with pytest.raises(ClientError) as refused:
        open_runtime(served).invoke_endpoint(EndpointName="nobody", Body=b'{"inputs": "a"}')
    return str(refused.value.response["Error"]["Message"])


def open_mlflow(served: Served) -> ScoringServerClient:
    return ScoringServerClient(*served.address.split(":"))


@client_call("mlflow-skinny", "ScoringServerClient.invoke(DataFrame), .ping, .get_version")
def mlflow(served: Served) -> None:
    client = open_mlflow(served)
    client.ping()
    assert client.get_version()
    table = pd.DataFrame({"id": range(len(TEXTS)), "text": TEXTS})
    found = client.invoke(table).get_predictions()
    for text, of_text in zip(TEXTS, found.to_numpy().tolist(), strict=True):
        same(of_text, ranked(served, "sentiment", text))


@client_call("mlflow-skinny", "ScoringServerClient.invoke(array)")
def mlflow_array(served: Served) -> str:
    with pytest.raises(Exception, match="predictions"):
        open_mlflow(served).invoke(np.array(TEXTS))
    return "no: `inputs` are answered as Hugging Face's containers answer; send a DataFrame"
