"""TorchServe's management API: pages, descriptions, and changes that are refused or passed on."""

from typing import Any

import pytest

from tests.support.fake_models import FakeModels, fake_model_info
from tests.support.http_requests import json_answer, json_error, send_request

ALL = "/manage/models"
NAMES = ["sentiment", "topics", "stars", "mini", "filler"]


def names(page: dict[str, Any]) -> list[str]:
    return [each["modelName"] for each in page["models"]]


def test_a_name_is_listed_once_with_its_live_version() -> None:
    page = json_answer(FakeModels(), "GET", ALL)
    assert names(page) == NAMES
    assert page["models"][0] == {"modelName": "sentiment", "modelUrl": "sentiment:2"}
    assert "nextPageToken" not in page


@pytest.mark.parametrize("limit", [1, 2, 5])
def test_pages_follow_one_another_to_the_end(limit: int) -> None:
    found: list[str] = []
    token: str | None = "0"
    while token is not None:
        page = json_answer(FakeModels(), "GET", f"{ALL}?limit={limit}&next_page_token={token}")
        assert 1 <= len(page["models"]) <= limit
        found, token = found + names(page), page.get("nextPageToken")
    assert found == NAMES


def test_a_page_holds_at_least_one_model() -> None:
    page = json_answer(FakeModels(), "GET", f"{ALL}?limit=0")
    assert (names(page), page["nextPageToken"]) == (["sentiment"], "1")


@pytest.mark.parametrize(
    "query", ["limit=-1", "limit=\u0661", "next_page_token=x", "limit=1234567890"]
)
def test_a_query_that_is_no_number_is_named(query: str) -> None:
    status, told = json_error(FakeModels(), "GET", f"{ALL}?{query}")
    key, value = query.split("=")
    assert (status, told["message"]) == (400, f"{key} = '{value}': expected a number, from 0")


@pytest.mark.parametrize(
    ("state", "loaded", "workers"), [("ready", True, 1), ("loading", True, 0), ("cold", False, 0)]
)
def test_a_version_is_described_by_what_is_in_memory(
    state: str, loaded: bool, workers: int
) -> None:
    models = FakeModels()
    models.infos[0] = fake_model_info("sentiment", "2", state=state)
    (found,) = json_answer(models, "GET", f"{ALL}/sentiment")
    assert (found["loadedAtStartup"], len(found["workers"])) == (loaded, workers)
    assert (found["modelName"], found["modelUrl"]) == ("sentiment", "sentiment:2")
    assert (found["engine"], found["batchSize"]) == ("torch fp32", models.limits.max_texts)
    assert "customizedMetadata" not in found
    for worker in found["workers"]:
        assert (worker["startTime"], worker["status"]) == ("2023-11-14T22:13:20.000Z", "READY")


@pytest.mark.parametrize(("asked", "told"), [("TRUE", True), ("1", False), ("", False)])
def test_what_else_is_known_is_told_on_request(asked: str, told: bool) -> None:
    (found,) = json_answer(FakeModels(), "GET", f"{ALL}/sentiment@best?customized={asked}")
    assert ("customizedMetadata" in found) is told
    if told:
        assert found["customizedMetadata"] == {
            "task": "classification",
            "labels": ["negative", "positive"],
            "aliases": ["live", "best"],
            "metrics": {"accuracy": 0.9},
            "baseModel": "tiny-bert",
            "revision": "abc",
        }


def test_every_version_of_one_name_is_described() -> None:
    found = json_answer(FakeModels(), "GET", f"{ALL}/sentiment:1/all")
    assert [(each["modelName"], each["modelVersion"]) for each in found] == [
        ("sentiment", "2"),
        ("sentiment", "1"),
    ]


def test_a_bundle_without_a_name_is_named_by_the_registry() -> None:
    models = FakeModels()
    json_answer(models, "POST", f"{ALL}?url=runs/a/bundle&model_name=")
    assert models.managed is not None
    assert models.managed.calls == [("register", "runs/a/bundle", None)]
    status, told = json_error(models, "POST", f"{ALL}?model_name=a")
    assert (status, told["message"]) == (
        400,
        "url is missing; expected the directory of a bundle",
    )


def test_changes_say_what_was_done() -> None:
    models = FakeModels()
    found = json_answer(models, "PUT", f"{ALL}/sentiment/1/set-default")
    assert found["status"] == 'Default version successfully updated for model "sentiment" to "1"'
    found = json_answer(models, "DELETE", f"{ALL}/sentiment/1")
    assert found["status"] == 'Model "sentiment" unregistered'
    scaled = send_request(models, "PUT", f"{ALL}/sentiment/1?min_worker=2")
    assert scaled.status == 202 and b"are as they were" in scaled.body
    assert json_answer(models, "PUT", f"{ALL}/sentiment/1?synchronous=true")
    assert json_error(models, "PUT", f"{ALL}/nobody")[0] == 404


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("POST", f"{ALL}?url=a"),
        ("PUT", f"{ALL}/sentiment/1/set-default"),
        ("DELETE", f"{ALL}/sentiment"),
        ("DELETE", f"{ALL}/sentiment/1"),
    ],
)
def test_an_endpoint_of_one_bundle_changes_nothing(method: str, path: str) -> None:
    models = FakeModels()
    models.managed = None
    status, told = json_error(models, method, path)
    assert status == 405
    assert told["message"] == "this endpoint serves one bundle; nothing can be changed"
