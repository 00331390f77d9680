"""The engine: a bundle's answers are those of its model, whatever they are batched with."""

from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tiny_bundle import LABELS, MAX_LENGTH, write_linear_bundle, write_tiny_bundle
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from serving.engine import Engine, join, split
from trainers.card import BundleError
from trainers.encoding import EncodingError

FUZZED = settings(deadline=None, suppress_health_check=list(HealthCheck), max_examples=50)

TEXTS = [
    "a warm funny film",
    "dull",
    "the plot is thin but the cast is good " * 3,
    "boring scene of a grim story",
]


@pytest.fixture(scope="module", params=sorted(LABELS.keys() - {"masked-lm"}))
def directory(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, tiny_bert: Path
) -> Path:
    target = tmp_path_factory.mktemp("engine") / "bundle"
    return write_tiny_bundle(target, tiny_bert, request.param)


@pytest.fixture(scope="module")
def engine(directory: Path) -> Engine:
    return Engine.load(directory)


def test_the_logits_are_those_transformers_computes(engine: Engine, directory: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(directory)
    model = AutoModelForSequenceClassification.from_pretrained(directory).eval()
    for text, prediction in zip(TEXTS, engine.predict(TEXTS), strict=True):
        inputs = tokenizer(text, truncation=True, max_length=MAX_LENGTH, return_tensors="pt")
        with torch.no_grad():
            expected = model(**inputs).logits[0]
        np.testing.assert_allclose(prediction.logits, expected, rtol=1e-4, atol=1e-4)


def test_the_scores_are_what_the_task_means(engine: Engine) -> None:
    for prediction in engine.predict(TEXTS):
        logits, scores = np.array(prediction.logits), np.array(prediction.scores)
        if engine.card.task == "classification":
            expected = np.exp(logits - logits.max()) / np.exp(logits - logits.max()).sum()
        elif engine.card.task == "multi-label":
            expected = 1 / (1 + np.exp(-logits))
        else:
            expected = logits
        np.testing.assert_allclose(scores, expected, atol=1e-6)


def test_a_text_is_answered_alike_alone_and_in_any_batch(engine: Engine) -> None:
    together = engine.predict(TEXTS)
    for text, prediction in zip(TEXTS, together, strict=True):
        (alone,) = engine.predict([text])
        np.testing.assert_allclose(alone.logits, prediction.logits, atol=1e-4)
    backwards = engine.predict(TEXTS[::-1])[::-1]
    for there, back in zip(together, backwards, strict=True):
        np.testing.assert_allclose(there.logits, back.logits, atol=1e-4)


def test_rows_of_several_requests_are_answered_as_one(engine: Engine) -> None:
    samples, num_cut = engine.encode(TEXTS)
    assert num_cut == 1
    rows = split(samples)
    assert [len(row) for row in rows] == samples.lengths.tolist()
    np.testing.assert_array_equal(join(rows).values, samples.values)
    np.testing.assert_array_equal(join(rows).offsets, samples.offsets)
    assert engine.infer_rows(rows) == engine.infer(samples)


def test_a_model_that_answers_no_number_says_so(directory: Path) -> None:
    engine = Engine.load(directory)
    with torch.no_grad():
        next(iter(engine._model.parameters())).fill_(float("nan"))
    with pytest.raises(FloatingPointError):
        engine.predict(["a film"])


@FUZZED
@given(text=st.text(min_size=1))
def test_any_text_is_answered(engine: Engine, text: str) -> None:
    (prediction,) = engine.predict([text])
    if engine.card.task == "classification":
        assert sum(prediction.scores) == pytest.approx(1)


def test_a_linear_model_reads_as_many_numbers_as_it_was_trained_on(tmp_path: Path) -> None:
    engine = Engine.load(write_linear_bundle(tmp_path / "bundle", weights=(2.0, -1.0)))
    assert [each.scores for each in engine.predict(["3 1", "0.5 0"])] == [(5.0,), (1.0,)]
    assert engine.predict([engine.probe])[0].scores == (0.0,)
    for text, words in (("3", "'3' holds 1 numbers; this model reads 2"), ("a b", "'a b'")):
        with pytest.raises(EncodingError, match=words):
            engine.predict([text])


def test_a_masked_language_model_is_not_served(tmp_path: Path, tiny_bert: Path) -> None:
    with pytest.raises(BundleError, match=r"answers no labels yet; train on it with model\.name="):
        Engine.load(write_tiny_bundle(tmp_path, tiny_bert, "masked-lm"))


def test_a_directory_that_is_no_bundle_is_refused(tmp_path: Path) -> None:
    with pytest.raises(BundleError, match="bundle"):
        Engine.load(tmp_path)
