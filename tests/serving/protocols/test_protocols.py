"""Every protocol at once: no request does more than be answered or refused, whatever its bytes."""

import json
import re
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pydantic import BaseModel, ValidationError

from serving import protocols
from serving.http.messages import (
    DEFAULT_STATUSES,
    HTTPError,
    Request,
    Response,
    Route,
    WireProtocol,
)
from serving.http.openapi import build_openapi
from serving.protocols import (
    hf,
    kserve,
    oip_tensors,
    openai,
    tei_bodies,
    torchserve,
    vllm,
)
from serving.protocols.json_bodies import dump_json
from serving.protocols.rerank import RerankRequest
from serving.protocols.sagemaker.bodies import InvocationBody
from tests.support.fake_models import TASKS, FakeModels
from tests.support.http_requests import run_coroutine

ROUTES = [(protocol, route) for protocol in protocols.ALL for route in protocol.routes]
ASKED = [(protocol, route) for protocol, route in ROUTES if route.body_schema is not None]
FUZZED = settings(
    deadline=None, max_examples=300, suppress_health_check=[HealthCheck.too_slow]
)  # a busy machine is slow to draw

WORDS = """
    inputs input instances data body texts query parameters top_k targets truncate normalize id
    dimensions encoding_format model name datatype shape outputs source_sentence sentences target
    raw_scores pairs binary_data_size binary_data classification ready documents top_n text_1 text_2
    dataframe_split dataframe_records columns parameters max_length prompt truncate_prompt_tokens
    truncation_side truncation_direction timeout
"""
KEYS = st.sampled_from(WORDS.split())
SCALARS = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.integers(min_value=-(10**30), max_value=10**30)
    | st.floats()
    | st.text(max_size=6)
    | st.sampled_from(["BYTES", "a [MASK]", "softmax", "base64", "float", "Right", "label"])
)
VALUES = st.recursive(
    SCALARS,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(KEYS, inner, max_size=5),
    max_leaves=15,
)
NASTY = [
    b"",
    b"{}",
    b"null",
    b"[" * 100_000,
    b'{"inputs":' * 20_000,
    b'{"inputs": "\\ud800", "input": "\\ud800", "instances": ["\\ud800"], "data": "\\ud800"}',
    b'{"inputs": "\xff"}',
    b'{"inputs": 1e999, "input": 1e999, "instances": [1e999], "data": -1e999}',
    b'{"inputs": "a", "top_k": ' + b"9" * 5000 + b"}",
    b'{"inputs": NaN, "input": NaN, "instances": NaN}',
    b'{"inputs": "a", "inputs": 1, "input": "a", "input": 2}',
    b'{"inputs": [{"name": "t", "datatype": "BYTES", "shape": [-1], "data": ["a"]}]}',
    b'{"inputs": [{"name": "t", "datatype": "BYTES", "shape": [0], "data": []}]}',
    b'{"inputs": [{"name": "t", "datatype": "BYTES", "shape": [2147483647, 2147483647]}]}',
    b'{"inputs": [{"name": "t", "datatype": "BYTES", "shape": [1],'
    b' "parameters": {"binary_data_size": 99}}]}\x01\x00\x00\x00a',
    '{"inputs": "a"}'.encode("utf-16"),
    b"\x00" * 50,
]
CONTENT_TYPES = [
    "",
    "application/json",
    "application/json; charset=utf-8",
    "text/plain",
    "text/csv",
    "application/octet-stream",
    "application/x-www-form-urlencoded",
    "multipart/form-data",
    "multipart/form-data; boundary=x",
    "multipart/form-data; boundary*=utf-8''x",
]
HEADERS = st.fixed_dictionaries(
    {},
    optional={
        "content-type": st.sampled_from(CONTENT_TYPES),
        "inference-header-content-length": st.sampled_from(["0", "7", "-1", "10**9", "99999", "²"])
        | st.text(max_size=3),
        "x-api-style": st.sampled_from(["infinity", "vllm"]),
    },
)
NAMES = st.sampled_from([*TASKS, "sentiment:1", "sentiment@best", "nobody", "a:b:c", "@"])
NAMES |= st.text(min_size=1, max_size=5)
VERSIONS = st.sampled_from(["1", "2", "9", "all"]) | st.text(min_size=1, max_size=3)
QUERIES = st.dictionaries(
    st.sampled_from(["limit", "next_page_token", "url", "model_name", "customized", "target"]),
    st.sampled_from(["1", "-1", "true", "9" * 50, "²", "positive"]) | st.text(max_size=4),
)


