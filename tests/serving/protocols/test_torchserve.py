"""TorchServe, KServe V1 and SageMaker on bytes: the plain answer to each text."""

from typing import Any

import pytest

from tests.support.fake_models import FakeModels, fake_prediction, fake_vector
from tests.support.http_requests import json_answer, json_error, send_request

LABELS = ("negative", "positive")
TEXT = "a film"
SCORED = dict(zip(LABELS, fake_prediction(TEXT, "classification", 2).scores, strict=True))
FORM = "application/x-www-form-urlencoded"
MULTIPART = "multipart/form-data; boundary=XX"


def part(name: str, value: bytes, more: bytes = b"") -> bytes:
    head = b'Content-Disposition: form-data; name="' + name.encode() + b'"' + more
    return b"--XX\r\n" + head + b"\r\n\r\n" + value + b"\r\n"


@pytest.mark.parametrize(
    ("body", "content_type"),
    [
        (TEXT.encode(), ""),
        (TEXT.encode(), "text/plain"),
        (TEXT.encode(), "application/octet-stream"),
        (TEXT.encode(), FORM),  # what `curl -d` sends
        (b"data=a+film", FORM),
        (b"body=a%20film", FORM),
        (b'"a film"', "application/json"),
        (b'{"data": "a film"}', "application/json; charset=utf-8"),
        (b'{"body": "a film"}', "application/json"),
        (part("data", TEXT.encode()) + b"--XX--\r\n", MULTIPART),
        (
            part("data", TEXT.encode(), b'; filename="a.txt"\r\nContent-Type: text/plain')
            + b"--XX--",
            MULTIPART,
        ),
    ],
)
def test_a_text_is_understood_however_it_is_sent(body: bytes, content_type: str) -> None:
    found = json_answer(
        FakeModels(), "POST", "/predictions/sentiment", body, content_type=content_type
    )
    assert found == SCORED
    assert list(found.values()) == sorted(found.values(), reverse=True)


@pytest.mark.parametrize(
    ("body", "content_type"),
    [
        (b'["a film", "b"]', "application/json"),
        (b'{"data": ["a film", "b"]}', "application/json"),
        (b'["a film", "b"]', "text/plain"),
        (b"data=%5B%22a%20film%22%2C%20%22b%22%5D", FORM),
        (part("data", b'["a film", "b"]') + b"--XX--\r\n", MULTIPART),
    ],
)
def test_a_list_of_texts_is_a_batch(body: bytes, content_type: str) -> None:
    found = json_answer(
        FakeModels(), "POST", "/predictions/sentiment", body, content_type=content_type
    )
    assert [set(each) for each in found] == [set(LABELS)] * 2
    assert found[0] == SCORED


def test_a_text_may_begin_with_a_bracket() -> None:
    found = json_answer(FakeModels(), "POST", "/predictions/sentiment", b"[sic] a film")
    assert found["positive"] == fake_prediction("[sic] a film", "classification", 2).scores[1]


def test_versions_and_put() -> None:
    models = FakeModels()
    for method, path in [("POST", "/predictions/sentiment/1"), ("PUT", "/predictions/sentiment")]:
        assert json_answer(models, method, path, b"a film") == SCORED
    status, told = json_error(models, "POST", "/predictions/sentiment/9", b"a film")
    assert (status, told["code"], told["type"]) == (404, 404, "ModelNotFoundException")
    assert json_error(models, "POST", "/predictions/sentiment:2/1", b"a film")[0] == 404


def test_every_task_has_its_plain_answer() -> None:
    models = FakeModels()
    value = json_answer(models, "POST", "/predictions/stars", b"a film")
    assert value == fake_prediction(TEXT, "regression", 0).scores[0]
    assert json_answer(models, "POST", "/predictions/mini", b"a film") == fake_vector(TEXT).tolist()
    (first, *_) = json_answer(models, "POST", "/predictions/filler", b"a [MASK]")
    assert first["sequence"] == "a film"


