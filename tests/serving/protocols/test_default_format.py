"""The default format: one plain answer a text, and the words that speak for a label."""

from typing import Any

import pytest

from serving.http.messages import HTTPError
from serving.interface import MaskPrediction
from serving.protocols.default_format import (
    answer_texts,
    explain_texts,
    format_masks,
    score_labels,
)
from tests.support.fake_models import (
    FakeModels,
    fake_model_info,
    fake_prediction,
    fake_vector,
)
from tests.support.http_requests import run_coroutine

TEXT = "a film"
ANSWER = fake_prediction(TEXT, "classification", 2)


def labeled(*labels: str) -> FakeModels:
    """Models whose default one classifies to these labels."""
    models = FakeModels()
    models.infos[0] = fake_model_info("sentiment", "2", labels=labels)
    return models


def explain(models: FakeModels, target: str | int | None, text: str = TEXT) -> dict[str, Any]:
    (found,) = run_coroutine(explain_texts(models, None, [text], target))  # type: ignore[arg-type,misc]
    return found


def test_the_likeliest_label_comes_first_and_a_regression_is_its_number() -> None:
    found = score_labels(ANSWER, fake_model_info("sentiment"))
    assert list(found.values()) == sorted(ANSWER.scores, reverse=True)
    stars = fake_prediction(TEXT, "regression", 0)
    assert score_labels(stars, fake_model_info("stars")) == stars.scores[0]


def test_a_protocol_may_format_predictions_itself_and_forbid_cutting() -> None:
    models = FakeModels()
    found = run_coroutine(
        answer_texts(
            models, "topics", ["a", "b"], lambda each, info: (info.name, each.logits), False
        )  # type: ignore[arg-type]
    )
    assert found == [("topics", fake_prediction(text, "multi-label", 3).logits) for text in "ab"]
    vectors = run_coroutine(answer_texts(models, "mini", ["a"], truncate=False))  # type: ignore[arg-type]
    assert vectors == [fake_vector("a").tolist()]
    assert models.truncated == [False, False]
    run_coroutine(answer_texts(models, None, ["a"]))  # type: ignore[arg-type]
    assert models.truncated[-1] is True


def test_one_mask_is_a_list_of_tokens_and_no_mask_an_empty_one() -> None:
    token = MaskPrediction(0.5, 7, "film", TEXT)
    plain = {"score": 0.5, "token": 7, "token_str": "film", "sequence": TEXT}
    assert format_masks([[token]]) == [plain]
    assert format_masks([[token], [token]]) == [[plain], [plain]]
    assert format_masks([]) == []


@pytest.mark.parametrize(
    ("target", "label"),
    [("positive", "positive"), (0, "negative"), ("1", "positive"), ("negative", "negative")],
)
def test_a_label_is_named_or_numbered_and_scored_as_itself(target: str | int, label: str) -> None:
    found = explain(labeled("negative", "positive"), target)
    assert found["label"] == label
    assert found["score"] == ANSWER.scores[("negative", "positive").index(label)]


def test_without_a_target_the_likeliest_label_is_explained() -> None:
    assert explain(FakeModels(), None)["score"] == max(ANSWER.scores)


def test_a_label_that_looks_like_an_index_is_meant_by_its_name() -> None:
    assert explain(labeled("1", "0"), "0")["score"] == ANSWER.scores[1]


def test_words_are_those_of_the_text_with_their_offsets() -> None:
    found = explain(FakeModels(), None, "A  warm film")
    assert found["words"] == ["A", "warm", "film"]
    assert found["offsets"] == [[0, 1], [3, 7], [8, 12]]
    assert found["importances"] == [0.5, 0.5, 0.5]


@pytest.mark.parametrize("target", ["neutral", 2, -1, "-1", "2", "\u0661", "9" * 5000])
def test_a_label_that_is_not_there_is_refused_with_those_that_are(target: str | int) -> None:
    with pytest.raises(HTTPError) as refused:
        explain(FakeModels(), target)
    assert refused.value.kind == "malformed"
    assert refused.value.message.startswith("target = ")
    assert refused.value.message.endswith("expected one of negative, positive, or its index")
    assert len(refused.value.message) < 200


def test_a_model_without_labels_refuses_by_its_task() -> None:
    with pytest.raises(HTTPError, match="stars is for regression"):
        run_coroutine(explain_texts(FakeModels(), "stars", [TEXT], 0))  # type: ignore[arg-type]