def reply_to(
    protocol: WireProtocol, route: Route, request: Request, models: FakeModels
) -> Response:
    try:
        return run_coroutine(route.handler(request, models))
    except HTTPError as refusal:
        return protocol.error_response(refusal)


def sound(reply: Response) -> None:
    """A reply that a client can read; never an error of the server's own."""
    assert reply.status in {*DEFAULT_STATUSES.values(), 200, 202} - {500}
    if reply.media_type == "application/json" and reply.body:
        json.loads(reply.body.decode())
    if reply.status not in (200, 202):
        assert json.loads(reply.body)


@FUZZED
@given(
    place=st.sampled_from(ROUTES),
    model=NAMES,
    version=VERSIONS,
    query=QUERIES,
    headers=HEADERS,
    body=st.sampled_from(NASTY) | st.binary(max_size=100) | VALUES.map(dump_json),
)
def test_no_request_does_more_than_be_answered_or_refused(
    place: tuple[WireProtocol, Route],
    model: str,
    version: str,
    query: dict[str, str],
    headers: dict[str, str],
    body: bytes,
) -> None:
    protocol, route = place
    names = {"model": model, "version": version, "region": version, "asked": model}
    used = {name: names[name] for name in re.findall(r"\{(\w+)\}", route.path)}
    request = Request(route.method, route.path, used, query, headers, body)
    sound(reply_to(protocol, route, request, FakeModels()))


@FUZZED
@given(
    place=st.sampled_from(ASKED),
    model=st.sampled_from(list(TASKS)),
    body=st.dictionaries(KEYS, VALUES, max_size=6),
)
def test_no_json_object_does_more_than_be_answered_or_refused(
    place: tuple[WireProtocol, Route], model: str, body: dict[str, Any]
) -> None:
    protocol, route = place
    names = {"model": model, "version": "1"} if "{version}" in route.path else {"model": model}
    used = {name: value for name, value in names.items() if f"{{{name}}}" in route.path}
    headers = {"content-type": "application/json"}
    request = Request(route.method, route.path, used, {}, headers, json.dumps(body).encode())
    sound(reply_to(protocol, route, request, FakeModels(model)))


@pytest.mark.parametrize("body", NASTY, ids=range(len(NASTY)))
def test_nasty_bodies_reach_every_route(body: bytes) -> None:
    for protocol, route in ROUTES:
        for content_type in CONTENT_TYPES:
            names = {"model": "sentiment", "version": "1", "region": "a", "asked": "a"}
            used = {name: names[name] for name in re.findall(r"\{(\w+)\}", route.path)}
            headers = {"content-type": content_type, "inference-header-content-length": "60"}
            request = Request(route.method, route.path, used, {}, headers, body)
            sound(reply_to(protocol, route, request, FakeModels()))


@pytest.mark.parametrize("protocol", protocols.ALL, ids=lambda protocol: protocol.name)
@pytest.mark.parametrize("kind", DEFAULT_STATUSES)
def test_every_refusal_is_worded_in_json(protocol: WireProtocol, kind: Any) -> None:
    reply = protocol.error_response(HTTPError(kind, 'why: "\ud800" \x00 é', retry_after_seconds=2))
    assert 400 <= reply.status < 600
    assert ("retry-after", "2") in reply.headers
    assert "why" in json.dumps(json.loads(reply.body.decode()))


@pytest.mark.parametrize("num_digits", [30, 4299, 4300, 4301, 9000])
def test_a_huge_number_is_no_flaw_of_the_message(num_digits: int) -> None:
    for protocol, route in ASKED:
        body = b'{"inputs": %s, "input": %s, "data": %s, "instances": [%s]}' % (
            (b"9" * num_digits,) * 4
        )
        names = {"model": "sentiment", "version": "2"}
        request = Request(route.method, route.path, names, {}, {}, body)
        sound(reply_to(protocol, route, request, FakeModels()))


MANY = [None] * 1000  # mistakes