@pytest.mark.parametrize(
    ("body", "content_type", "words"),
    [
        (b"\xff", "text/plain", "UTF-8"),
        (b"{", "application/json", "not JSON"),
        (b"5", "application/json", "the body is 5: expected a text"),
        (b"{}", "application/json", "neither data nor body"),
        (b"x=1", MULTIPART, "does not end"),
        (b"x=1", "multipart/form-data", "no boundary"),
        (part("other", b"a") + b"--XX--", MULTIPART, "field `data`"),
        (part("data", b"a"), MULTIPART, "does not end"),
        (b"--XX\r\nno headers\r\n--XX--", MULTIPART, "no empty line"),
        (part("data", b"\xff") + b"--XX--", MULTIPART, "UTF-8"),
        (b"data=%ff", FORM, "cannot be read"),
        (b"&".join([b"data=1"] * 500), FORM, "cannot be read"),
        (b"", "text/plain", "text 1 of data is empty"),
        (b'["a","b","c","d","e"]', "text/plain", "at most 4"),
    ],
)
def test_bad_bodies_are_refused_in_torchserves_shape(
    body: bytes, content_type: str, words: str
) -> None:
    status, told = json_error(
        FakeModels(), "POST", "/predictions/sentiment", body, content_type=content_type
    )
    assert set(told) == {"code", "type", "message"}
    assert told["code"] == status
    assert words in told["message"]


def test_explanations_name_words_and_their_weight() -> None:
    models = FakeModels()
    found = json_answer(models, "POST", "/explanations/sentiment?target=positive", b"a warm film")
    assert found["words"] == ["a", "warm", "film"]
    assert found["offsets"] == [[0, 1], [2, 6], [7, 11]]
    assert found["importances"] == [0.5, 0.5, 0.5]
    assert found["label"] == "positive"
    by_index = json_answer(models, "POST", "/explanations/sentiment", {"data": "a", "target": 0})
    assert by_index["label"] == "negative"
    status, told = json_error(models, "POST", "/explanations/sentiment?target=nobody", b"a")
    assert (status, "negative, positive" in told["message"]) == (400, True)
    assert json_error(models, "POST", "/explanations/stars", b"a")[0] == 400


def test_ping_needs_readiness() -> None:
    models = FakeModels()
    assert json_answer(models, "GET", "/ping") == {"status": "Healthy"}
    models.sound = False
    assert json_error(models, "GET", "/ping")[0] == 503


def test_the_api_describes_itself() -> None:
    found = json_answer(FakeModels(), "OPTIONS", "/")
    assert "/predictions/{model}" in found["paths"]


def test_models_are_listed_by_pages() -> None:
    models = FakeModels()
    page = json_answer(models, "GET", "/manage/models?limit=2")
    assert [each["modelName"] for each in page["models"]] == ["sentiment", "topics"]
    assert page["nextPageToken"] == "2"
    rest = json_answer(models, "GET", "/manage/models?next_page_token=2")
    assert [each["modelName"] for each in rest["models"]] == ["stars", "mini", "filler"]
    assert "nextPageToken" not in rest
    assert json_error(models, "GET", "/manage/models?limit=-1")[0] == 400


def test_models_are_described() -> None:
    models = FakeModels()
    (live,) = json_answer(models, "GET", "/manage/models/sentiment")
    assert (live["modelVersion"], live["workers"][0]["status"]) == ("2", "READY")
    (cold,) = json_answer(models, "GET", "/manage/models/sentiment/1?customized=true")
    assert (cold["modelVersion"], cold["workers"]) == ("1", [])
    assert cold["customizedMetadata"]["labels"] == list(LABELS)
    every = json_answer(models, "GET", "/manage/models/sentiment/all")
    assert [each["modelVersion"] for each in every] == ["2", "1"]


def test_models_are_managed() -> None:
    models = FakeModels()
    registered = json_answer(
        models, "POST", "/manage/models?url=runs/a/bundle&model_name=sentiment"
    )
    assert registered["status"].startswith('Model "sentiment" Version: 3 registered')
    json_answer(models, "PUT", "/manage/models/sentiment/1/set-default")
    json_answer(models, "DELETE", "/manage/models/sentiment/1")
    json_answer(models, "DELETE", "/manage/models/mini")
    assert "itself" in json_answer(models, "PUT", "/manage/models/mini?synchronous=true")["status"]
    assert models.managed is not None
    assert models.managed.calls == [
        ("register", "runs/a/bundle", "sentiment"),
        ("set_default", "sentiment", "1"),
        ("unregister", "sentiment", "1"),
        ("unregister", "mini", None),
    ]
    assert json_error(models, "POST", "/manage/models")[0] == 400
    assert json_error(models, "DELETE", "/manage/models/nobody")[0] == 404
    models.managed = None
    status, told = json_error(models, "POST", "/manage/models?url=a")
    assert (status, told["type"]) == (405, "MethodNotAllowedException")


