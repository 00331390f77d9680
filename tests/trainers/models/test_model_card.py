"""The README.md of a bundle: metadata that the hub's library reads, and figures for people."""

from pathlib import Path
from typing import Any

import pytest

from tests.support.tiny_bundle import write_linear_bundle, write_tiny_bundle
from trainers.models.card import ModelCard, read_card
from trainers.models.model_card import format_readme

PER_CLASS = {
    "no": {"precision": 0.75, "recall": 0.9, "f1": 0.818, "support": 20},
    "yes|maybe": {"precision": 0.8, "recall": 0.5, "f1": 0.615, "support": 15},
}
VERDICT = {
    "figures": {"f1": {"value": 0.717, "low": 0.55, "high": 0.86}},
    "baselines": {
        "majority": {"f1": 0.36, "accuracy": 0.57},
        "bag-of-words": {"name": "TF-IDF + logistic regression", "f1": 0.7, "accuracy": 0.72},
    },
    "never_predicted": ["maybe"],
    "sentences": ["No better than the bag of words."],
}


def make_card(
    task: str = "classification", model: str = "acme/tiny-bert", **fields: Any
) -> ModelCard:
    settings: dict[str, Any] = {
        "task": task,
        "labels": ("no", "yes|maybe") if task in ("classification", "multi-label") else (),
        "cleaning": "text-v1",
        "max_length": 128,
        "metrics": {"rows": 35, "loss": 0.5, "accuracy": 0.729, "f1": 0.717},
        "recipe": {
            "model": {"name": model},
            "data": {"source": "/home/ada/secret/tickets.csv", "label": "label"},
        },
        "data_fingerprint": "abc",
        "revision": "unknown",
        "environment": {},
    }
    return ModelCard(**(settings | fields))


def read_metadata(text: str) -> Any:
    """Read the metadata block as the hub's own library does."""
    from huggingface_hub import ModelCard as HubCard

    return HubCard(text).data


def test_the_hubs_library_reads_the_metadata() -> None:
    data = read_metadata(format_readme(make_card(), "tickets"))
    assert data.library_name == "transformers"
    assert data.pipeline_tag == "text-classification"
    assert data.base_model == "acme/tiny-bert"
    assert data.language is None and data.license is None
    figures = {each.metric_type: each.metric_value for each in data.eval_results}
    assert figures == {"accuracy": 0.729, "f1": 0.717, "loss": 0.5}
    assert {each.dataset_name for each in data.eval_results} == {"tickets.csv"}
    assert data.model_name == "tickets"


@pytest.mark.parametrize(
    ("task", "tag"),
    [
        ("multi-label", "text-classification"),
        ("regression", "text-classification"),
        ("masked-lm", "fill-mask"),
        ("embedding", "feature-extraction"),
    ],
)
def test_each_task_has_its_pipeline(task: str, tag: str) -> None:
    text = format_readme(make_card(task, metrics={}), "mine")
    assert read_metadata(text).pipeline_tag == tag
    assert f'pipeline("{tag}", "DIRECTORY"' in text
    assert "How good it is" not in text


@pytest.mark.parametrize("name", ["random", "linear", "/models/bert", "package:all-minilm-l6-v2"])
def test_a_model_that_is_not_of_the_hub_is_no_base(name: str) -> None:
    text = format_readme(make_card(model=name), "mine")
    assert read_metadata(text).base_model is None


def test_figures_stand_beside_their_intervals_and_the_baselines() -> None:
    text = format_readme(make_card(verdict=VERDICT), "tickets")
    assert "On 35 rows that were held out" in text
    assert "|  | this model | 95% interval | majority | TF-IDF + logistic regression |" in text
    assert "| F1 (macro) | 0.717 | 0.55 to 0.86 | 0.36 | 0.7 |" in text
    assert "| accuracy | 0.729 |  | 0.57 | 0.72 |" in text
    assert "- No better than the bag of words." in text
    assert "never answered `maybe`" in text


def test_without_a_verdict_the_figures_stand_alone() -> None:
    assert "| F1 (macro) | 0.717 |\n" in format_readme(make_card(), "tickets")


def test_labels_have_their_figures_and_thresholds() -> None:
    metrics = {"rows": 35, "f1": 0.7, "per_class": PER_CLASS}
    card = make_card(metrics=metrics, thresholds={"yes|maybe": 0.35})
    text = format_readme(card, "tickets")
    assert "| label | precision | recall | F1 | rows | threshold |" in text
    assert "| no | 0.75 | 0.9 | 0.818 | 20 |  |" in text
    assert "| yes\\|maybe | 0.8 | 0.5 | 0.615 | 15 | 0.35 |" in text
    assert "The answer is `yes|maybe` where its probability reaches its threshold" in text


def test_the_data_are_counted_and_its_directory_is_not_told() -> None:
    data = {
        "rows": {"train": 1000, "validation": 30, "test": 35},
        "label_counts": {"train": {"no": 600, "yes|maybe": 400}},
        "skipped": [{"reason": "no text", "rows": 3, "first": "line 7"}],
    }
    text = format_readme(make_card(data=data), "tickets")
    assert "- rows: 1,000 train, 30 validation, 35 test" in text
    assert "- training rows of each label: no 600, yes|maybe 400" in text
    assert "- left out: 3 (no text)" in text
    assert "secret" not in text and "ada" not in text


def test_examples_are_not_told() -> None:
    assert "Dear Ada" not in format_readme(make_card(examples=("Dear Ada",)), "tickets")


def test_a_regression_tells_its_range() -> None:
    target = {"mean": 2.0, "deviation": 1.0, "low": 0.5, "high": 4.25}
    card = make_card("regression", target=target, metrics={"rows": 9, "r2": 0.5, "mae": 0.25})
    text = format_readme(card, "prices")
    assert "| R² | 0.5 |" in text and "| mean absolute error | 0.25 |" in text
    assert "trained values lie from 0.5 to 4.25" in text
    assert 'function_to_apply="none"' in text


@pytest.mark.parametrize(
    "task", ["classification", "multi-label", "regression", "masked-lm", "embedding"]
)
def test_every_bundle_has_one_under_the_name_of_its_run(
    task: str, tiny_bert: Path, tmp_path: Path
) -> None:
    bundle = write_tiny_bundle(tmp_path / "tickets" / "bundle", tiny_bert, task)
    text = (bundle / "README.md").read_text(encoding="utf-8")
    assert "\n# tickets\n" in text
    read_card(bundle)  # which takes it for no file of the model


def test_a_linear_model_is_none_of_transformers(tmp_path: Path) -> None:
    text = (write_linear_bundle(tmp_path / "bundle", [1.0]) / "README.md").read_text()
    assert read_metadata(text).library_name is None
    assert "from transformers" not in text