@pytest.mark.parametrize(
    ("model", "body"),
    [
        (tei_bodies.TEIPredictRequest, {"inputs": MANY}),
        (tei_bodies.TEIPredictRequest, {"inputs": [MANY] * 9}),
        (tei_bodies.TEIEmbedRequest, {"inputs": MANY}),
        (tei_bodies.TEIRerankRequest, {"query": "a", "texts": MANY}),
        (
            tei_bodies.TEISimilarityRequest,
            {"inputs": {"source_sentence": "a", "sentences": MANY}},
        ),
        (hf.HFInferenceRequest, {"inputs": MANY}),
        (hf.HFInferenceRequest, {"inputs": "a", "parameters": {"targets": MANY}}),
        (openai.EmbeddingsRequest, {"input": MANY}),
        (openai.EmbeddingsRequest, {"input": [MANY] * 9}),
        (vllm.ClassifyRequest, {"input": MANY}),
        (RerankRequest, {"query": "a", "documents": MANY}),
        (kserve.KServePredictRequest, {"instances": MANY}),
        (InvocationBody, {"inputs": MANY, "instances": MANY}),
        (torchserve.TorchServeBody, MANY),
        (torchserve.TorchServeBody, {"data": MANY, "body": MANY}),
        (oip_tensors.OIPInferRequest, {"inputs": MANY, "outputs": MANY}),
    ],
)
def test_a_list_is_read_to_its_first_mistake(model: type[BaseModel], body: Any) -> None:
    with pytest.raises(ValidationError) as refused:
        model.model_validate(body)
    assert refused.value.error_count() < 10


def test_no_address_is_claimed_twice() -> None:
    addresses = [(route.method, route.path) for _, route in ROUTES]
    assert len(set(addresses)) == len(addresses)


def test_only_health_and_descriptions_need_no_key() -> None:
    opened = {route.path for _, route in ROUTES if route.scope == "open"}
    assert opened == {"/health", "/v2/health/live", "/v2/health/ready", "/ping", "/"} | {
        "/tei/{model}",
        "/tei/{model}/health",
        "/tei/{model}/ping",
        "/infinity",
        "/infinity/health",
        "/infinity/{model}/health",
    }
    managing = [route.path for _, route in ROUTES if route.scope == "management"]
    assert all(path.startswith(("/manage/", "/v2/repository/models/")) for path in managing)


def test_numbers_that_json_lacks_become_null() -> None:
    odd = {"a": [float("nan"), 1.5], "b": (float("inf"),), "c": "\ud800"}
    assert json.loads(dump_json(odd)) == {"a": [None, 1.5], "b": [None], "c": "?"}


def test_the_document_names_every_route_once() -> None:
    described = build_openapi(protocols.ALL, "Bertha", "1")
    assert described["openapi"] == "3.1.0"
    operations = [each for methods in described["paths"].values() for each in methods.values()]
    assert len(operations) == len(ROUTES)
    assert len({each["operationId"] for each in operations}) == len(ROUTES)


def test_the_documents_references_lead_somewhere() -> None:
    described = build_openapi(protocols.ALL, "Bertha", "1")
    text = json.dumps(described)
    assert "#/$defs" not in text
    for reference in set(re.findall(r'"#/components/schemas/([^"]+)"', text)):
        assert reference in described["components"]["schemas"]


def test_the_document_is_json_schema_throughout() -> None:
    jsonschema = pytest.importorskip("jsonschema")
    described = build_openapi(protocols.ALL, "Bertha", "1")
    for methods in described["paths"].values():
        for each in methods.values():
            for kind, content in each.get("requestBody", {}).get("content", {}).items():
                jsonschema.Draft202012Validator.check_schema(content["schema"])
                assert "/" in kind
    for schema in described["components"]["schemas"].values():
        jsonschema.Draft202012Validator.check_schema(schema)


def test_errors_are_documented_in_each_protocols_shape() -> None:
    paths = build_openapi(protocols.ALL, "Bertha", "1")["paths"]
    of_tei = paths["/predict"]["post"]["responses"]
    assert of_tei["413"]["content"]["application/json"]["example"]["error_type"] == "Validation"
    assert {"400", "401", "403", "413", "422", "424", "429", "503", "504"} <= set(of_tei)
    of_openai = paths["/v1/embeddings"]["post"]["responses"]["429"]
    assert of_openai["content"]["application/json"]["example"]["error"]["type"] == (
        "rate_limit_error"
    )
    assert paths["/health"]["get"]["security"] == []
    assert paths["/predict"]["post"]["security"] == [{"key": []}]
    assert paths["/v2/models/{model}/infer"]["post"]["parameters"][0]["name"] == "model"