@pytest.mark.parametrize("instances", [[TEXT], [{"inputs": TEXT}]])
def test_kserve_predicts(instances: list[Any]) -> None:
    body = {"instances": instances}
    found = json_answer(FakeModels(), "POST", "/v1/models/sentiment:predict", body)
    assert found == {"predictions": [SCORED]}
    of_version = json_answer(FakeModels(), "POST", "/v1/models/sentiment:1:predict", body)
    assert of_version == found


def test_kserve_explains_and_describes() -> None:
    models = FakeModels()
    body = {"instances": ["a film"], "target": "negative"}
    (found,) = json_answer(models, "POST", "/v1/models/sentiment:explain", body)["explanations"]
    assert (found["label"], found["words"]) == ("negative", ["a", "film"])
    told = json_answer(models, "GET", "/v1/models/sentiment")
    assert (told["name"], told["ready"], told["id"]) == ("sentiment", True, "sentiment")
    status, refused = json_error(models, "POST", "/v1/models/sentiment:predict", {"instances": [1]})
    assert status == 400
    assert "instances[0] = 1" in refused["error"]


@pytest.mark.parametrize(
    ("body", "content_type", "expected"),
    [
        (b'{"inputs": "a film"}', "application/json", "one"),
        (b'{"inputs": "a film"}', "", "one"),
        (b'{"inputs": ["a film"]}', "application/json", "list"),
        (b'{"instances": ["a film"]}', "application/json", "predictions"),
        (b'{"instances": [{"inputs": "a film"}]}', "application/json", "predictions"),
        (b"a film", "text/plain", "one"),
        (b"a film\n", "text/csv", "list"),
        (b'"a film"\r\n', "text/csv; charset=utf-8", "list"),
    ],
)
def test_sagemaker_answers_the_default_model(body: bytes, content_type: str, expected: str) -> None:
    ranked = sorted(
        ({"score": score, "label": label} for label, score in SCORED.items()),
        key=lambda each: -each["score"],
    )
    shapes: dict[str, Any] = {
        "one": ranked,
        "list": [ranked],
        "predictions": {"predictions": [ranked]},
    }
    found = json_answer(FakeModels(), "POST", "/invocations", body, content_type=content_type)
    assert found == shapes[expected]


def test_sagemaker_reads_a_table_of_texts() -> None:
    body = b'"a film, warm"\nb\n\n"c ""d"""\n'
    found = json_answer(FakeModels("stars"), "POST", "/invocations", body, content_type="text/csv")
    texts = ["a film, warm", "b", 'c "d"']
    assert [each[0]["score"] for each in found] == [
        fake_prediction(text, "regression", 0).scores[0] for text in texts
    ]


@pytest.mark.parametrize(
    ("body", "content_type", "words"),
    [
        (b"a, b\n", "text/csv", "line 1 has 2 columns"),
        (b'"a', "text/csv", "not CSV"),
        (b"\xff", "text/csv", "UTF-8"),
        (b"a", "application/x-npy", "text/csv"),
        (b"{}", "application/json", "inputs is missing"),
        (b"\n\n", "text/csv", "at least one"),
    ],
)
def test_sagemaker_refuses_in_words(body: bytes, content_type: str, words: str) -> None:
    status, told = json_error(FakeModels(), "POST", "/invocations", body, content_type=content_type)
    assert status == 400
    assert words in told["error"]


def test_other_tasks_at_sagemaker() -> None:
    mini = json_answer(FakeModels("mini"), "POST", "/invocations", {"inputs": "a"})
    assert mini == fake_vector("a").tolist()
    filler = json_answer(FakeModels("filler"), "POST", "/invocations", {"inputs": ["[MASK]"]})
    assert filler[0][0]["token_str"] == "film"
    assert send_request(
        FakeModels("mini"), "POST", "/invocations", b"a", {"content-type": "text/plain"}
    )
